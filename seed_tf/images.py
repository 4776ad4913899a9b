"""Sizes and checks of images, for all functions that take images."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

__all__ = [
    "check_channels",
    "check_value_range",
    "image_size_of",
    "shorter_side",
]


def shorter_side(image_size: int) -> int:
    """Returns the size of the shorter side before a central square is cut.

    The paper resizes the shorter side to 256 pixels and cuts 224.

    Args:
        image_size: int, pixels of the square.

    >>> shorter_side(224)
    256
    """
    return round(image_size * 256 / 224)


def image_size_of(model: Any, image_size: int | None = None) -> int:
    """Returns the size of the images that a model takes.

    Args:
        model: an `Encoder`, or any keras.Model.
        image_size: int or None, the size that the caller asks for. Defaults
            to `model.image_size`, the size that the encoder was trained at.

    Raises:
        ValueError: if the size is not positive, or neither is known.
    """
    if image_size is None:
        image_size = getattr(model, "image_size", None)
    if image_size is None:
        raise ValueError(
            "`image_size` is needed: this model does not know the size of the "
            "images that it was trained on. Pass `image_size`, or set "
            "`encoder.image_size`."
        )
    if image_size < 1:
        raise ValueError(
            f"`image_size` must be positive. Received: image_size={image_size}."
        )
    return image_size


def check_channels(images: np.ndarray | tf.Tensor) -> None:
    """Raises ValueError unless images are a batch `[B, H, W, 3]`."""
    if len(images.shape) != 4 or images.shape[-1] != 3:
        raise ValueError(
            "Expected a batch of RGB images [B, H, W, 3]. Received: shape "
            f"{tuple(images.shape)}. Repeat a grey channel three times, and "
            "call `dataset.batch(...)` on single images."
        )


def check_value_range(images: np.ndarray | tf.Tensor) -> None:
    """Raises ValueError if float images cannot be RGB in [0, 255].

    Values that are not finite are refused. So are batches whose values are not
    all zero and nowhere beyond +-5, which must be in [0, 1] or normalised.
    """
    images = np.asarray(images)
    if images.dtype.kind != "f" or not images.size:
        return
    low, high = float(images.min()), float(images.max())
    if not 5 < max(-low, high) < np.inf and (low, high) != (0, 0):
        raise ValueError(
            "Expected RGB images in [0, 255], as uint8 or float. Received: "
            f"{images.dtype} values in [{low:.4g}, {high:.4g}]. Leave out the "
            "normalisation (it is inside the Encoder), or multiply by 255."
        )
