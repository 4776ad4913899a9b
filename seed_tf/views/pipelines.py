"""The paper's pipelines of augmentations, one for each teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import keras
import tensorflow as tf

from seed_tf import random
from seed_tf.acceleration import hardware
from seed_tf.arguments import integer
from seed_tf.views.layers import (
    ColorJitter,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    SeededAugmentation,
)

_CACHE = 10_000_000  # bytes of images in float32


@keras.saving.register_keras_serializable(package="seed_tf")
class View(keras.layers.Layer):
    """One random view of each image, by a sequence of augmentation layers.

    The input is images `[B, H, W, 3]`, uint8 or float in [0, 255], or a single
    image `[H, W, 3]`. The result is float32 `[B, S, S, 3]` or `[S, S, 3]` in
    the same range. A view runs eagerly, in `tf.data`, and compiled inside a
    training step, also by XLA.

    With `seeds`, uint32 `[B, 2]` (`[2]` for a single image), a view is a
    function of the image and its key, from which each layer derives its
    randomness. Without seeds every call draws new numbers. Layers of KerasCV
    and Keras may take part; their own randomness does not follow the seeds.

    Args:
        layers: list of augmentation layers, in order.

    Example:

    >>> view = View([RandomResizedCrop(96), RandomHorizontalFlip()])
    >>> images = tf.zeros([8, 128, 128, 3], tf.uint8)
    >>> keys = seed_tf.random.image_seeds(seed=0, step=3, batch_size=8)
    >>> seeds = seed_tf.random.view_keys(keys)
    >>> view(images, seeds=seeds).shape
    TensorShape([8, 96, 96, 3])

    In an input pipeline, over single images:

    >>> dataset = dataset.map(view, num_parallel_calls=tf.data.AUTOTUNE)

    If the first layer is a `RandomResizedCrop`, images can be cropped where
    files are decoded, by the numbers of `crop_draws`. A call with
    `cropped=True` then takes the crops and skips the first layer.
    """

    def __init__(
        self,
        layers: Iterable[keras.layers.Layer],
        dtype: str = "float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.layers = list(layers)
        self.built = True

    @property
    def crops(self) -> list[tuple[RandomResizedCrop, int]]:
        """The crop, as a list of one pair: the first layer and the number 1.

        Empty if the first layer is not a `RandomResizedCrop`.
        """
        first = self.layers[0] if self.layers else None
        return [(first, 1)] if isinstance(first, RandomResizedCrop) else []

    def crop_draws(self, seeds: tf.Tensor) -> list[tf.Tensor]:
        """Returns the random numbers by which images are cropped.

        Args:
            seeds: uint32 `[..., 2]`, the seeds of the call.

        Returns:
            for each of `crops` float32 `[..., count, num_uniforms]`, the
            numbers that `RandomResizedCrop.boxes` takes.
        """
        seeds = random.fold_in(seeds[..., None, :], 0)
        return [random.uniform(seeds, x.num_uniforms) for x, _ in self.crops]

    def call(
        self,
        images: tf.Tensor,
        seeds: tf.Tensor | None = None,
        cropped: bool = False,
    ) -> tf.Tensor:
        images = tf.convert_to_tensor(images)
        single = images.shape.rank == 3
        if single:
            images = images[None]
            seeds = None if seeds is None else seeds[None]
        if seeds is not None and (block := self._images_in_cache(images)):
            images, seeds = (
                tf.reshape(x, (-1, block, *x.shape[1:]))
                for x in (images, seeds)
            )
            blocks = tf.map_fn(
                lambda x: self._see(x[0], x[1], cropped),
                (images, seeds),
                fn_output_signature=tf.float32,
                parallel_iterations=1,
            )
            return tf.reshape(blocks, (-1, *blocks.shape[2:]))
        images = self._see(images, seeds, cropped)
        return images[0] if single else images

    def _see(self, images, seeds, cropped):
        if seeds is not None:
            places = tf.range(len(self.layers))[:, None]
            seeds = random.fold_in(seeds, places)
        for i, layer in enumerate(self.layers):
            if i == 0 and cropped:
                continue
            if seeds is not None and isinstance(layer, SeededAugmentation):
                images = layer({"images": images, "seeds": seeds[i]})["images"]
            else:
                images = layer(images)
        return tf.cast(images, self.compute_dtype)

    def _images_in_cache(self, images):
        """Returns how many images to process at a time, None for all.

        About a hundred operations read and write all of these images, which is
        fast while the images fit into the processor's cache.
        """
        batch, *shape = images.shape
        if None in (batch, *shape) or hardware.current().accelerated:
            return None
        most = min(_CACHE // (4 * math.prod(shape)), batch)
        block = next(n for n in range(max(most, 1), 0, -1) if batch % n == 0)
        # Not one image at a time: `operators.skippable` would branch.
        return block if 1 < block < batch else None

    def get_config(self):
        layers = [keras.saving.serialize_keras_object(x) for x in self.layers]
        return {**super().get_config(), "layers": layers}

    @classmethod
    def from_config(cls, config):
        layers = map(keras.saving.deserialize_keras_object, config["layers"])
        return cls(**{**config, "layers": list(layers)})


@keras.saving.register_keras_serializable(package="seed_tf")
class MultiCrop(keras.layers.Layer):
    """One large view and several small views of each image.

    The input is a batch of images, with or without `seeds`, as for `View`. The
    result is a pair: the large views `[B, S, S, 3]`, and the small views
    `[num_small * B, s, s, 3]`, whose first B rows are the first small view of
    every image. All views are independent.

    Args:
        global_view: View, or a callable like it, for the large view.
        small_view: View, or a callable like it, for the small views.
        num_small: positive int.

    Raises:
        ValueError: if `num_small` is not positive, or the input is not a
            batch.
    """

    def __init__(
        self,
        global_view: Callable,
        small_view: Callable,
        num_small: int = 6,
        dtype: str = "float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.global_view, self.small_view = global_view, small_view
        self.num_small = integer("num_small", num_small)
        self.built = True

    @property
    def crops(self) -> list[tuple[RandomResizedCrop, int]]:
        """The crops, as pairs of a layer and its number of crops per image.

        Empty if a view does not begin with a `RandomResizedCrop`.
        """
        crops = [
            (layer, count)
            for view, count in self._views
            for layer, _ in getattr(view, "crops", [])
        ]
        return crops if len(crops) == len(self._views) else []

    def crop_draws(self, seeds: tf.Tensor) -> list[tf.Tensor]:
        """Returns the numbers by which to crop, see `View.crop_draws`."""
        keys = random.fold_in(seeds[..., None, :], tf.range(1 + self.num_small))
        keys = tf.split(keys, [count for _, count in self._views], axis=-2)
        return [
            view.crop_draws(key)[0][..., 0, :]
            for (view, _), key in zip(self._views, keys, strict=True)
        ]

    @property
    def _views(self):
        return [(self.global_view, 1), (self.small_view, self.num_small)]

    def call(
        self,
        images: tf.Tensor | Sequence[tf.Tensor],
        seeds: tf.Tensor | None = None,
        cropped: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if cropped:
            large, small = (tf.convert_to_tensor(crops) for crops in images)
            large, small = large[:, 0], tf.transpose(small, [1, 0, 2, 3, 4])
        else:
            large = tf.convert_to_tensor(images)
            if large.shape.rank != 4:
                raise ValueError(
                    "Expected a batch of images [B, H, W, 3]. "
                    f"Received: shape {large.shape}."
                )
        keys = tf.range(1 + self.num_small)[:, None]
        if seeds is not None:
            keys = random.fold_in(seeds, keys)

        def see(view, images, key):
            options = {"cropped": True} if cropped else {}
            if seeds is not None:
                options["seeds"] = key
            return view(images, **options)

        # One small view after the other: the images need not be repeated.
        small = tf.map_fn(
            (lambda pair: see(self.small_view, *pair))
            if cropped
            else (lambda key: see(self.small_view, large, key)),
            (small, keys[1:]) if cropped else keys[1:],
            fn_output_signature=tf.float32,
        )
        large = see(self.global_view, large, keys[0])
        return large, tf.reshape(small, [-1, *small.shape[2:]])

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "global_view": serialize(self.global_view),
            "small_view": serialize(self.small_view),
            "num_small": self.num_small,
        }

    @classmethod
    def from_config(cls, config):
        revive = keras.saving.deserialize_keras_object
        views = {k: revive(config[k]) for k in ("global_view", "small_view")}
        return cls(**{**config, **views})


def multi_crop(
    global_view: Callable, small_view: Callable, num_small: int = 6
) -> MultiCrop:
    """Returns a large view and small patches of each image, see `MultiCrop`.

    Source: the paper's small patches, after Caron et al., arXiv 2006.09882
    (SwAV).

    Example:

    >>> views = multi_crop(swav(224), small_patches(96))
    >>> large, small = views(images, seeds=seeds)
    """
    return MultiCrop(global_view, small_view, num_small)


def moco_v1(
    size: int = 224, *, scale: Sequence[float] = (0.2, 1.0), flip: bool = True
) -> View:
    """Returns the views of MoCo v1: crop, grey, colour jitter, flip.

    Args:
        size: positive int, S.
        scale: pair of floats, range of the area of the crop relative to the
            image's.
        flip: bool, whether half of the views are mirrored. Pass False for
            images that change their meaning when mirrored, such as digits.

    Returns:
        View, uint8 or float `[B, H, W, 3]` -> float32 `[B, S, S, 3]`, both in
        [0, 255].

    Source: He et al., arXiv 1911.05722.
    """
    return View(
        [
            RandomResizedCrop(size, scale),
            RandomGrayscale(p=0.2),
            ColorJitter(0.4, 0.4, 0.4, 0.4),
            *_flips(flip),
        ]
    )


def moco_v2(
    size: int = 224, *, scale: Sequence[float] = (0.2, 1.0), flip: bool = True
) -> View:
    """Returns the views of MoCo v2: crop, colour jitter, grey, blur, flip.

    Arguments and result are those of `moco_v1`.

    Source: Chen et al., arXiv 2003.04297.
    """
    return View(
        [
            RandomResizedCrop(size, scale),
            ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            RandomGrayscale(p=0.2),
            RandomGaussianBlur(sigma=(0.1, 2.0), p=0.5),
            *_flips(flip),
        ]
    )


def simclr(
    size: int = 224, *, scale: Sequence[float] = (0.2, 1.0), flip: bool = True
) -> View:
    """Returns the views for a SimCLR teacher, the same as `moco_v1`.

    This follows the authors' code. SimCLR itself has stronger views: area from
    0.08, jitter 0.8/0.8/0.8/0.2.

    Arguments and result are those of `moco_v1`.
    """
    return moco_v1(size, scale=scale, flip=flip)


def swav(
    size: int = 224, *, scale: Sequence[float] = (0.14, 1.0), flip: bool = True
) -> View:
    """Returns the views of a SwAV teacher: `moco_v2` with smaller crops.

    Arguments and result are those of `moco_v1`.

    Source: Caron et al., arXiv 2006.09882.
    """
    return moco_v2(size, scale=scale, flip=flip)


def small_patches(
    size: int = 96, *, scale: Sequence[float] = (0.05, 0.14), flip: bool = True
) -> View:
    """Returns small views for `multi_crop`: `swav` with much smaller crops.

    Arguments and result are those of `moco_v1`.
    """
    return swav(size, scale=scale, flip=flip)


def swav_small_patches(size: int = 224, *, flip: bool = True) -> MultiCrop:
    """Returns `swav` with six `small_patches`: 96 pixels for size 224."""
    return multi_crop(
        swav(size, flip=flip), small_patches(round(size * 96 / 224), flip=flip)
    )


def _flips(flip):
    return [RandomHorizontalFlip(p=0.5)] if flip else []
