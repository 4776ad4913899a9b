"""Sizes and checks of images, for all functions that take images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from seed_tf.io.pipelines import steady
from seed_tf.keras_internals import SteadyInput

__all__ = [
    "ImageModel",
    "check_channels",
    "check_value_range",
    "checked",
    "image_size_of",
    "images_of",
    "only_size",
    "shorter_side",
]

_OVERSHOOT = 64  # of sharp resizing filters, a quarter of the range


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
            to `model.image_size`, the size that the encoder was trained at, or
            to the only size that the model takes.

    Raises:
        ValueError: if the size is not positive, or neither is known.
    """
    if image_size is None:
        image_size = getattr(model, "image_size", None)
    if image_size is None:
        height, width = only_size(model) or (None, None)
        image_size = height if height == width else None
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


def only_size(model: Any) -> tuple[int, int] | None:
    """Returns (H, W) of a model that takes images of one size, else None."""
    shape = getattr(getattr(model, "backbone", model), "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:3]:
        return None
    return shape[1], shape[2]


def check_channels(images: np.ndarray | tf.Tensor) -> None:
    """Raises ValueError unless images are a batch `[B, H, W, 3]`."""
    if len(images.shape) != 4 or images.shape[-1] != 3:
        raise ValueError(
            "Expected a batch of RGB images [B, H, W, 3]. Received: shape "
            f"{tuple(images.shape)}. Repeat a grey channel three times, and "
            "call `dataset.batch(...)` on single images."
        )


def check_value_range(images: np.ndarray | tf.Tensor) -> None:
    """Raises ValueError if images cannot be RGB in [0, 255].

    Any uint8 passes. So do the overshoot of a sharp resizing filter, and a
    dark batch of floats. Refused are values that are not finite, those beyond
    8 bits, those normalised by mean and standard deviation, and floats within
    +-1 that are not all zero.
    """
    if _is_uint8(images):
        return
    images = np.asarray(images)
    if not images.size:
        return
    low, high = float(images.min()), float(images.max())
    largest, whole = max(-low, high), images.dtype.kind in "iu"
    remedy = "leave out the normalisation (it is inside the Encoder)"
    if -_OVERSHOOT <= low <= high <= 255 + _OVERSHOOT:
        normalised = largest <= 1.5 or (largest <= 5 and low <= -0.5)
        if whole or largest == 0 or not normalised:
            return
        remedy += ", or multiply images in [0, 1] by 255"
    elif low >= 0 and high < np.inf:
        remedy = "divide images of 16 bits by 257"
    elif not np.isfinite(largest):
        remedy = "repair the images that have NaN or infinity"
    raise ValueError(
        "Expected RGB images in [0, 255], as uint8 or float. Received: "
        f"{images.dtype} values in [{low:.4g}, {high:.4g}]. Pass uint8, or "
        f"{remedy}."
    )


def images_of(batch: Any) -> Any:
    """Returns the images of a batch, in any form that Keras passes on.

    Args:
        batch: images; a tuple of images, labels and weights; a dict of
            "image" (as of TensorFlow Datasets) or "images" (as of KerasCV) and
            labels; or any of them in a list of one. Tensors, arrays or specs.

    Returns:
        The images. A dict that has "keys" is of a view cache, and stays.

    Raises:
        ValueError: if a dict has no images, or the images have several sizes.
    """
    images = keras.utils.unpack_x_y_sample_weight(batch)[0]
    if isinstance(images, (list, tuple)) and len(images) == 1:
        images = images[0]
    if isinstance(images, dict) and "keys" not in images:
        name = next((x for x in ("image", "images") if x in images), None)
        if name is None:
            raise ValueError(
                'Expected batches of images, (images, labels) or {"image": '
                f"images}}. Received: a dict of {', '.join(map(repr, images))}."
            )
        images = images[name]
    ragged = isinstance(images, (tf.RaggedTensor, tf.RaggedTensorSpec))
    if ragged or (isinstance(images, np.ndarray) and images.dtype == object):
        raise ValueError(
            "Expected a batch of images of one size [B, H, W, 3]. Received: "
            f"images of several sizes, {type(images).__name__} "
            f"{tuple(images.shape)}. Resize or crop each image before it "
            "enters a batch."
        )
    return images


class ImageModel(SteadyInput, keras.Model):
    """A keras.Model of images that checks their values at every way in.

    The check reads the first batch before any step: XLA drops assertions, and
    a step on wrong images could not be undone. Images in uint8 are not read.
    """

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        **kwargs,
    ):
        held_out = kwargs.get("validation_data")
        if held_out is not None:
            images, *rest = keras.utils.unpack_x_y_sample_weight(held_out)
            kwargs["validation_data"] = checked(images), *rest
        return super().fit(
            checked(x), y, batch_size, epochs, verbose, callbacks, **kwargs
        )

    def evaluate(self, x=None, *args, **kwargs):
        # `fit` evaluates after every epoch.
        if not kwargs.get("_use_cached_eval_dataset"):
            x = checked(x)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        return super().predict(checked(x), *args, **kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        return super().train_on_batch(checked(x, most=8), *args, **kwargs)

    def test_on_batch(self, x, *args, **kwargs):
        return super().test_on_batch(checked(x, most=8), *args, **kwargs)

    def predict_on_batch(self, x):
        return super().predict_on_batch(checked(x, most=8))


def checked(x: Any, most: int = 64) -> Any:
    """Checks the values of the first images that a keras.Model is given.

    Args:
        x: array, `tf.data.Dataset`, `keras.utils.PyDataset`, PyTorch
            DataLoader or generator of batches, see `images_of`. Not checked:
            `tf.distribute.DistributedDataset`.
        most: int, how many images to look at.

    Returns:
        `x`. Of a generator, one that gives the first batch again.

    Raises:
        ValueError: see `check_value_range` and `images_of`.
    """
    batch = x
    if isinstance(x, tf.data.Dataset):
        uint8 = _is_uint8(_first(images_of(x.element_spec)))
        batch = None if uint8 else next(iter(steady(x).take(1)), None)
    elif isinstance(x, keras.utils.PyDataset):
        batch = None if x.num_batches == 0 else x[0]
    elif isinstance(x, Iterator):
        batch = next(x, None)
        x = (each for each in itertools.chain([batch], x))
    elif isinstance(x, tf.distribute.DistributedDataset):
        batch = None
    elif isinstance(x, (list, tuple)) and len(x) != 1:
        raise ValueError(
            "Expected one array of images [N, H, W, 3]. Received: "
            f"{type(x).__name__} of {len(x)}. Join images by `np.stack`."
        )
    elif isinstance(x, Iterable) and not hasattr(images_of(x), "shape"):
        batch = next(iter(x), None)  # of a PyTorch DataLoader
    if batch is not None:
        images = _first(images_of(batch))
        if len(images.shape) >= 4:  # the step refuses fewer
            check_value_range(images[:most])
    return x


def _first(images):
    """Returns the tensor of images: crops may be a pair or in a dict."""
    if isinstance(images, dict):  # of a view cache
        images = images["images"]
    return tf.nest.flatten(images)[0]


def _is_uint8(images):
    dtype = getattr(images, "dtype", "float32")
    return keras.backend.standardize_dtype(dtype) == "uint8"
