"""Image operators with parameters per image, as pure functions.

`images` are float32 `[B, H, W, 3]` in [0, 255]; everything compiles under XLA.
"""

import math

import tensorflow as tf

from seed_tf.acceleration import hardware

# ITU-R 601 luma, with the decimals that torchvision and TensorFlow use.
LUMA = (0.2989, 0.587, 0.114)

BRIGHTNESS, CONTRAST, SATURATION, NOTHING = range(4)


def skippable(drawn, operator, images):
    """`operator(images)`, which must leave images that are not `drawn` alone.

    A batch of one, what a map over single images sees, skips the operator if
    its image is not drawn. Larger batches run it: some image is nearly always
    drawn, and accelerators dislike branches.

    Args:
        drawn: bool `[B]`.
        operator: function of images to images of the same shape.
        images: `[B, H, W, 3]`.
    """
    if images.shape[0] == 1:
        return tf.cond(drawn[0], lambda: operator(images), lambda: images)
    return operator(images)


def where(drawn, operator, images):
    """`operator(images)` where `drawn`, the images as they are elsewhere.

    Arguments as of `skippable`.
    """

    def chosen(images):
        # Flat, as TensorFlow broadcasts a condition over four axes slowly.
        shape = tf.shape(images)
        old = tf.reshape(images, [shape[0], -1])
        new = tf.reshape(operator(images), [shape[0], -1])
        new = tf.reshape(tf.where(drawn[:, None], new, old), shape)
        return tf.ensure_shape(new, images.shape)

    return skippable(drawn, chosen, images)


def blend(images, operation, factors):
    """One of the linear colour operations per image, clipped to [0, 255].

    `factor * image + (1 - factor) * other`, where `other` is black for
    brightness, the mean of the grey image for contrast, and the grey image for
    saturation.

    Args:
        images: `[B, H, W, 3]`.
        operation: int32 `[B]`, BRIGHTNESS, CONTRAST, SATURATION or NOTHING.
        factors: float32 `[B, 3]`, a factor for each of the first three.
    """
    factors = tf.pad(factors, [[0, 0], [0, 1]], constant_values=1.0)
    factor = tf.gather(factors, operation, batch_dims=1)
    rest = 1.0 - factor
    shape = tf.shape(images)
    pixels = tf.reshape(images, [shape[0], -1, 3])
    contrast = tf.where(operation == CONTRAST, rest, 0.0)[:, None, None]
    saturation = tf.where(operation == SATURATION, rest, 0.0)[:, None, None]
    factor = factor[:, None, None]

    if hardware.current().accelerated:
        # XLA makes one pass of elementwise operations, and reduces rows fast.
        luma = pixels * tf.constant(LUMA)
        grey = tf.reduce_sum(luma, 2, keepdims=True)
        mean = tf.reduce_sum(luma, [1, 2], keepdims=True)
        mean /= tf.cast(tf.shape(pixels)[1], tf.float32)
        pixels = factor * pixels + saturation * grey
    else:
        # A 3x3 matrix per image is one pass, whatever the operation.
        grey = tf.tile(tf.constant(LUMA)[:, None], [1, 3])
        mean = tf.reduce_mean(pixels, 1, keepdims=True) @ grey
        pixels = pixels @ (factor * tf.eye(3) + saturation * grey)
    pixels = tf.clip_by_value(pixels + contrast * mean, 0.0, 255.0)
    return tf.ensure_shape(tf.reshape(pixels, shape), images.shape)


def turn_hue(images, turns):
    """Adds `turns` `[B]`, in [-1, 1], to the hue of HSV, in [0, 1)."""
    hsv = tf.image.rgb_to_hsv(images)
    hsv += tf.pad(turns[:, None], [[0, 0], [0, 2]])[:, None, None, :]
    hsv -= tf.floor(hsv) * [1.0, 0.0, 0.0]
    return tf.image.hsv_to_rgb(hsv)


def separable(images, rows, columns):
    """Weighted sums over rows, then over columns.

    Resampling and blurring are both this, with matrices per image: `out[b] =
    rows[b] @ images[b] @ columns[b].T` for every channel.

    Args:
        images: `[B, H, W, C]`.
        rows: `[B, h, H]`.
        columns: `[B, w, W]`.

    Returns:
        `[B, h, w, C]`.
    """
    images = tf.einsum("bhH,bHWc->bhWc", rows, images)
    return tf.einsum("bwW,bhWc->bhwc", columns, images)


def resampling_weights(start, length, in_size, out_size):
    """Weights of an antialiased bilinear resize of a crop, along one axis.

    Pixels of the result are triangle-weighted means of the pixels of the crop,
    with a radius of one pixel, or of one pixel of the result if those are
    larger: what PIL computes for the crop as an image of its own.

    Args:
        start: float32 `[B]`, first pixel of the crop.
        length: float32 `[B]`, its number of pixels.
        in_size: int scalar, pixels of the image along the axis.
        out_size: int, pixels of the result along the axis.

    Returns:
        `[B, out_size, in_size]`; rows sum to 1.
    """
    start, length = start[:, None, None], length[:, None, None]
    step = length / out_size
    pixel = tf.range(tf.cast(in_size, tf.float32)) + 0.5
    centre = tf.range(out_size, dtype=tf.float32)[:, None] + 0.5
    centre = start + step * centre
    weights = 1.0 - tf.abs(pixel - centre) / tf.maximum(step, 1.0)
    inside = (pixel > start) & (pixel < start + length)
    weights = tf.where(inside, tf.maximum(weights, 0.0), 0.0)
    return weights / tf.reduce_sum(weights, 2, keepdims=True)


def gaussian_weights(sigma, size, max_sigma):
    """Weights of a Gaussian blur along one axis, with the edges extended.

    Args:
        sigma: float32 `[B]`, standard deviation in pixels.
        size: int scalar, pixels along the axis.
        max_sigma: float, the largest `sigma` there can be.

    Returns:
        `[B, size, size]`; rows sum to 1.
    """
    sigma = sigma[:, None, None]

    def gaussian(distance):
        return tf.exp(-0.5 * (distance / sigma) ** 2)

    pixel = tf.range(tf.cast(size, tf.float32))
    weights = gaussian(pixel[:, None] - pixel)
    # The border pixels stand for all that lies beyond them as well; further
    # than 6 sigma that is less than float32 resolves.
    reach = tf.range(tf.cast(size + math.ceil(6 * max_sigma), tf.float32))
    beyond = tf.cumsum(gaussian(reach[:, None]), axis=1, reverse=True)
    beyond = beyond[:, :size]
    weights = tf.where(pixel == 0, beyond, weights)
    weights = tf.where(pixel == pixel[-1], tf.reverse(beyond, [1]), weights)
    return weights / tf.reduce_sum(weights, 2, keepdims=True)
