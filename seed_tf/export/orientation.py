"""The EXIF orientation of an image file, read by TensorFlow's operators."""

from __future__ import annotations

import tensorflow as tf

_SEGMENTS = 1000  # limit of segments to read in a file
_PADDING = 16


def orientation(content: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
    """Reads the EXIF orientation of a file.

    Args:
        content: uint8 `[n]`, the file.
        kind: int32 scalar, 0 for JPEG, 1 for PNG, 2 for WebP.

    Returns:
        int64 scalar from 1 to 8; 1 without a valid entry.
    """
    # With padding, every place of the file has a whole header to read.
    padded = tf.concat([content, tf.zeros([_PADDING], tf.uint8)], 0)
    start, end = _exif(padded, kind)
    return tf.cond(
        end > start,
        lambda: _tag(tf.cast(padded[start:end], tf.int64)),
        lambda: tf.constant(1, tf.int64),
    )


def _exif(padded, kind):
    """Returns int64 start and end of the TIFF structure, equal if missing."""
    size = tf.size(padded, tf.int64) - _PADDING

    # Each function reads a segment from its first 16 bytes, `head`. It returns
    # whether the segment is EXIF, the offset of the TIFF structure, and the
    # offset of the next segment.
    def jpeg(head):
        length = 2 + _number(head[2:4], big=True)
        exif = (head[1] == 0xE1) & _equal(head[4:], b"Exif\0\0")
        # Fill bytes may precede a marker. No segment follows a scan.
        step = tf.where(head[1] == 0xFF, tf.ones_like(size), length)
        stop = (head[0] != 0xFF) | (head[1] == 0xDA)
        return exif, tf.constant(10, tf.int64), tf.where(stop, size, step)

    def png(head):
        step = 12 + _number(head[:4], big=True)
        return _equal(head[4:], b"eXIf"), tf.constant(8, tf.int64), step

    def webp(head):
        length = _number(head[4:8])
        # Some programs write JPEG's prefix first.
        prefix = 6 * tf.cast(_equal(head[8:], b"Exif\0\0"), tf.int64)
        step = 8 + length + length % 2
        return _equal(head, b"EXIF"), 8 + prefix, step

    def look(at, start, end):
        head = _first(tf.cast(padded[at : at + _PADDING], tf.int64), _PADDING)
        exif, skip, step = tf.switch_case(
            kind, [lambda f=f: f(head) for f in (jpeg, png, webp)]
        )
        start = tf.where(exif, at + skip, start)
        end = tf.where(exif, tf.minimum(at + step, size), end)
        return tf.where(exif, size, at + step), start, end

    begin = tf.gather(tf.constant([2, 8, 12], tf.int64), kind)
    none = tf.constant(0, tf.int64)
    _, start, end = tf.while_loop(
        lambda at, *_: at < size,
        look,
        (begin, none, none),
        maximum_iterations=_SEGMENTS,
    )
    return start, end


def _tag(tiff):
    """Returns the orientation in a TIFF structure (int64 bytes), or else 1."""
    big = _equal(tiff, b"MM")

    def number(fields):
        return tf.where(big, _number(fields, big=True), _number(fields))

    directory = tiff[number(_first(tiff[4:], 4)) :]
    entries = directory[2:]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12])
    entries = entries[: number(_first(directory, 2))]
    # The orientation tag holds one number of 16 bits.
    right = (
        (number(entries[:, :2]) == 0x0112)
        & (number(entries[:, 2:4]) == 3)
        & (number(entries[:, 4:8]) == 1)
    )
    values = tf.boolean_mask(number(entries[:, 8:10]), right)
    value = tf.concat([[1], values], 0)[-1]
    return tf.where((value >= 1) & (value <= 8), value, 1)


def _first(values, count):
    """Returns the first `count` int64 values, padded with zeros."""
    values = values[:count]
    values = tf.pad(values, [[0, count - tf.size(values)]])
    return tf.ensure_shape(values, [count])


def _equal(values, expected):
    return tf.reduce_all(_first(values, len(expected)) == list(expected))


def _number(fields, big=False):
    """Converts bytes `[..., n]` to unsigned integers, int64 `[...]`."""
    powers = [256**i for i in range(fields.shape[-1])]
    powers = tf.constant(powers[::-1] if big else powers, tf.int64)
    return tf.reduce_sum(fields * powers, -1)
