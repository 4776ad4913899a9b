"""Networks by name: files, runs, and the networks of other libraries."""

from __future__ import annotations

import importlib
import os
import re
import sys

import keras
from absl import logging

from seed_tf import checkpoints
from seed_tf.acceleration import precision
from seed_tf.encoders import Encoder
from seed_tf.encoders.backbones import BACKBONES, backbone
from seed_tf.teachers import applications, hub
from seed_tf.teachers.networks import Network, to_vector

_FUNCTION = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")
# Mean and std that leave images in [0, 255] as they are.
_RAW = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)


def load_encoder(
    name: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    pooling: str | None = None,
) -> keras.Model:
    """Loads a trained encoder of any kind, e.g. as a teacher.

    Args:
        name: one of
            - a path, as `checkpoints.load_encoder` takes it: a run, a
              `.keras` file or a published checkpoint;
            - "keras_hub:dinov2_small": a preset of KerasHub (this needs the
              extra `keras-hub`), or a local folder, in KerasHub's format or
              in Hugging Face's;
            - "keras_applications:ConvNeXtBase", with ImageNet's weights;
            - "package.module:function", a function without arguments that
              returns a keras.Model of images `[B, H, W, 3]` in [0, 255].
        image_size: pixels of the images that the encoder will see. A network
            of KerasHub that can take several sizes is built for the nearest.
            Any other network keeps its size and resizes the images.
        pooling: of the tokens of a network of KerasHub, see `hub.load`.

    Returns:
        keras.Model of images `[B, H, W, 3]`, uint8 or float in [0, 255]. For
        networks of other libraries it is an `Encoder` without a head, which
        normalises the images as its network expects.

    Raises:
        ValueError: if there is none, or it cannot be loaded.
    """
    name = os.fspath(name)
    kind, rest = _split(name)
    if kind is None:
        return checkpoints.load_encoder(name)
    with precision.no_16_bits():
        if kind == "function":
            return _as_encoder(_call(name))
        return _network(kind, rest, image_size, pooling, True).encoder(
            head=None
        )


def load_network(
    name: str, *, image_size: int | None = None, stem: str = "imagenet"
) -> Network:
    """Builds an untrained network of any kind, e.g. of a student.

    Args:
        name: a name of `seed_tf.backbone`, or as of `load_encoder`. Networks
            of other libraries get random weights. A file, a run and a
            function's model keep theirs; their heads are left out.
        image_size: as of `load_encoder`.
        stem: of `seed_tf.backbone`.

    Raises:
        ValueError: if there is none, or it cannot be built.
    """
    kind, rest = _split(name)
    if name in BACKBONES or (kind is None and not os.path.exists(name)):
        return Network(backbone(name, stem=stem))
    if kind is None or kind == "function":
        model = _call(name) if kind else checkpoints.load_encoder(name)
        model = _as_encoder(model)
        if not isinstance(model, Encoder):
            return Network(model, *_RAW)
        config = model.get_config()
        return Network(model.backbone, config["mean"], config["std"])
    network = _network(kind, rest, image_size, None, False)
    if hub.loses_training(network.backbone):
        raise ValueError(
            "KerasHub does not save DINOv2's position embeddings once they are "
            "trained: it can be no student. Take DINOv3 or ViT. Received: "
            f"{name!r}."
        )
    return network


def license_of(name: str) -> str | None:
    """Returns the license in the card of a network's folder, or None.

    Args:
        name: as of `load_encoder`.
    """
    kind, rest = _split(name)
    return hub.license_of(rest) if kind == "keras_hub" else None


def start_from(student: Encoder, name: str) -> None:
    """Gives a student the weights of another encoder.

    Args:
        student: `Encoder`. Its head starts from the other's head if both have
            the same layers, and stays as it is otherwise.
        name: as of `load_encoder`.

    Raises:
        ValueError: if the backbones have other weights. Nothing is set then.
    """
    source = load_encoder(name, image_size=student.image_size)
    network = getattr(source, "backbone", source)
    wanted = [tuple(x.shape) for x in student.backbone.weights]
    found = [tuple(x.shape) for x in network.weights]
    if wanted != found:
        raise ValueError(
            f"The weights of {name!r} do not fit the student. Expected a "
            f"{student.backbone.name} of {len(wanted)} weights. Received: a "
            f"{network.name} of {len(found)}."
        )
    student.backbone.set_weights(network.get_weights())
    heads = student.head, getattr(source, "head", None)
    shapes = [[x.shape for x in head.weights] for head in heads if head]
    if len(shapes) == 2 and shapes[0] == shapes[1]:
        student.head.set_weights(source.head.get_weights())
        return
    logging.info("The student's head is new: %r has no such head.", name)


def is_path(name: str) -> bool:
    """Whether a name is a path, and no network of another library."""
    return _split(name)[0] is None


def absolute(name: str) -> str:
    """Returns a path as an absolute path, and other names unchanged."""
    return os.path.abspath(os.path.expanduser(name)) if is_path(name) else name


def _split(name):
    """Returns the kind of a name and the rest; None and the name of a path."""
    kind, _, rest = name.partition(":")
    if kind in ("keras_hub", "keras_applications"):
        return kind, rest
    if _FUNCTION.fullmatch(name) and not os.path.exists(name):
        return "function", name
    return None, name


def _network(kind, name, image_size, pooling, weights):
    if kind == "keras_hub":
        return hub.load(
            name, image_size=image_size, pooling=pooling, weights=weights
        )
    return applications.load(name, image_size=image_size, weights=weights)


def _call(name):
    """Returns the model of "package.module:function"."""
    module, function = _FUNCTION.fullmatch(name).group("module", "name")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` does
    try:
        model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"Expected a file, or package.module:function. Received: {name!r}: "
            f"{error}."
        ) from error
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"{name!r} must return a keras.Model. Received: {model!r}."
        )
    return model


def _as_encoder(model):
    """Pools maps or tokens of a user's model; leaves embeddings as they are."""
    inputs = getattr(model, "inputs", None)
    if isinstance(model, Encoder) or not inputs:
        return model
    network = to_vector(model)
    if network is model and len(model.output_shape) == 2:
        return model
    return Network(network, *_RAW).encoder(head=None)
