"""Encoders that Keras wrote: `.keras` files and run folders.

A config is a program for Keras's builders, and can ask for any amount of
memory. So a file is checked before anything is built: the size of its config,
its class, and whether it is a network that does not normalise images.
"""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from typing import Any

import keras
import tensorflow as tf

from seed_tf import keras_internals
from seed_tf.acceleration import precision
from seed_tf.trainer import Trainer

_MOST_CONFIG = 2**25  # bytes; that of a ResNet-152 has 2**19
_MOST_EXPANSION = 100  # Keras itself does not compress
# Variables that a model has, and its file has not, such as random states.
_UNSAVED = 2**24  # bytes

# Names of layers that only a backbone of this library has.
_BACKBONES = (
    {"conv1", "bn1", "layer1_0_conv1"},
    {"features_0_0", "classifier_0"},
    {"conv_stem", "bn0", "blocks_0_depthwise_conv"},
)
_NORMALISE = {"Rescaling", "Normalization"}


def find(path: str) -> str | None:
    """Returns the `.keras` file of a path, or None.

    Args:
        path: the file, or the folder of a run with a `student.keras`.
    """
    file = os.path.join(path, "student.keras") if os.path.isdir(path) else path
    return file if file.endswith(".keras") and os.path.isfile(file) else None


def read(file: str) -> keras.Model:
    """Loads a `.keras` file, independently of Keras's global policy.

    Raises:
        ValueError: if the file is damaged, holds no encoder, asks for more
            memory than its weights need, or has weights that are NaN or
            infinite.
    """
    try:
        config, unpacked = _open(file)
        _check_class(config)
        _check_normalises(file, config)
        with (
            precision.no_16_bits(),
            keras_internals.at_most(unpacked + _UNSAVED),
        ):
            model = keras.saving.load_model(file, compile=False)
        _check_model(model)
    except Exception as error:
        # Keras raises whatever zipfile, json or h5py raise for a bad file.
        if "keras_hub" in str(error) and not importlib.util.find_spec(
            "keras_hub"
        ):
            error = ValueError(
                "it has a network of KerasHub. Install the package: pip "
                "install 'seed_tf[keras-hub]'."
            )
        raise ValueError(f"{file!r} cannot be loaded: {error}") from error
    return model


def _open(file: str) -> tuple[dict[str, Any], int]:
    """Returns the config, and the bytes that the file unpacks to."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        size = archive.getinfo("config.json").file_size
        if size > _MOST_CONFIG:
            raise ValueError(
                f"Expected a config of at most {_MOST_CONFIG:,} bytes. "
                f"Received: {size:,} bytes."
            )
        if unpacked > _MOST_EXPANSION * os.path.getsize(file):
            raise ValueError(
                f"Its entries declare {unpacked:,} bytes, and the file has "
                f"{os.path.getsize(file):,}."
            )
        config = json.loads(archive.read("config.json"))
    if not isinstance(config, dict):
        raise ValueError("Expected the config of a model.")
    return config, unpacked


def _check_class(config):
    """Raises if the config is that of no encoder."""
    name = config.get("registered_name") or config.get("class_name")
    kind = keras.saving.get_registered_object(name)
    package = str(config.get("module")).partition(".")[0]
    if kind is None and package == "keras":
        functional = name == "Functional"
        kind = keras.Model if functional else getattr(keras.models, name, None)
    elif kind is None:
        return  # a class of another package, which Keras looks up
    if isinstance(kind, type) and issubclass(kind, Trainer):
        raise ValueError(
            f"Expected an encoder. Received: a whole {name}. Load it by "
            "keras.saving.load_model, and save its student or encoder."
        )
    if not isinstance(kind, type) or not issubclass(kind, keras.Model):
        raise ValueError(f"Expected a keras.Model. Received: class {name!r}.")


def _check_normalises(file, config):
    """Refuses a bare backbone: its features of raw images mean nothing."""
    folder, name = os.path.split(file)
    whole = name.replace("_backbone.keras", ".keras")
    if name == "backbone.keras":
        whole = "student.keras"
    whole = os.path.join(folder, whole)
    beside = whole != file and os.path.isfile(whole)
    layers = config.get("config", {}).get("layers", [])
    names = {layer.get("config", {}).get("name") for layer in layers}
    kinds = {layer.get("class_name") for layer in layers}
    ours = any(parts <= names for parts in _BACKBONES)
    if beside or (ours and not kinds & _NORMALISE):
        raise ValueError(
            "It is a backbone alone, which does not normalise images, and "
            "would give other features without a word. "
            + (
                f"Load {whole!r}, the whole encoder."
                if beside
                else "Load the whole encoder, or make one: "
                "seed_tf.Encoder(keras.saving.load_model(path), head=None)."
            )
        )


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a keras.Model. Received: {model!r}.")
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype):
            bad = tf.math.count_nonzero(~tf.math.is_finite(weight.value))
            if bad:
                raise ValueError(
                    f"{weight.path!r} {tuple(weight.shape)} has {int(bad):,} "
                    "values that are NaN or infinite."
                )
