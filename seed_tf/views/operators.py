"""Image operators with parameters per image, as pure functions.

`images` are float32 `[B, H, W, 3]` in [0, 255]. All operators compile under
XLA.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from seed_tf.acceleration import hardware

# ITU-R 601 luma, with the decimals that torchvision and TensorFlow use.
LUMA = (0.2989, 0.587, 0.114)

BRIGHTNESS, CONTRAST, SATURATION, NOTHING = range(4)


def skippable(
    drawn: tf.Tensor,
    operator: Callable[[tf.Tensor], tf.Tensor],
    images: tf.Tensor,
) -> tf.Tensor:
    """Returns `operator(images)`, computed only where it is worth it.

    A batch of one image, as in a map over single images, skips the operator if
    its image is not drawn. Larger batches always run it: some image is nearly
    always drawn, and branches are slow on accelerators.

    Args:
        drawn: bool `[B]`, the images that the operator changes.
        operator: function of images to images of the same shape, which leaves
            images that are not drawn unchanged.
        images: `[B, H, W, 3]`.
    """
    if images.shape[0] == 1:
        return tf.cond(drawn[0], lambda: operator(images), lambda: images)
    return operator(images)


def where(
    drawn: tf.Tensor,
    operator: Callable[[tf.Tensor], tf.Tensor],
    images: tf.Tensor,
) -> tf.Tensor:
    """Returns `operator(images)` where `drawn`, and the images elsewhere.

    Arguments are those of `skippable`, but the operator may change all images.
    """

    def chosen(images):
        # Flattened: TensorFlow broadcasts a condition over four axes slowly.
        shape = tf.shape(images)
        old = tf.reshape(images, [shape[0], -1])
        new = tf.reshape(operator(images), [shape[0], -1])
        new = tf.reshape(tf.where(drawn[:, None], new, old), shape)
        return tf.ensure_shape(new, images.shape)

    return skippable(drawn, chosen, images)


def blend(
    images: tf.Tensor, operation: tf.Tensor, factors: tf.Tensor
) -> tf.Tensor:
    """Applies one linear colour operation per image; clips to [0, 255].

    The operation is `factor * image + (1 - factor) * other`, where `other` is
    black for brightness, the mean of the grey image for contrast, and the grey
    image for saturation.

    Args:
        images: `[B, H, W, 3]`.
        operation: int32 `[B]`, BRIGHTNESS, CONTRAST, SATURATION or NOTHING.
        factors: float32 `[B, 3]`, of brightness, contrast and saturation.
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
        # XLA fuses elementwise operations to one pass and reduces rows fast.
        luma = pixels * tf.constant(LUMA)
        grey = tf.reduce_sum(luma, 2, keepdims=True)
        mean = tf.reduce_sum(luma, [1, 2], keepdims=True)
        mean /= tf.cast(tf.shape(pixels)[1], tf.float32)
        pixels = factor * pixels + saturation * grey
    else:
        # A 3x3 matrix per image takes one pass for every operation.
        grey = tf.tile(tf.constant(LUMA)[:, None], [1, 3])
        mean = tf.reduce_mean(pixels, 1, keepdims=True) @ grey
        pixels = pixels @ (factor * tf.eye(3) + saturation * grey)
    pixels = tf.clip_by_value(pixels + contrast * mean, 0.0, 255.0)
    return tf.ensure_shape(tf.reshape(pixels, shape), images.shape)


def turn_hue(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Adds `turns` `[B]`, in [-1, 1], to the hue of HSV, in [0, 1)."""
    hsv = tf.image.rgb_to_hsv(images)
    hsv += tf.pad(turns[:, None], [[0, 0], [0, 2]])[:, None, None, :]
    hsv -= tf.floor(hsv) * [1.0, 0.0, 0.0]
    return tf.image.hsv_to_rgb(hsv)


def gaussian_weights(
    sigma: tf.Tensor, size: int | tf.Tensor, max_sigma: float
) -> tf.Tensor:
    """Returns weights of a Gaussian blur along one axis, with extended edges.

    Args:
        sigma: float32 `[B]`, standard deviation in pixels.
        size: int scalar, pixels along the axis.
        max_sigma: float, upper limit of `sigma`.

    Returns:
        float32 `[B, size, size]`, whose rows sum to 1.
    """
    sigma = sigma[:, None, None]

    def gaussian(distance):
        return tf.exp(-0.5 * (distance / sigma) ** 2)

    pixel = tf.range(tf.cast(size, tf.float32))
    weights = gaussian(pixel[:, None] - pixel)
    # The border pixels also take the weights beyond the border. Beyond 6 sigma
    # the weights are too small for float32.
    reach = tf.range(tf.cast(size + math.ceil(6 * max_sigma), tf.float32))
    beyond = tf.cumsum(gaussian(reach[:, None]), axis=1, reverse=True)
    beyond = beyond[:, :size]
    weights = tf.where(pixel == 0, beyond, weights)
    weights = tf.where(pixel == pixel[-1], tf.reverse(beyond, [1]), weights)
    return weights / tf.reduce_sum(weights, 2, keepdims=True)
