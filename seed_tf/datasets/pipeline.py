"""Turns a sampler and a source into batches of images.

Batches are independent of each other: the sampler alone decides the rows of a
batch, and an unreadable image moves no image to another batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from seed_tf import random
from seed_tf.datasets.decoding import EncodedImage
from seed_tf.datasets.python_functions import PythonFunctions
from seed_tf.io.pipelines import ALL_CORES, BATCHES_AHEAD

if TYPE_CHECKING:
    from seed_tf.datasets.corrupt import CorruptFiles
    from seed_tf.datasets.sampler import Sampler
    from seed_tf.datasets.sources import Source

# From a step and its image numbers to accompanying tensors, and bool `[b]`.
Accompany = Callable[
    [tf.Tensor, tf.Tensor], tuple[dict[str, tf.Tensor], tf.Tensor]
]

# AutoGraph would rewrite every function that a map calls. These functions do
# not need it, and it costs half a second at each start.
_plain = tf.autograph.experimental.do_not_convert


class Decoder(NamedTuple):
    """How to turn an image file into arrays.

    Attributes:
        draws: function that takes a step and the dict of tensors that
            accompany its images; it returns a tuple of float32 `[b, ...]`,
            random numbers for each image of the worker's rows.
        decode: Python function that takes a file's bytes and one image's
            random numbers; it returns a list of uint8 arrays.
        shapes: list of the arrays' shapes.
    """

    draws: Callable[[tf.Tensor, dict[str, tf.Tensor]], tuple[tf.Tensor, ...]]
    decode: Callable[..., list[np.ndarray]]
    shapes: Sequence[tuple[int, ...]]


def squares(size: int, shorter: int) -> Decoder:
    """Returns the decoder of central squares, see `EncodedImage.square`."""
    return Decoder(
        draws=lambda step, along: (),
        decode=lambda data: [EncodedImage(data).square(size, shorter)],
        shapes=[(size, size, 3)],
    )


def crops(
    views: Any,
    keys: Callable[[tf.Tensor, dict[str, tf.Tensor]], tf.Tensor],
    num_views: int,
) -> Decoder | None:
    """Returns the decoder of random crops, the first layers of `views`.

    Args:
        views: `View`, `MultiCrop` or another function of images.
        keys: function that takes a step and the dict of tensors that accompany
            its images; it returns uint32 `[b, g, n, 2]`, the keys of g groups
            of n views of each image. A group is decoded together.
        num_views: int, g times n.

    Returns:
        `Decoder`, or None if `views` does not begin with a crop.
    """
    layers = getattr(views, "crops", [])
    if not layers:
        return None

    def draws(step, along):
        # One tensor `[b, g, n, count, numbers]` for each layer.
        return tuple(views.crop_draws(keys(step, along)))

    def decode(data, *uniforms):
        image = EncodedImage(data)
        height, width = np.float32(image.height), np.float32(image.width)
        groups = [
            image.crops(
                [
                    (layer.boxes(np.concatenate(x), height, width), layer.size)
                    for (layer, _), x in zip(layers, group, strict=True)
                ]
            )
            for group in zip(*uniforms, strict=True)
        ]
        return [np.concatenate(x) for x in zip(*groups, strict=True)]

    shapes = [
        (num_views * count, layer.size, layer.size, 3)
        for layer, count in layers
    ]
    return Decoder(draws, decode, shapes)


def in_memory(
    arrays: tuple[np.ndarray, np.ndarray],
    sampler: Sampler,
    accompany: Accompany | None = None,
) -> tf.data.Dataset:
    """Returns batches (images, labels) of arrays.

    Args:
        arrays: pair of images `[N, S, S, 3]` and labels `[N]`.
        sampler: `Sampler`.
        accompany: see `decoded`.
    """
    images, labels = (tf.constant(array) for array in arrays)

    @_plain
    def batch(step):
        index = sampler.indices(step)
        if not sampler.drop_remainder:
            index = index[sampler.places(step) < sampler.size]
        along = accompany(step, index)[0] if accompany else {}
        return _with(along, tf.gather(images, index)), tf.gather(labels, index)

    return sampler.steps.map(batch, BATCHES_AHEAD)


def decoded(
    source: Source,
    sampler: Sampler,
    decoder: Decoder,
    corrupt: CorruptFiles,
    accompany: Accompany | None = None,
) -> tf.data.Dataset:
    """Returns batches (images, labels) of files; see `load` for the images.

    An unreadable image is dropped from its batch or, with
    `sampler.drop_remainder`, replaced by the next readable image of the batch.

    Args:
        source: `Source`.
        sampler: `Sampler`.
        decoder: `Decoder`.
        corrupt: `CorruptFiles`, which collects the unreadable images.
        accompany: function that takes a step and the numbers `[b]` of its
            images; it returns a dict of tensors with a row per image, and bool
            `[b]`, False for images to replace like unreadable images. The
            batch is then this dict, with the images as "images". None for
            images alone.
    """
    blank = [np.zeros(shape, np.uint8) for shape in decoder.shapes]
    functions = PythonFunctions()
    first, end = sampler.rows

    def read(present, record, draws):
        try:
            if present:
                data, label = source.fetch(*record)
                return *decoder.decode(data, *draws), label, True
        except Exception as error:  # decoders raise any kind
            corrupt.add(source.name(*record), _reason(error))
        return *blank, np.int64(-1), False

    @_plain
    def read_row(present, record, draws, along):
        inputs = (present, record, draws)
        # A repeated call does no harm: each file is counted once.
        *images, label, good = functions.call(
            lambda *flat: read(*tf.nest.pack_sequence_as(inputs, flat)),
            tf.nest.flatten(inputs),
            [tf.uint8] * len(blank) + [tf.int64, tf.bool],
        )
        for image, shape in zip(images, decoder.shapes, strict=True):
            image.set_shape(shape)
        label.set_shape([])
        good.set_shape([])
        return (tuple(images), label, along), good

    def check(message):
        return tf.debugging.Assert(tf.equal(message, ""), [message])

    @_plain
    def only_good(rows, good):
        def chosen():
            index = tf.where(good)[:, 0]
            # The call must come after those of `read`, whose results it needs.
            verdict = functions.call(
                lambda _: corrupt.verdict(), [good], tf.string
            )
            checks = [check(verdict)]
            if sampler.drop_remainder:
                message = "No image of a batch can be read, see the log."
                checks.append(
                    tf.debugging.Assert(tf.size(index) > 0, [message])
                )
            with tf.control_dependencies(checks):
                if sampler.drop_remainder:
                    places = tf.range(end - first, dtype=index.dtype)
                    after = tf.searchsorted(index, places)
                    index = tf.gather(index, after % tf.size(index))
                return tf.nest.map_structure(
                    lambda x: tf.gather(x, index), rows
                )

        return tf.cond(tf.reduce_all(good), lambda: rows, chosen)

    @_plain
    def place(step, record):
        present, along = sampler.places(step) < sampler.size, {}
        if accompany:
            along, known = accompany(step, record[0])
            present &= known
        return present, record, decoder.draws(step, along), along

    @_plain
    def element(images, labels, along):
        images = images[0] if len(images) == 1 else images
        return _with(along, images), labels

    batches = tf.data.Dataset.zip(sampler.steps, source.records(sampler))
    batches = batches.map(place, BATCHES_AHEAD)
    images = batches.unbatch().map(read_row, ALL_CORES)
    batches = images.batch(end - first, drop_remainder=True)
    return functions.kept_by(batches.map(only_good).map(element))


def live_keys(
    seed: int, rows: tuple[int, int], num_views: int
) -> Callable[[tf.Tensor, dict[str, tf.Tensor]], tf.Tensor]:
    """Returns a function for `crops` whose keys derive from seed and step.

    Args:
        seed: seed of the views.
        rows: this worker's rows of the global batch.
        num_views: number of views of an image, decoded together.
    """

    def keys(step, along):
        start, end = rows
        seeds = random.image_seeds(seed, step, end - start, start)
        return random.view_keys(seeds[:, None, None], tf.range(num_views))

    return keys


def given_keys(step: tf.Tensor, along: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns keys for `crops` from "keys", `[b, 2]` or `[b, V, 2]`.

    Each view is decoded by itself, so it does not depend on the other views.
    """
    keys = along["keys"]
    if keys.shape.rank == 2:
        keys = keys[:, None]
    return random.view_keys(keys)[:, :, None]


def _with(along, images):
    return {"images": images, **along} if along else images


def _reason(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removesuffix(".")
