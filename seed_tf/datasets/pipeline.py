"""From a sampler and a source to batches of images.

Every row of a batch stays where the sampler puts it, also if there is no image
for it, or a bad one. So what a batch holds never depends on the batches before.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from seed_tf import random
from seed_tf.datasets.decoding import EncodedImage

# AutoGraph reads and rewrites the source of all that a map calls, which takes
# half a second of every start, and finds nothing to do.
_plain = tf.autograph.experimental.do_not_convert


class Decoder(NamedTuple):
    """What is made of an image file.

    Attributes:
        draws: function of a step, and of what goes along with the images, to
            a tuple of float32 `[b, ...]`, random numbers for each image of
            the worker's rows.
        decode: Python function of a file's bytes and one image's random
            numbers to a list of uint8 arrays.
        shapes: list of their shapes.
    """

    draws: Callable
    decode: Callable
    shapes: list


def squares(size, shorter):
    """The `Decoder` of whole images, resized and cut to a square."""
    return Decoder(
        draws=lambda step, along: (),
        decode=lambda data: [EncodedImage(data).square(size, shorter)],
        shapes=[(size, size, 3)],
    )


def crops(views, keys, num_views):
    """The `Decoder` of the crops that `views` begin with.

    Args:
        views: `View`, `MultiCrop` or anything.
        keys: function of a step, and of what goes along with the images, to
            uint32 `[b, g, n, 2]`, keys of g times n views of each image; n of
            them are decoded together, from what all of them need.
        num_views: int, g times n.

    Returns:
        `Decoder`, or None if the views do not begin with a crop.
    """
    layers = getattr(views, "crops", [])
    if not layers:
        return None

    def draws(step, along):
        # Of each layer `[b, g, n, count, numbers]`.
        return tuple(views.crop_draws(keys(step, along)))

    def decode(data, *uniforms):
        image = EncodedImage(data)
        height, width = np.float32(image.height), np.float32(image.width)
        groups = [
            image.crops(
                [
                    (
                        layer.boxes(np.concatenate(x), height, width),
                        layer.size,
                    )
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


def in_memory(arrays, sampler, accompany=None):
    """Batches of (images, labels) from arrays `[N, S, S, 3]` and `[N]`.

    Args:
        arrays: pair of arrays.
        sampler: `Sampler`.
        accompany: as of `decoded`.
    """
    images, labels = (tf.constant(array) for array in arrays)

    @_plain
    def batch(step):
        index = sampler.indices(step)
        if not sampler.drop_remainder:
            index = index[sampler.places(step) < sampler.size]
        along = accompany(step, index)[0] if accompany else {}
        return _with(along, tf.gather(images, index)), tf.gather(labels, index)

    return sampler.steps.map(batch, tf.data.AUTOTUNE)


def decoded(source, sampler, decoder, corrupt, accompany=None):
    """Batches of (images, labels) from files; images as `load` describes.

    Bad rows are left out of the batch or, with `sampler.drop_remainder`, give
    way to the next good row.

    Args:
        source: `Source`.
        sampler: `Sampler`.
        decoder: `Decoder`.
        corrupt: `CorruptFiles` to report to.
        accompany: None, or a function of a step and its images' numbers
            `[b]` to what goes along with the images, a dict of tensors with
            a row for each, and to bool `[b]`, False for rows to be replaced
            like bad ones. The images become one of the dict, "images".
    """
    blank = [np.zeros(shape, np.uint8) for shape in decoder.shapes]

    first, end = sampler.rows

    def read(present, record, draws):
        try:
            if present:
                data, label = source.fetch(*record)
                return *decoder.decode(data, *draws), label, True
        except Exception as error:  # of any kind: the data are damaged
            corrupt.add(source.name(*record), _reason(error))
        return *blank, np.int64(-1), False

    @_plain
    def read_row(present, record, draws, along):
        inputs = (present, record, draws)
        *images, label, good = tf.numpy_function(
            lambda *flat: read(*tf.nest.pack_sequence_as(inputs, flat)),
            tf.nest.flatten(inputs),
            [tf.uint8] * len(blank) + [tf.int64, tf.bool],
            # It may be called again: the same file is counted once.
            stateful=False,
        )
        for image, shape in zip(images, decoder.shapes, strict=True):
            image.set_shape(shape)
        label.set_shape([])
        good.set_shape([])
        return (tuple(images), label, along), good

    @_plain
    def only_good(rows, good):
        def chosen():
            index = tf.where(good)[:, 0]
            checks = [_check(corrupt.verdict)]
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
    batches = batches.map(place, tf.data.AUTOTUNE)
    images = batches.unbatch().map(read_row, tf.data.AUTOTUNE)
    batches = images.batch(end - first, drop_remainder=True).map(only_good)
    batches = batches.map(element)
    return batches


def live_keys(seed, rows, num_views):
    """The keys that a step draws by itself, for `crops`.

    Args:
        seed: int, of the views.
        rows: pair of ints, this worker's rows of the global batch.
        num_views: int, views of each image, decoded together.
    """

    def keys(step, along):
        start, end = rows
        seeds = random.image_seeds(seed, step, end - start, start)
        return random.view_keys(seeds[:, None, None], tf.range(num_views))

    return keys


def given_keys(step, along):
    """Keys that go along with the images, `[b, 2]` or `[b, V, 2]`, for `crops`.

    Each view is decoded by itself, and so the same whichever others are.
    """
    keys = along["keys"]
    if keys.shape.rank == 2:
        keys = keys[:, None]
    return random.view_keys(keys)[:, :, None]


def _with(along, images):
    return {"images": images, **along} if along else images


def _check(verdict):
    """Fails, without a traceback, with what a Python function says."""
    message = tf.numpy_function(verdict, [], tf.string)
    return tf.debugging.Assert(tf.equal(message, ""), [message])


def _reason(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removesuffix(".")
