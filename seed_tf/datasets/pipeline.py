"""From an order and a source to batches of images.

Every row of a batch stays where the order puts it, also if there is no image
for it, or a bad one. So what a batch holds never depends on the batches before.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from seed_tf import stateless
from seed_tf.datasets.decoding import EncodedImage


class Decoder(NamedTuple):
    """What is made of an image file.

    Attributes:
        draws: function of a step to a tuple of float32 `[b, ...]`, random
            numbers for each image of the worker's rows.
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
        draws=lambda step: (),
        decode=lambda data: [EncodedImage(data).square(size, shorter)],
        shapes=[(size, size, 3)],
    )


def crops(views, num_views, seed, rows):
    """The `Decoder` of the crops that `views` begin with.

    Args:
        views: `View`, `MultiCrop` or anything.
        num_views: int, views of each image.
        seed: int, of the views.
        rows: pair of ints, this worker's rows of the global batch.

    Returns:
        `Decoder`, or None if the views do not begin with a crop.
    """
    layers = getattr(views, "crops", [])
    if not layers:
        return None

    def draws(step):
        start, end = rows
        seeds = stateless.image_seeds(seed, step, end - start, start)
        streams = [
            views.crop_draws(stateless.fold_in(seeds, stream))
            for stream in range(num_views)
        ]
        return tuple(tf.concat(x, 1) for x in zip(*streams, strict=True))

    def decode(data, *uniforms):
        image = EncodedImage(data)
        height, width = np.float32(image.height), np.float32(image.width)
        return image.crops(
            [
                (layer.boxes(x, height, width), layer.size)
                for (layer, _), x in zip(layers, uniforms, strict=True)
            ]
        )

    shapes = [
        (num_views * count, layer.size, layer.size, 3)
        for layer, count in layers
    ]
    return Decoder(draws, decode, shapes)


def in_memory(arrays, order):
    """Batches of (images, labels) from arrays `[N, S, S, 3]` and `[N]`."""
    arrays = [tf.constant(array) for array in arrays]

    def batch(step):
        index = order.indices(step)
        if not order.drop_remainder:
            index = index[order.places(step) < order.size]
        return tuple(tf.gather(array, index) for array in arrays)

    return order.steps.map(batch, tf.data.AUTOTUNE)


def decoded(source, order, decoder, corrupt):
    """Batches of (images, labels) from files; images as `load` describes.

    Bad rows are left out of the batch or, with `order.drop_remainder`, give
    way to the next good row.
    """
    blank = [np.zeros(shape, np.uint8) for shape in decoder.shapes]

    first, end = order.rows

    def read(present, record, draws):
        try:
            if present:
                data, label = source.fetch(*record)
                return *decoder.decode(data, *draws), label, True
        except Exception as error:  # of any kind: the data are damaged
            corrupt.add(source.name(*record), _reason(error))
        return *blank, np.int64(-1), False

    def read_row(present, record, draws):
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
        return tuple(images), label, good

    def only_good(images, labels, good):
        def chosen():
            index = tf.where(good)[:, 0]
            checks = [_check(corrupt.verdict)]
            if order.drop_remainder:
                message = "No image of a batch can be read, see the log."
                checks.append(
                    tf.debugging.Assert(tf.size(index) > 0, [message])
                )
            with tf.control_dependencies(checks):
                if order.drop_remainder:
                    rows = tf.range(end - first, dtype=index.dtype)
                    after = tf.searchsorted(index, rows)
                    index = tf.gather(index, after % tf.size(index))
                return tf.nest.map_structure(
                    lambda x: tf.gather(x, index), (images, labels)
                )

        return tf.cond(tf.reduce_all(good), lambda: (images, labels), chosen)

    def rows(step):
        return order.places(step) < order.size, decoder.draws(step)

    places = order.steps.map(rows, tf.data.AUTOTUNE)
    batches = tf.data.Dataset.zip(places, source.records(order))
    batches = batches.map(lambda place, record: (place[0], record, place[1]))
    images = batches.unbatch().map(read_row, tf.data.AUTOTUNE)
    batches = images.batch(end - first, drop_remainder=True).map(only_good)
    if len(blank) == 1:
        batches = batches.map(lambda images, labels: (images[0], labels))
    return batches


def _check(verdict):
    """Fails, without a traceback, with what a Python function says."""
    message = tf.numpy_function(verdict, [], tf.string)
    return tf.debugging.Assert(tf.equal(message, ""), [message])


def _reason(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removesuffix(".")
