"""Image files to squares in a TensorFlow graph, bit for bit as in evaluation.

TensorFlow's operators do the work of `seed_tf.datasets.decoding`, so that a
server needs neither PIL nor Python. They read the header and the EXIF
orientation, and resample in PIL's fixed-point arithmetic. Only CMYK JPEG files
differ, by at most one grey level. A bad file does not affect the rest of the
batch.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from seed_tf.datasets.decoding import MAX_PIXELS
from seed_tf.datasets.resizing import square
from seed_tf.export.orientation import orientation
from seed_tf.io.pipelines import ALL_CORES, steady

JPEG, PNG, WEBP = 0, 1, 2
_UNKNOWN = 3
_HEAD = 30  # bytes that hold the size of a PNG or WebP


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
        attempts = steady(tf.data.Dataset.from_tensor_slices([3, 4]))
        attempts = attempts.map(
            lambda channels: _square_of_file(data, channels, size, shorter)
        )
        attempts = attempts.ignore_errors().concatenate(
            tf.data.Dataset.from_tensors((blank, "damaged or truncated"))
        )
        return attempts.take(1).get_single_element()

    rows = steady(tf.data.Dataset.from_tensor_slices(files))
    rows = rows.map(row, ALL_CORES).batch(np.iinfo(np.int64).max)
    return rows.get_single_element()


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
