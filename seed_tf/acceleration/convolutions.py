"""Faster ways to compute the same convolutions.

Some convolutions and gradients take up to ten times as long as another kernel
with the same result. This module replaces:

- Convolutions to maps of one or two pixels a side, by a matrix product. The
  last stages of a network for 224 pixels see such maps when images have 32:
  most taps of a kernel meet padding, or each weight serves a few pixels only.
- 1x1 convolutions in training, by a product forward and two products back.
- Gradients of bfloat16 kernels on maps of up to seven pixels a side, by a
  product for each tap.
- Gradients of depthwise convolutions, by TensorFlow's own kernels or by
  float32: some of oneDNN's kernels use no vector instructions.
- Strided convolutions of images, by convolutions of 2x2 blocks of pixels.
  Three channels fill few lanes of an accelerator's matrix units.

The first replacement serves all hardware, the last serves accelerators, and
the others serve processors. docs/performance.md has the measurements.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from seed_tf.acceleration.hardware import Hardware

# The largest maps, in pixels a side, for which products replace a convolution
# and the gradient of its kernel in bfloat16. In float32 the winner depends on
# the processor: see "Gradients of kernels" in docs/performance.md.
_PRODUCT_SIDE, _TAPS_SIDE = 2, 7
_LANES = 16  # bytes that matrix units read at a time


def convolution(
    layer: keras.layers.Conv2D,
    maps: tf.Tensor,
    kernel: tf.Tensor | keras.Variable,
    hardware: Hardware,
) -> tf.Tensor:
    """Computes `layer.convolution_op(maps, kernel)`, up to rounding.

    Args:
        layer: layer with the stride and the padding.
        maps: `[B, h, w, C]`. The static shape decides which kernel computes.
        kernel: `[k, k, C, D]`.
        hardware: machine that computes.

    Returns:
        `[B, h', w', D]`.
    """
    if hardware.accelerated and _sees_images(layer, maps):
        return _of_blocks(
            maps, ops.convert_to_tensor(kernel), _padding(layer, maps)
        )
    sides = _sides(layer, maps)
    if sides is None or max(sides) > _PRODUCT_SIDE:
        return keras.layers.Conv2D.convolution_op(layer, maps, kernel)
    kernel = ops.convert_to_tensor(kernel)
    if layer.padding == "same" and kernel.shape[0] > 1:
        rows = _of_whole_maps(maps, kernel)
    else:
        rows = _of_windows(maps, kernel, sides, layer.strides[0])
    return tf.reshape(rows, (-1, *sides, layer.filters))


def convolution_in_training(
    layer: keras.layers.Conv2D,
    maps: tf.Tensor,
    kernel: tf.Tensor | keras.Variable,
    hardware: Hardware,
) -> tf.Tensor:
    """Computes `convolution`, with products for gradients and 1x1 kernels.

    Inference is faster without it: one kernel computes a convolution, its bias
    and its activation. Arguments and result are those of `convolution`.
    """
    padding, stride = _padding(layer, maps), layer.strides[0]
    if padding is None or layer.groups != 1 or hardware.accelerated:
        return convolution(layer, maps, kernel, hardware)
    size = layer.kernel_size[0]
    sides = _output_sides(maps, padding, size, stride)
    # A custom gradient takes no variables.
    kernel = tf.convert_to_tensor(ops.convert_to_tensor(kernel))
    if size == stride == 1:
        rows = tf.reshape(maps, (-1, kernel.shape[2]))
        # A reshape, not a slice: the gradient of a slice copies.
        rows = tf.matmul(rows, tf.reshape(kernel, kernel.shape[2:]))
        return tf.reshape(rows, (-1, *sides, layer.filters))
    if (
        maps.dtype == tf.bfloat16
        and stride <= 2 < size
        and _PRODUCT_SIDE < max(sides) <= _TAPS_SIDE
    ):
        return _to_small_maps(maps, kernel, layer, padding, sides)
    return convolution(layer, maps, kernel, hardware)


def depthwise_convolution_in_training(
    layer: keras.layers.DepthwiseConv2D, maps: tf.Tensor, hardware: Hardware
) -> tf.Tensor:
    """Computes `layer(maps)`, up to rounding.

    Args:
        layer: layer to compute.
        maps: `[B, h, w, C]`. The static shape decides which kernel computes:
            for a single pixel an elementwise product.
        hardware: machine that computes.

    Returns:
        `[B, h', w', C * depth_multiplier]`.
    """
    padding = _padding(layer, maps)
    if (
        padding is None
        or layer.depth_multiplier != 1
        or layer.use_bias
        or layer.activation is not keras.activations.linear
    ):
        return keras.layers.DepthwiseConv2D.call(layer, maps)
    # A custom gradient takes no variables.
    kernel = tf.convert_to_tensor(ops.convert_to_tensor(layer.kernel))
    if _sides(layer, maps) == [1, 1]:
        return _to_single_pixels(maps, kernel[..., 0], layer.padding)
    if hardware.accelerated:
        return keras.layers.DepthwiseConv2D.call(layer, maps)
    return _depthwise(maps, kernel, layer, padding)


def _sides(layer, maps):
    """Returns the sides of the output map, None where products do not apply."""
    size, stride = layer.kernel_size[0], layer.strides[0]
    padding = _padding(layer, maps)
    if (
        padding is None
        or getattr(layer, "groups", 1) != 1
        or (layer.padding == "same" and (stride > 1 or size % 2 == 0))
    ):
        return None
    return _output_sides(maps, padding, size, stride)


def _output_sides(maps, padding, size, stride):
    return [
        (side + sum(pads) - size) // stride + 1
        for side, pads in zip(maps.shape[1:3], padding, strict=True)
    ]


def _padding(layer, maps):
    """Returns the padding of a layer: `[[top, bottom], [left, right]]`.

    Returns None if the layer is not square, or the size of the maps is unknown.
    """
    if (
        layer.data_format != "channels_last"
        or len({*layer.kernel_size}) > 1
        or len({*layer.strides}) > 1
        or {*layer.dilation_rate} != {1}
        or None in maps.shape[1:3]
    ):
        return None
    if layer.padding == "valid":
        return [[0, 0], [0, 0]]
    size, stride = layer.kernel_size[0], layer.strides[0]
    missing = [
        max((-(-side // stride) - 1) * stride + size - side, 0)
        for side in maps.shape[1:3]
    ]
    return [[count // 2, count - count // 2] for count in missing]


def _sees_images(layer, maps):
    """Whether a convolution of stride 2 sees images, by their channels."""
    return (
        _padding(layer, maps) is not None
        and None not in maps.shape[1:]
        and layer.groups == 1
        and layer.strides == (2, 2)
        and layer.kernel_size[0] > 2
        and maps.shape[3] * maps.dtype.size < _LANES
    )


def _of_blocks(maps, kernel, padding):
    """Convolves 2x2 blocks of pixels, as channels, with stride 1.

    The sums gain products with zeros, and are otherwise the same.
    """
    size, _, width, filters = kernel.shape
    taps = -(-size // 2)  # blocks that a kernel touches
    # Fill whole lanes: otherwise cuDNN copies the maps to widen them.
    spare = -width % max(1, _LANES // maps.dtype.size // 4)
    pads, ends = [], []
    sides = _output_sides(maps, padding, size, 2)
    for count, side, (before, _) in zip(
        sides, maps.shape[1:3], padding, strict=True
    ):
        end = 2 * (count - 1 + taps) - before
        pads.append([before, max(end - side, 0)])
        ends.append(min(end, side))
    maps = maps[:, : ends[0], : ends[1]]
    maps = tf.pad(maps, [[0, 0], *pads, [0, spare]])
    rest = [0, 2 * taps - size]
    kernel = tf.pad(kernel, [rest, rest, [0, spare], [0, 0]])
    width += spare
    kernel = tf.reshape(kernel, (taps, 2, taps, 2, width, filters))
    kernel = tf.transpose(kernel, (0, 2, 1, 3, 4, 5))
    kernel = tf.reshape(kernel, (taps, taps, 4 * width, filters))
    return tf.nn.conv2d(tf.nn.space_to_depth(maps, 2), kernel, 1, "VALID")


def _of_whole_maps(maps, kernel):
    """Connects every output pixel to every input pixel: `[B, h' w' D]`."""
    _, height, length, width = maps.shape
    size, filters, pixels = kernel.shape[0], kernel.shape[3], height * length
    # Output pixel o sees input pixel i through tap i - o from the middle one.
    y, x = np.divmod(np.arange(pixels), length)
    taps = size * (y[:, None] - y) + x[:, None] - x + size**2 // 2
    dense = tf.gather(tf.reshape(kernel, (size**2, width, filters)), taps)
    dense = tf.transpose(dense, (0, 2, 1, 3))
    dense = tf.reshape(dense, (pixels * width, pixels * filters))
    return tf.matmul(tf.reshape(maps, (-1, pixels * width)), dense)


def _to_small_maps(maps, kernel, layer, padding, sides):
    """Convolves, with the kernel's gradient as a product for each tap."""
    size, _, width, filters = kernel.shape
    stride = layer.strides[0]
    options = {
        "strides": [1, stride, stride, 1],
        "padding": layer.padding.upper(),
    }

    @tf.custom_gradient
    def convolve(maps, kernel):
        def gradients(upstream):
            to_maps = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(maps),
                filter=kernel,
                out_backprop=upstream,
                **options,
            )
            pads = [
                [before, after + -(side + before + after) % stride]
                for side, (before, after) in zip(
                    maps.shape[1:3], padding, strict=True
                )
            ]
            blocks = tf.pad(maps, [[0, 0], *pads, [0, 0]])
            if stride > 1:
                blocks = tf.nn.space_to_depth(blocks, stride)
            rows = tf.reshape(upstream, (-1, filters))
            taps = []
            for y, x in np.ndindex(size, size):
                place = width * (stride * (y % stride) + x % stride)
                seen = tf.slice(
                    blocks,
                    (0, y // stride, x // stride, place),
                    (-1, *sides, width),
                )
                seen = tf.reshape(seen, (-1, width))
                taps.append(tf.matmul(seen, rows, transpose_a=True))
            return to_maps, tf.reshape(tf.stack(taps), kernel.shape)

        return tf.nn.conv2d(maps, kernel, **options), gradients

    return convolve(maps, kernel)


def _of_windows(maps, kernel, sides, stride):
    """Multiplies the window of each output pixel: `[B h' w', D]`."""
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


def _to_single_pixels(maps, kernel, padding):
    size = kernel.shape[0]
    if padding == "same":
        return maps * kernel[size // 2, size // 2]
    window = _window(maps, 0, 0, size) * kernel
    return tf.reduce_sum(window, axis=(1, 2), keepdims=True)


def _depthwise(maps, kernel, layer, padding):
    """Convolves depthwise, with the fastest kernels for the gradients."""
    dtype, size, stride = maps.dtype, kernel.shape[0], layer.strides[0]
    options = {
        "strides": [1, stride, stride, 1],
        "padding": layer.padding.upper(),
    }
    # Explicit padding makes TensorFlow use its own kernel for a gradient.
    # oneDNN's is vectorised for up to 3x3 taps, on maps no smaller.
    own = size > 3 or min(maps.shape[1:3]) < size
    flat = [0, 0, *padding[0], *padding[1], 0, 0]
    explicit = {**options, "padding": "EXPLICIT", "explicit_paddings": flat}

    def in_float32(tensor):
        return tf.cast(tensor, tf.float32) if dtype.size == 2 else tensor

    @tf.custom_gradient
    def convolve(maps, kernel):
        outputs = tf.nn.depthwise_conv2d(maps, kernel, **options)

        def gradients(upstream):
            # In 16 bits these two kernels are ten times slower.
            of_maps = in_float32 if stride > 1 else tf.identity
            of_kernel = in_float32 if own else tf.identity
            to_maps = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(maps),
                filter=of_maps(kernel),
                out_backprop=of_maps(upstream),
                **options,
            )
            to_kernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=of_kernel(maps),
                filter_sizes=kernel.shape,
                out_backprop=of_kernel(upstream),
                **(explicit if own else options),
            )
            return tf.cast(to_maps, dtype), tf.cast(to_kernel, dtype)

        return outputs, gradients

    return convolve(maps, kernel)
