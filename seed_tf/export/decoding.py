"""Image files to squares in a TensorFlow graph, bit for bit as in evaluation.

TensorFlow's operators do the work of `seed_tf.datasets.decoding`, so that a
server needs neither PIL nor Python. They read the header and the EXIF
orientation, and resample in PIL's fixed-point arithmetic. Only CMYK JPEG files
differ, by at most one grey level. A bad file does not affect the rest of the
batch.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import PIL
import tensorflow as tf

from seed_tf.datasets.decoding import MAX_PIXELS
from seed_tf.export.orientation import orientation

JPEG, PNG, WEBP = 0, 1, 2
_UNKNOWN = 3
_HEAD = 30  # bytes that hold the size of a PNG or WebP
# From this version on, PIL resizes along the height first if the height loses
# more than twice as many pixels as the width.
_TALL_BY_HEIGHT = int(PIL.__version__.split(".")[0]) >= 13
_BITS = 22  # bits of a fraction in PIL's fixed-point weights

_Bool: TypeAlias = bool | tf.Tensor


def decode(
    files: tf.Tensor, size: int, shorter: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes files to the same squares as `EncodedImage.square`.

    Args:
        files: string `[B]`, the bytes of JPEG, PNG or WebP images.
        size: S.
        shorter: length of the shorter side before the crop, at least S.

    Returns:
        Images uint8 `[B, S, S, 3]` and problems, string `[B]`. A good file has
        the problem "", a bad file a black image.
    """
    blank = tf.zeros([size, size, 3], tf.uint8)

    def row(data):
        # Only data sets catch errors in a graph: take the first attempt that
        # succeeds. WebP needs the right number of channels, 4 with alpha.
        attempts = tf.data.Dataset.from_tensor_slices([3, 4])
        attempts = attempts.map(
            lambda channels: _square_of_file(data, channels, size, shorter)
        )
        attempts = attempts.ignore_errors().concatenate(
            tf.data.Dataset.from_tensors((blank, "damaged or truncated"))
        )
        return attempts.take(1).get_single_element()

    rows = tf.data.Dataset.from_tensor_slices(files)
    rows = rows.map(row, tf.data.AUTOTUNE).batch(np.iinfo(np.int64).max)
    return rows.get_single_element()


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


def _square_of_file(data, webp_channels, size, shorter):
    """Returns uint8 `[S, S, 3]` and the problem of the file, "" if none."""
    content = tf.io.decode_raw(data, tf.uint8)
    kind = _kind(content)
    height, width = _sides(data, content, kind)
    pixels = tf.cast(height, tf.float64) * tf.cast(width, tf.float64)
    too_large = tf.strings.format(
        f"the header announces {{}} x {{}} pixels, more than {MAX_PIXELS:,}",
        (width, height),
    )
    problem = tf.case(
        [
            (tf.size(content) == 0, lambda: "empty"),
            (kind == _UNKNOWN, lambda: "not a JPEG, PNG or WebP image"),
            (
                (kind == WEBP) & _animated(content),
                lambda: "an animated WebP image",
            ),
            (pixels > MAX_PIXELS, lambda: too_large),
        ],
        default=lambda: "",
    )

    def decoded():
        image = tf.switch_case(
            kind,
            [
                lambda: tf.io.decode_jpeg(
                    data, channels=3, dct_method="INTEGER_ACCURATE"
                ),
                lambda: tf.io.decode_png(data, channels=3),
                lambda: _decode_webp(data, webp_channels),
            ],
        )
        return square(image, size, shorter, _turns(orientation(content, kind)))

    blank = tf.zeros([size, size, 3], tf.uint8)
    return tf.cond(problem == "", decoded, lambda: blank), problem


def _decode_webp(data, channels):
    """Returns uint8 `[H, W, 3]` without alpha."""

    # Older servers lack `decode_webp`. `channels=0` writes beyond the buffer
    # for an animation without alpha.
    def decode(channels):
        return tf.io.decode_image(data, channels, expand_animations=False)

    image = tf.cond(channels == 3, lambda: decode(3), lambda: decode(4))
    return image[..., :3]


def _kind(content):
    """Returns JPEG, PNG, WEBP or _UNKNOWN, from the first bytes of a file."""
    head = _head(content)

    def has(magic, at=0):
        return tf.reduce_all(head[at : at + len(magic)] == list(magic))

    return tf.case(
        [
            (has(b"\xff\xd8\xff"), lambda: JPEG),
            (has(b"\x89PNG\r\n\x1a\n"), lambda: PNG),
            (has(b"RIFF") & has(b"WEBP", 8), lambda: WEBP),
        ],
        default=lambda: _UNKNOWN,
    )


def _sides(data, content, kind):
    """Returns int64 height and width from the header, 0 for unknown files."""
    head = tf.cast(_head(content), tf.int64)

    def little(*bytes_):
        return tf.add_n([head[at] * 256**i for i, at in enumerate(bytes_)])

    def jpeg():
        shape = tf.io.extract_jpeg_shape(data, tf.int64)
        return shape[0], shape[1]

    def png():
        return little(23, 22, 21, 20), little(19, 18, 17, 16)

    def webp():
        def extended():
            return little(27, 28, 29) + 1, little(24, 25, 26) + 1

        def lossless():  # two numbers of 14 bits
            both = little(21, 22, 23, 24)
            return both // 2**14 % 2**14 + 1, both % 2**14 + 1

        def lossy():
            return little(28, 29) % 2**14, little(26, 27) % 2**14

        return tf.case(
            [
                (head[15] == ord("X"), extended),
                (head[15] == ord("L"), lossless),
            ],
            default=lossy,
        )

    zero = tf.constant(0, tf.int64)
    return tf.switch_case(kind, [jpeg, png, webp, lambda: (zero, zero)])


def _animated(content):
    """Whether the header of a WebP file announces an animation."""
    head = _head(content)
    return (head[15] == ord("X")) & (tf.bitwise.bitwise_and(head[20], 2) > 0)


def _head(content):
    head = content[:_HEAD]
    return tf.pad(head, [[0, _HEAD - tf.size(head)]])


def _turns(orientation):
    """Returns the turns of an EXIF orientation, see `square`."""

    def one_of(*values):
        return tf.reduce_any(orientation == values)

    return orientation >= 5, one_of(3, 4, 7, 8), one_of(2, 3, 6, 7)
