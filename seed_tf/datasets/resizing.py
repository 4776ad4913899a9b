"""PIL's antialiased bilinear resizing, bit for bit, in TensorFlow's operators.

Only the pixels that the result needs are read: an image may be a million times
as high as wide.
"""

from __future__ import annotations

from typing import TypeAlias

import PIL
import tensorflow as tf

# From this version on, PIL resizes along the height first if the height loses
# more than twice as many pixels as the width.
_TALL_BY_HEIGHT = int(PIL.__version__.split(".")[0]) >= 13
_BITS = 22  # bits of a fraction in PIL's fixed-point weights

_Bool: TypeAlias = bool | tf.Tensor


def square(
    image: tf.Tensor,
    size: int,
    shorter: int,
    turns: tuple[_Bool, _Bool, _Bool] = (False, False, False),
) -> tf.Tensor:
    """Resizes an image like PIL, and crops the central square.

    Args:
        image: uint8 `[H, W, 3]`, as stored.
        size: S.
        shorter: length of the shorter side before the crop, at least S.
        turns: the steps that set the image upright, in this order: whether to
            transpose, to mirror top to bottom, to mirror left to right.

    Returns:
        uint8 `[S, S, 3]`, upright.
    """
    transposed, top_down, left_right = turns
    stored = tf.shape(image, tf.int64)[:2]
    upright = tf.where(transposed, _reversed(stored), stored)
    sides = upright * shorter // tf.reduce_min(upright)
    # Round half to even, like Python.
    start = tf.cast(tf.round((sides - size) / 2), tf.int64)
    # PIL resizes the image as stored: turn start and sides accordingly.
    mirrored = tf.stack([top_down, left_right])
    start = tf.where(mirrored, sides - size - start, start)
    sides = tf.where(transposed, _reversed(sides), sides)
    start = tf.where(transposed, _reversed(start), start)
    rows = _Taps(stored[0], sides[0], start[0], size)
    columns = _Taps(stored[1], sides[1], start[1], size)
    # Cut first: an image may be a million times as high as wide.
    image = image[rows.first : rows.last, columns.first : columns.last]
    # Each pass rounds, so the order matters.
    less = stored - sides
    image = tf.cond(
        _TALL_BY_HEIGHT and (less[0] > tf.maximum(2 * less[1], 0)),
        lambda: columns.across(rows.along(image)),
        lambda: rows.along(columns.across(image)),
    )
    image = tf.where(transposed, tf.transpose(image, [1, 0, 2]), image)
    image = tf.where(top_down, _reversed(image), image)
    return tf.where(left_right, _reversed(image, 1), image)


def _reversed(values, axis=0):
    # `values[::-1]` keeps TensorFlow from optimising the whole graph.
    return tf.reverse(values, [axis])


class _Taps:
    """PIL's antialiased bilinear filter along one axis.

    Holds the inputs and integer weights of `count` outputs from `start` on,
    when `length` inputs become `resized` outputs.

    Attributes:
        first, last: int64 scalars, the range of necessary inputs.
    """

    def __init__(self, length, resized, start, count):
        scale = tf.cast(length, tf.float64) / tf.cast(resized, tf.float64)
        support = tf.maximum(scale, 1)
        outputs = tf.cast(start + tf.range(count, dtype=tf.int64), tf.float64)
        centre = (outputs + 0.5) * scale
        low = tf.maximum(tf.cast(centre - support + 0.5, tf.int64), 0)
        high = tf.minimum(tf.cast(centre + support + 0.5, tf.int64), length)
        taps = 2 * tf.cast(tf.math.ceil(support), tf.int64) + 1
        inputs = low[:, None] + tf.range(taps)
        away = tf.cast(inputs, tf.float64) - centre[:, None] + 0.5
        weights = tf.maximum(1 - tf.abs(away * (1 / support)), 0)
        weights = tf.where(inputs < high[:, None], weights, 0)
        weights /= tf.reduce_sum(weights, 1, keepdims=True)
        self.first, self.last = low[0], high[-1]
        self._weights = tf.cast(weights * 2**_BITS + 0.5, tf.int32)
        self._inputs = tf.minimum(inputs, high[:, None] - 1) - self.first

    def across(self, pixels):
        """Filters uint8 `[n, last - first, 3]` along its second axis."""
        turned = self.along(tf.transpose(pixels, [1, 0, 2]))
        return tf.transpose(turned, [1, 0, 2])

    def along(self, pixels):
        """Filters uint8 `[last - first, n, 3]` along its first axis."""

        def add(tap, total):
            taken = tf.cast(tf.gather(pixels, self._inputs[:, tap]), tf.int32)
            return tap + 1, total + taken * self._weights[:, tap, None, None]

        count, taps = tf.unstack(tf.shape(self._inputs))
        shape = [count, tf.shape(pixels)[1], 3]
        half = tf.fill(shape, 2 ** (_BITS - 1))
        _, total = tf.while_loop(
            lambda tap, _: tap < taps,
            add,
            (0, half),
            parallel_iterations=1,
        )
        return tf.cast(tf.bitwise.right_shift(total, _BITS), tf.uint8)
