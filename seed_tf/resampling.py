"""Antialiased resizing by matrix products, which compile under XLA."""

from __future__ import annotations

import tensorflow as tf


def resize(images: tf.Tensor, size: int) -> tf.Tensor:
    """Returns images resized to a square as PIL does it, bilinear.

    Args:
        images: float32 `[B, H, W, C]`.
        size: positive int, pixels of a side of the result.

    Returns:
        float32 `[B, size, size, C]`; the same tensor if it has that size.
    """
    if tuple(images.shape[1:3]) == (size, size):
        return images

    def along(pixels):
        length = tf.cast(pixels, tf.float32)[None]
        return weights(tf.zeros(1), length, pixels, size)[0]

    shape = tf.shape(images)
    images = tf.einsum("hH,bHWc->bhWc", along(shape[1]), images)
    images = tf.einsum("wW,bhWc->bhwc", along(shape[2]), images)
    return tf.ensure_shape(images, [None, size, size, images.shape[3]])


def separable(
    images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor
) -> tf.Tensor:
    """Returns weighted sums over rows, then over columns.

    For every channel `out[b] = rows[b] @ images[b] @ columns[b].T`. Resampling
    and blurring both have this form.

    Args:
        images: `[B, H, W, C]`.
        rows: `[B, h, H]`.
        columns: `[B, w, W]`.

    Returns:
        `[B, h, w, C]`.
    """
    images = tf.einsum("bhH,bHWc->bhWc", rows, images)
    return tf.einsum("bwW,bhWc->bhwc", columns, images)


def weights(
    start: tf.Tensor, length: tf.Tensor, in_size: int | tf.Tensor, out_size: int
) -> tf.Tensor:
    """Returns weights of an antialiased bilinear resize along one axis.

    A pixel of the result is a triangle-weighted mean of the pixels of the
    crop. The radius of the triangle is one pixel of the crop or of the result,
    whichever is larger. PIL computes the same for a crop that was cut out
    before.

    Args:
        start: float32 `[B]`, first pixel of the crop.
        length: float32 `[B]`, its number of pixels.
        in_size: int scalar, pixels of the image along the axis.
        out_size: int, pixels of the result along the axis.

    Returns:
        float32 `[B, out_size, in_size]`, whose rows sum to 1.
    """
    start, length = start[:, None, None], length[:, None, None]
    step = length / out_size
    pixel = tf.range(tf.cast(in_size, tf.float32)) + 0.5
    centre = tf.range(out_size, dtype=tf.float32)[:, None] + 0.5
    centre = start + step * centre
    triangle = 1.0 - tf.abs(pixel - centre) / tf.maximum(step, 1.0)
    inside = (pixel > start) & (pixel < start + length)
    triangle = tf.where(inside, tf.maximum(triangle, 0.0), 0.0)
    return triangle / tf.reduce_sum(triangle, 2, keepdims=True)
