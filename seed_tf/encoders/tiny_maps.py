"""Convolutions to maps of one or two pixels a side, as products.

The last stages of a network for 224 pixels see such maps of images of 32. Most
taps of a kernel then meet padding, or each weight is used for a few pixels
only, and a processor's convolution and its gradients take three to ten times
as long as the matrix product of what is left.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

_LARGEST = 2  # pixels a side


def convolution(layer, maps, kernel):
    """What `layer.convolution_op(maps, kernel)` gives, up to rounding.

    Args:
        layer: keras.layers.Conv2D.
        maps: `[B, h, w, C]`. A matrix product stands in where its static
            shape leads to a map of at most two pixels a side.
        kernel: `[k, k, C, D]`.

    Returns:
        `[B, h', w', D]`.
    """
    sides = _sides(layer, maps)
    if sides is None or layer.groups != 1 or max(sides) > _LARGEST:
        return keras.layers.Conv2D.convolution_op(layer, maps, kernel)
    kernel = ops.convert_to_tensor(kernel)
    if layer.padding == "same" and kernel.shape[0] > 1:
        rows = _of_whole_maps(maps, kernel)
    else:
        rows = _of_windows(maps, kernel, sides, layer.strides[0])
    return tf.reshape(rows, (-1, *sides, layer.filters))


def depthwise_convolution(layer, maps):
    """What `layer(maps)` gives, up to rounding.

    Args:
        layer: keras.layers.DepthwiseConv2D.
        maps: `[B, h, w, C]`. An elementwise product stands in where its static
            shape leads to a single pixel.

    Returns:
        `[B, h', w', C * depth_multiplier]`.
    """
    if (
        _sides(layer, maps) != [1, 1]
        or layer.depth_multiplier != 1
        or layer.use_bias
        or layer.activation is not keras.activations.linear
    ):
        return keras.layers.DepthwiseConv2D.call(layer, maps)
    kernel = ops.convert_to_tensor(layer.kernel)[..., 0]
    size = kernel.shape[0]
    if layer.padding == "same":
        return maps * kernel[size // 2, size // 2]
    window = _window(maps, 0, 0, size) * kernel
    return tf.reduce_sum(window, axis=(1, 2), keepdims=True)


def _sides(layer, maps):
    """Sides of the output map, a list; None where products do not apply."""
    size, stride = layer.kernel_size[0], layer.strides[0]
    padded = layer.padding == "same"
    sides = maps.shape[1:3]
    if (
        layer.data_format != "channels_last"
        or layer.kernel_size != (size, size)
        or layer.strides != (stride, stride)
        or layer.dilation_rate != (1, 1)
        or (padded and (stride > 1 or size % 2 == 0))
        or None in sides
    ):
        return None
    if padded:
        return list(sides)
    return [(side - size) // stride + 1 for side in sides]


def _of_whole_maps(maps, kernel):
    """Every output pixel sees every input pixel: `[B, h' w' D]`."""
    _, height, length, width = maps.shape
    size, filters, pixels = kernel.shape[0], kernel.shape[3], height * length
    # Output pixel o sees input pixel i through tap i - o from the middle one.
    y, x = np.divmod(np.arange(pixels), length)
    taps = size * (y[:, None] - y) + x[:, None] - x + size**2 // 2
    dense = tf.gather(tf.reshape(kernel, (size**2, width, filters)), taps)
    dense = tf.transpose(dense, (0, 2, 1, 3))
    dense = tf.reshape(dense, (pixels * width, pixels * filters))
    return tf.matmul(tf.reshape(maps, (-1, pixels * width)), dense)


def _of_windows(maps, kernel, sides, stride):
    """Every output pixel has its own copy of what it sees: `[B h' w', D]`."""
    size, _, width, filters = kernel.shape
    windows = [
        _window(maps, y, x, size)
        for y in range(0, stride * sides[0], stride)
        for x in range(0, stride * sides[1], stride)
    ]
    inputs = size**2 * width
    rows = tf.reshape(tf.stack(windows, 1), (-1, inputs))
    return tf.matmul(rows, tf.reshape(kernel, (inputs, filters)))


def _window(maps, y, x, size):
    # The gradient of an ordinary slice runs on one thread.
    return tf.slice(maps, (0, y, x, 0), (-1, size, size, -1))
