"""The paper's augmentations as KerasCV layers, with torchvision's meaning.

KerasCV's own layers of these names draw from other distributions than the
torchvision transforms that the paper used: additive brightness, a saturation
that only desaturates, a fixed order of colour operations, crops without
antialiasing, and a blur that darkens the borders. And they cannot be repeated
from a seed. The layers of this module replace them. Images are float32 in
[0, 255]. They are clipped to that range where torchvision clips, and are not
rounded.
"""

from __future__ import annotations

import functools
import itertools
import math
import random as python_random
from collections.abc import Sequence
from typing import Any

import keras
import keras_cv
import numpy as np
import tensorflow as tf
from keras import ops

from seed_tf import random, resampling
from seed_tf.arguments import integer
from seed_tf.keras_internals import AugmentsBatches
from seed_tf.views import operators


class SeededAugmentation(
    AugmentsBatches, keras_cv.layers.VectorizedBaseImageAugmentationLayer
):
    """Base of augmentations that are functions of one key per image.

    The input is images, or a dict `{"images": ..., "labels": ...}` as in
    KerasCV, whose layers can be mixed with these. (In Keras the values of a
    dict must be all tensors or all arrays.) If the dict holds `"seeds"`, an
    image with the same seeds gets the same augmentation in every batch.
    Without seeds every call draws anew. Labels are returned as float32, as by
    KerasCV's layers, and other entries unchanged.

    A subclass sets `num_uniforms` and writes two methods: `transformations`,
    which turns uniform numbers into the parameters of the operator, and
    KerasCV's `augment_images(images, transformations)`.

    Args:
        seed: int or None, start of the random sequence for calls without
            seeds. None draws the start from Python's `random`, which
            `keras.utils.set_random_seed` sets.
        dtype: dtype of the result. Defaults to float32, also under a mixed
            precision policy: bfloat16 cannot hold the 8 bits of a colour.

    Input shapes: images `[B, H, W, 3]` or `[H, W, 3]`, uint8 or float in
    [0, 255]; seeds uint32 `[B, 2]` or `[2]`, see `random.view_keys`.
    """

    num_uniforms = 1

    def __init__(
        self, *, seed: int | None = None, dtype: str = "float32", **kwargs
    ):
        start = python_random.getrandbits(32) if seed is None else seed
        # KerasCV treats 0 as None, and then uses one global generator.
        super().__init__(seed=start or 2**32, dtype=dtype, **kwargs)
        self.seed = seed

    def transformations(self, uniforms: tf.Tensor, images: tf.Tensor) -> Any:
        """Returns parameters of the operator for each image.

        Args:
            uniforms: float32 `[B, num_uniforms]` in [0, 1).
            images: `[B, H, W, 3]`, whose size may matter.

        Returns:
            tensor, or dict of tensors, with first axis B.
        """
        raise NotImplementedError

    def get_random_transformation_batch(
        self, batch_size, images=None, seeds=None, **kwargs
    ):
        if seeds is None:
            # Not a Keras SeedGenerator, which gives the same seed twice in a
            # parallel `dataset.map`. This generator reads and skips at once.
            key = self._random_generator.uniform_full_int([2], tf.uint32)
            seeds = random.fold_in(key, tf.range(batch_size))
        uniforms = random.uniform(seeds, self.num_uniforms)
        return self.transformations(uniforms, images)

    def augment_batch(self, inputs):
        """As in KerasCV, and with the seeds of each image."""
        images = inputs["images"]
        if isinstance(images, tf.RaggedTensor) or images.shape[-1] != 3:
            raise ValueError(
                "Expected RGB images of one size, [B, H, W, 3] or [H, W, 3]. "
                f"Received: {type(images).__name__} of shape {images.shape}. "
                "Repeat a grey channel three times, and map images of "
                "different sizes one by one, before they are batched."
            )
        geometry = {"bounding_boxes", "keypoints", "segmentation_masks"}
        if geometry := geometry.intersection(inputs):
            raise ValueError(
                f"{type(self).__name__} augments images only. Leave out "
                f"{sorted(geometry)}."
            )
        transformations = self.get_random_transformation_batch(
            tf.shape(images)[0], images=images, seeds=inputs.get("seeds")
        )
        images = self.augment_images(images, transformations=transformations)
        return {**inputs, "images": images}

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="seed_tf")
class RandomResizedCrop(SeededAugmentation):
    """Crops a random area at a random aspect ratio and resizes it to a square.

    Ten crops are drawn: the area, relative to the image's, uniformly from
    `scale`, and the aspect ratio, in pixels, log-uniformly from `ratio`. The
    first crop that fits is put at a uniform position. If no crop fits, the
    result is the largest central crop of an allowed ratio. The resizing is
    bilinear and antialiased as in PIL and torchvision, and sees nothing outside
    of the crop. Two products with interpolation matrices compute it, which run
    on every compiler and accelerator.

    Args:
        size: positive int, S.
        scale: pair of floats, 0 < low <= high <= 1, range of the area relative
            to the image's.
        ratio: pair of positive floats, range of the width over the height.

    Output shape: `[B, S, S, 3]`.

    Raises:
        ValueError: if an argument is out of its range.

    Source: torchvision.transforms.RandomResizedCrop.

    Example:

    >>> crop = RandomResizedCrop(96, scale=(0.05, 0.14))
    >>> crop(tf.zeros([8, 224, 224, 3], tf.uint8)).shape
    TensorShape([8, 96, 96, 3])
    """

    attempts = 10
    num_uniforms = 2 * attempts + 2

    def __init__(
        self,
        size: int,
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_range("scale", scale, high=1)
        _check_range("ratio", ratio)
        self.size = integer("size", size)
        self.scale, self.ratio = tuple(scale), tuple(ratio)

    def boxes(
        self, uniforms: Any, height: Any, width: Any, numpy: Any = np
    ) -> Any:
        """Returns the crops as a function of uniform numbers.

        A training step and the decoding of a file, which runs without
        TensorFlow, compute the same crops.

        Args:
            uniforms: float32 `[n, num_uniforms]` in [0, 1).
            height: float32 scalar, of the image.
            width: float32 scalar.
            numpy: module that computes: NumPy or `keras.ops`.

        Returns:
            float32 `[n, 4]`, whole numbers: top, left, height, width.
        """
        areas, ratios = (
            uniforms[:, : self.attempts],
            uniforms[:, self.attempts : -2],
        )
        areas = height * width * _between(areas, *self.scale)
        ratios = numpy.exp(_between(ratios, *map(math.log, self.ratio)))
        sizes = numpy.round(
            numpy.stack(
                [numpy.sqrt(areas / ratios), numpy.sqrt(areas * ratios)], -1
            )
        )
        image = numpy.stack([height, width])
        fits = numpy.all((sizes > 0) & (sizes <= image), -1)
        found = numpy.any(fits, 1)[:, None]
        first = numpy.argmax(numpy.where(fits, 1, 0), 1)
        sizes = numpy.take_along_axis(sizes, first[:, None, None], 1)[:, 0]
        corners = numpy.floor(uniforms[:, -2:] * (image - sizes + 1))

        at_least, at_most = self.ratio
        largest = numpy.stack([width * (1 / at_least), height * at_most])
        largest = numpy.minimum(image, numpy.round(largest))
        corners = numpy.where(
            found, corners, numpy.floor((image - largest) / 2)
        )
        sizes = numpy.where(found, sizes, largest)
        return numpy.concatenate([corners, sizes], 1)

    def transformations(
        self, uniforms: tf.Tensor, images: tf.Tensor
    ) -> tf.Tensor:
        """Returns int32 `[B, 4]`: top, left, height, width, in pixels."""
        height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float32))
        return tf.cast(self.boxes(uniforms, height, width, ops), tf.int32)

    def augment_images(self, images, transformations, **kwargs):
        top, left, height, width = tf.unstack(
            tf.cast(transformations, tf.float32), axis=1
        )
        in_height, in_width = tf.shape(images)[1], tf.shape(images)[2]
        return resampling.separable(
            images,
            resampling.weights(top, height, in_height, self.size),
            resampling.weights(left, width, in_width, self.size),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "scale": self.scale,
            "ratio": self.ratio,
        }


def _slots(orders):
    """Returns the linear operation in each of six slots, for each order.

    Brightness, contrast and saturation are cheap, and linear except for the
    clipping. Hue is neither, and is computed once:

        slot 0, slot 1, slot 2, hue, slot 3, slot 4, slot 5

    An order puts its operations before hue into the first slots, and those
    after hue into the last. The other three slots stay empty.

    Returns:
        int32 `[len(orders) + 1, 6]`. The last row has empty slots only.
    """
    linear = {
        "brightness": operators.BRIGHTNESS,
        "contrast": operators.CONTRAST,
        "saturation": operators.SATURATION,
    }
    table = np.full([len(orders) + 1, 6], operators.NOTHING, np.int32)
    for row, order in zip(table, orders, strict=False):
        hue = order.index("hue")
        row[:hue] = [linear[name] for name in order[:hue]]
        row[3 + hue :] = [linear[name] for name in order[hue + 1 :]]
    return table


@keras.saving.register_keras_serializable(package="seed_tf")
class ColorJitter(SeededAugmentation):
    """Changes brightness, contrast, saturation and hue, in a random order.

    Brightness multiplies by its factor. Contrast blends with the mean of the
    grey image and saturation with the grey image: `factor * image +
    (1 - factor) * other`. Each is clipped to [0, 255]. A factor is drawn from
    U(max(0, 1 - x), 1 + x), where x is the argument. Hue is turned in HSV by
    U(-x, x) turns. Each image has one of the 24 orders, all equally likely.

    Args:
        brightness: non-negative float.
        contrast: non-negative float.
        saturation: non-negative float.
        hue: float in [0, 0.5].
        p: float in [0, 1], probability that an image is changed at all.

    Raises:
        ValueError: if an argument is out of its range.

    Source: torchvision.transforms.ColorJitter, in a RandomApply.
    """

    num_uniforms = 6
    names = ("brightness", "contrast", "saturation", "hue")
    orders = tuple(itertools.permutations(names))
    slots = _slots(orders)

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        p: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.strengths = {
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
        }
        for name, value in self.strengths.items():
            if not value >= 0:
                raise ValueError(
                    f"`{name}` must not be negative. Received: {name}={value}."
                )
        if not 0 <= hue <= 0.5:
            raise ValueError(
                f"`hue` must be in [0, 0.5] turns. Received: hue={hue}."
            )
        _check_probability(p)
        self.hue, self.p = hue, p

    def transformations(
        self, uniforms: tf.Tensor, images: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns the draws of each image.

        Returns:
            dict of "factors" float32 `[B, 3]` (brightness, contrast,
            saturation), "hue" float32 `[B]` in turns, and "order" int32 `[B]`,
            an index into `orders`, or 24 for an image that stays unchanged.
        """
        x = tf.constant(list(self.strengths.values()), tf.float32)
        factors = _between(uniforms[:, :3], tf.maximum(1 - x, 0), 1 + x)
        hue = _between(uniforms[:, 3], -self.hue, self.hue)
        order = tf.cast(uniforms[:, 4] * len(self.orders), tf.int32)
        drawn = uniforms[:, 5] < self.p
        return {
            "factors": factors,
            "hue": tf.where(drawn, hue, 0.0),
            "order": tf.where(drawn, order, len(self.orders)),
        }

    def augment_images(self, images, transformations, **kwargs):
        factors = transformations["factors"]
        turns = transformations["hue"]
        slots = tf.gather(self.slots, transformations["order"])
        for i, operation in enumerate(tf.unstack(slots, axis=1)):
            if i == 3:
                turn = functools.partial(operators.turn_hue, turns=turns)
                images = operators.where(turns != 0, turn, images)
            blend = functools.partial(
                operators.blend, operation=operation, factors=factors
            )
            drawn = operation != operators.NOTHING
            images = operators.skippable(drawn, blend, images)
        return images

    def get_config(self):
        return {
            **super().get_config(),
            **self.strengths,
            "hue": self.hue,
            "p": self.p,
        }


@keras.saving.register_keras_serializable(package="seed_tf")
class RandomGrayscale(SeededAugmentation):
    """Makes images grey, in three equal channels.

    `keras_cv.layers.Grayscale` computes the grey image.

    Args:
        p: float in [0, 1], probability that an image becomes grey.

    Raises:
        ValueError: if `p` is out of its range.

    Source: torchvision.transforms.RandomGrayscale.
    """

    def __init__(self, p: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        _check_probability(p)
        self.p = p
        # Any seed will do. Without a seed the layer asks for the global
        # generator, which deterministic TensorFlow refuses to create.
        grayscale = keras_cv.layers.Grayscale(output_channels=3, seed=1)
        self._grey = grayscale.augment_images

    def transformations(
        self, uniforms: tf.Tensor, images: tf.Tensor
    ) -> tf.Tensor:
        """Returns bool `[B]`, which images become grey."""
        return uniforms[:, 0] < self.p

    def augment_images(self, images, transformations, **kwargs):
        return operators.where(transformations, self._grey, images)

    def get_config(self):
        return {**super().get_config(), "p": self.p}


@keras.saving.register_keras_serializable(package="seed_tf")
class RandomGaussianBlur(SeededAugmentation):
    """Blurs with a Gaussian of random width, the same along both axes.

    The edges are extended as in MoCo's code. MoCo's code blurs by PIL, which
    approximates the Gaussian by three box blurs. This layer samples the
    Gaussian itself.

    Args:
        sigma: pair of floats, 0 < low <= high, range of the standard deviation
            in pixels, which is drawn uniformly.
        p: float in [0, 1], probability that an image is blurred.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Chen et al., arXiv 2003.04297 (MoCo v2), after SimCLR.
    """

    num_uniforms = 2

    def __init__(
        self, sigma: Sequence[float] = (0.1, 2.0), p: float = 0.5, **kwargs
    ):
        super().__init__(**kwargs)
        _check_range("sigma", sigma)
        _check_probability(p)
        self.sigma, self.p = tuple(sigma), p

    def transformations(
        self, uniforms: tf.Tensor, images: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns a dict of "sigma" float32 `[B]` and "drawn" bool `[B]`."""
        return {
            "sigma": _between(uniforms[:, 0], *self.sigma),
            "drawn": uniforms[:, 1] < self.p,
        }

    def augment_images(self, images, transformations, **kwargs):
        def blur(images):
            rows, columns = (
                operators.gaussian_weights(
                    transformations["sigma"], size, self.sigma[1]
                )
                for size in tf.unstack(tf.shape(images)[1:3])
            )
            return resampling.separable(images, rows, columns)

        return operators.where(transformations["drawn"], blur, images)

    def get_config(self):
        return {**super().get_config(), "sigma": self.sigma, "p": self.p}


@keras.saving.register_keras_serializable(package="seed_tf")
class RandomHorizontalFlip(SeededAugmentation):
    """Mirrors images left to right.

    Args:
        p: float in [0, 1], probability that an image is mirrored.

    Raises:
        ValueError: if `p` is out of its range.

    Source: torchvision.transforms.RandomHorizontalFlip.
    """

    def __init__(self, p: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        _check_probability(p)
        self.p = p

    def transformations(
        self, uniforms: tf.Tensor, images: tf.Tensor
    ) -> tf.Tensor:
        """Returns bool `[B]`, which images are mirrored."""
        return uniforms[:, 0] < self.p

    def augment_images(self, images, transformations, **kwargs):
        return operators.where(
            transformations, tf.image.flip_left_right, images
        )

    def get_config(self):
        return {**super().get_config(), "p": self.p}


def _between(uniforms, low, high):
    return low + (high - low) * uniforms


def _check_range(name, pair, high=math.inf):
    """Raises ValueError unless 0 < pair[0] <= pair[1] <= high."""
    try:
        valid = len(pair) == 2 and 0 < pair[0] <= pair[1] <= high
    except TypeError:
        valid = False
    if not valid:
        limit = "" if high == math.inf else f" <= {high}"
        raise ValueError(
            f"`{name}` must be a pair of numbers with 0 < low <= high{limit}. "
            f"Received: {name}={pair!r}."
        )


def _check_probability(p):
    if not 0 <= p <= 1:
        raise ValueError(f"`p` must be in [0, 1]. Received: p={p!r}.")
