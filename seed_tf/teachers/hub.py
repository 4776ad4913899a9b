"""Networks of KerasHub."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from seed_tf import keras_internals
from seed_tf.encoders.encoder import IMAGENET_MEAN, IMAGENET_STD
from seed_tf.io.extras import extra
from seed_tf.io.files import read_json
from seed_tf.teachers import hugging_face
from seed_tf.teachers.networks import Network, to_vector

_HALF = (0.5, 0.5, 0.5)
_IMAGENET = IMAGENET_MEAN, IMAGENET_STD
# Mean and std by the class of the network, where a folder does not say them.
_NORMALISATION = {
    "CLIPVisionEncoder": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "DINOV2Backbone": _IMAGENET,
    "DINOV3Backbone": _IMAGENET,
    "SigLIPVisionEncoder": (_HALF, _HALF),
    "ViTBackbone": (_HALF, _HALF),
}
_NORMALISATION["MetaCLIP2VisionEncoder"] = _NORMALISATION["CLIPVisionEncoder"]
# Networks that take every multiple of their patches: KerasHub interpolates the
# position embeddings of DINOv2, and those of DINOv3 are functions of the size.
_ANY_GRID = {"DINOV2Backbone": 14, "DINOV3Backbone": 16}
_CLASSES = {
    "dinov2": "DINOV2Backbone",
    "dinov2_with_registers": "DINOV2Backbone",
    "dinov3_vit": "DINOV3Backbone",
}
_SIZE = 224  # that foundation models are evaluated at


def load(
    preset: str,
    *,
    image_size: int | None = None,
    pooling: str | None = None,
    weights: bool = True,
) -> Network:
    """Loads an image network of KerasHub.

    Args:
        preset: what KerasHub's `from_preset` takes: a name, a handle, or a
            local folder, also in Hugging Face's format (config.json and
            safetensors).
        image_size: pixels of the images. A network that can take several
            sizes gets the nearest. All others resize images to their own.
            The default is the size in the preset.
        pooling: of tokens, "class", "mean" or "class_mean". The default is
            the one that the authors use for k-NN: the class token of DINOv2,
            DINOv3, ViT and CLIP (before CLIP's projection), the pooled output
            of SigLIP, and the mean of all tokens where there is no class
            token.
        weights: whether to load the weights, or to leave them random.

    Raises:
        ValueError: if there is no such preset, or it is no image network.
    """
    with extra("keras-hub", "Models of KerasHub"):
        import keras_hub
    folder = os.path.expanduser(preset)
    config = _json(folder, "config.json")
    if config:
        preset = folder
    if hugging_face.has_tower(config):
        backbone = hugging_face.tower(preset, config, weights)
    else:
        wanted = image_size or _size(_json(folder, "preprocessor_config.json"))
        options = _options(keras_hub, preset, config, wanted or _SIZE)
        try:
            backbone = keras_hub.models.Backbone.from_preset(
                preset, load_weights=weights, **options
            )
        except Exception as error:
            # Whatever KerasHub's readers and downloads raise.
            raise ValueError(
                f"KerasHub cannot load {preset!r}: {error}"
            ) from error
    if type(backbone).__name__ == "DINOV2Backbone":
        backbone = _of_one_size(backbone)
    network = getattr(backbone, "vision_encoder", backbone)
    if not isinstance(network, keras.Model) or len(network.inputs) != 1:
        raise ValueError(
            "Expected a network of images. Received: "
            f"{preset!r}, a {type(backbone).__name__}."
        )
    mean, std, own_size = _preprocessing(keras_hub, preset, config, network)
    size = network.inputs[0].shape[1] or image_size or own_size or _SIZE
    return Network(
        to_vector(
            network,
            pooling=pooling,
            prefix=_prefix(network),
            norm=getattr(backbone, "vision_post_layer_norm", None),
        ),
        tuple(mean),
        tuple(std),
        size,
    )


def loses_training(backbone: keras.Model) -> bool:
    """Whether KerasHub saves the network without what training changed.

    Its DINOv2 stores position embeddings of before the training, unless the
    sum of all changes is positive.
    """
    names = {type(x).__name__ for x in keras_internals.all_layers(backbone)}
    return "DINOV2Embedding" in names


def license_of(preset: str) -> str | None:
    """Returns the license in the README.md of a local folder, or None."""
    path = os.path.join(os.path.expanduser(preset), "README.md")
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        head = file.read().partition("---\n")[2].partition("\n---")[0]
    keys = dict(re.findall(r"^(license\w*):[ \t]*(\S.*)$", head, re.MULTILINE))
    # Hugging Face: "other" has a name, and perhaps a link.
    found = keys.get("license_name") or keys.get("license")
    link = keys.get("license_link")
    return f"{found} ({link})" if found and link else found


def _json(folder, name):
    path = os.path.join(folder, name)
    return read_json(path) if os.path.isfile(path) else {}


def _options(keras_hub, preset, config, image_size):
    """Returns arguments of a network that can take several sizes."""
    for name, patch in _ANY_GRID.items():
        cls = getattr(keras_hub.models, name)
        found = config.get("class_name") or _CLASSES.get(
            config.get("model_type")
        )
        if name == found or (not config and preset in cls.presets):
            inner = config.get("config", config)  # of KerasHub, or of HF
            patch = inner.get("patch_size", patch)
            side = max(1, round(image_size / patch)) * patch
            return {"image_shape": (side, side, 3)}
    return {}


def _of_one_size(backbone):
    """Returns a DINOv2 whose position embeddings are those of its own size.

    KerasHub keeps those of the size of pretraining, and resamples back and
    forth when it saves. And it interpolates with the cubic kernel of
    TensorFlow, a = -0.5, where PyTorch's models use a = -0.75.
    """
    config = backbone.get_config()
    side = config["image_shape"][0]
    if side == config["position_embedding_shape"][0]:
        return backbone
    config["position_embedding_shape"] = (side, side)
    copy = type(backbone).from_config(config)
    for old, new in zip(backbone.weights, copy.weights, strict=True):
        if old.shape == new.shape:
            new.assign(old)
    layer = copy.embeddings
    if not config["antialias_in_interpolation"]:
        grid = np.asarray(backbone.embeddings.position_embeddings)[0]
        pixels = math.isqrt(len(grid) - 1)
        rows = _cubic_weights(pixels, side // config["patch_size"])
        patches = grid[1:].reshape(pixels, pixels, -1)
        patches = np.einsum("hH,wW,HWc->hwc", rows, rows, patches)
        grid = np.vstack([grid[:1], patches.reshape(-1, grid.shape[1])])
        layer.interpolated_position_embeddings.assign(grid[None])
    layer.position_embeddings.assign(layer.interpolated_position_embeddings)
    return copy


def _cubic_weights(in_size, out_size):
    """Returns PyTorch's bicubic interpolation, `[out_size, in_size]`."""
    a = -0.75
    centre = (np.arange(out_size) + 0.5) * in_size / out_size - 0.5
    pixel = np.floor(centre)[:, None] + np.arange(-1, 3)
    x = np.abs(pixel - centre[:, None])
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = np.zeros((out_size, in_size))
    column = np.clip(pixel, 0, in_size - 1).astype(int)
    row = np.arange(out_size)[:, None]
    np.add.at(weights, (row, column), np.where(x <= 1, near, far))
    return weights


def _prefix(network):
    """Returns the number of tokens before those of patches."""
    name = type(network).__name__
    if name == "DeiTBackbone":
        return 2  # class token and distillation token
    if name in _NORMALISATION and getattr(network, "use_class_token", True):
        return 1 + getattr(network, "num_register_tokens", 0)
    return 0


def _preprocessing(keras_hub, preset, config, network):
    """Returns mean and std of images in [0, 1], and the size or None."""
    settings = _json(preset, "preprocessor_config.json")
    if settings:
        mean, std = (0.0,) * 3, (1.0,) * 3
        if settings.get("do_normalize", True):
            mean, std = settings["image_mean"], settings["image_std"]
        factor = 255 * settings.get("rescale_factor", 1 / 255)
        if not settings.get("do_rescale", True):
            factor = 255
        mean, std = [m / factor for m in mean], [s / factor for s in std]
        return mean, std, _size(settings)
    converter = None
    if "model_type" not in config:
        try:
            converter = keras_hub.layers.ImageConverter.from_preset(preset)
        except Exception as error:  # whatever KerasHub raises for none
            logging.info("%s has no image converter: %s", preset, error)
    if converter is not None:
        size = converter.image_size
        scale = _triple(converter.scale, 1)
        offset = _triple(converter.offset, 0)
        std = [1 / (255 * s) for s in scale]
        mean = [-o * s for o, s in zip(offset, std, strict=True)]
        return mean, std, size and size[0]
    mean, std = _NORMALISATION.get(type(network).__name__, _IMAGENET)
    logging.warning(
        "%s does not say how to normalise images: taking mean %s and std %s.",
        preset,
        mean,
        std,
    )
    return mean, std, None


def _triple(value: Any, default: float) -> Sequence[float]:
    value = default if value is None else value
    return list(value) if isinstance(value, Sequence) else [value] * 3


def _size(settings):
    """Returns the size in a preprocessor_config.json, or None."""
    for key in ("crop_size", "size"):
        value = settings.get(key)
        if isinstance(value, dict):
            value = value.get("height", value.get("shortest_edge"))
        if value:
            return int(value)
    return None
