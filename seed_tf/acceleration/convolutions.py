"""Faster ways to the same convolutions.

Convolutions and their gradients are slow in places, where they take up to ten
times as long as something else that gives the same:

- Convolutions to maps of one or two pixels a side. The last stages of a network
  for 224 pixels see such maps of images of 32; most taps of a kernel then meet
  padding, or each weight is used for a few pixels only. A matrix product of
  what is left does it.
- Convolutions of single pixels (1x1), in training: a product, and two more for
  the gradients.
- The gradients of kernels in bfloat16, where a convolution leads to maps of up
  to seven pixels a side: a product for each tap.
- The gradients of depthwise convolutions: some of oneDNN's are kernels without
  vectors. TensorFlow's own, or float32 in place of bfloat16, are faster.
- Strided convolutions of images, whose three channels fill few lanes of a
  GPU's or a TPU's matrix units. Blocks of pixels as channels fill more.

All but the first and last are for processors alone, the last for accelerators.
Measured in docs/performance.md.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

# Pixels a side of the maps up to which products stand in, for a convolution
# and for the gradient of its kernel.
_PRODUCT_SIDE, _TAPS_SIDE = 2, 7
_LANES = 16  # bytes that matrix units take at a time


def convolution(layer, maps, kernel, hardware):
    """Returns what `layer.convolution_op(maps, kernel)` does, up to rounding.

    Args:
        layer: keras.layers.Conv2D.
        maps: `[B, h, w, C]`. A matrix product stands in where its static
            shape leads to a map of at most two pixels a side and, on
            accelerators, a convolution of 2x2 blocks where a layer of stride
            2 sees images.
        kernel: `[k, k, C, D]`.
        hardware: `Hardware`.

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


def convolution_in_training(layer, maps, kernel, hardware):
    """Returns the same, and has products for gradients and 1x1 kernels.

    Not for inference, where a convolution takes its bias and activation along.
    """
    padding, stride = _padding(layer, maps), layer.strides[0]
    if padding is None or layer.groups != 1 or hardware.accelerated:
        return convolution(layer, maps, kernel, hardware)
    size = layer.kernel_size[0]
    sides = _output_sides(maps, padding, size, stride)
    # Not the variable itself, which a custom gradient does not take.
    kernel = tf.convert_to_tensor(ops.convert_to_tensor(kernel))
    if size == stride == 1:
        rows = tf.reshape(maps, (-1, kernel.shape[2]))
        # Not a slice, whose gradient is a copy.
        rows = tf.matmul(rows, tf.reshape(kernel, kernel.shape[2:]))
        return tf.reshape(rows, (-1, *sides, layer.filters))
    if (
        maps.dtype == tf.bfloat16
        and stride <= 2 < size
        and _PRODUCT_SIDE < max(sides) <= _TAPS_SIDE
    ):
        return _to_small_maps(maps, kernel, layer, padding, sides)
    return convolution(layer, maps, kernel, hardware)


def depthwise_convolution_in_training(layer, maps, hardware):
    """Returns what `layer(maps)` does, up to rounding.

    Args:
        layer: keras.layers.DepthwiseConv2D.
        maps: `[B, h, w, C]`. An elementwise product stands in where its static
            shape leads to a single pixel, other kernels for gradients where
            they are faster.
        hardware: `Hardware`.

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
    # Not the variable itself, which a custom gradient does not take.
    kernel = tf.convert_to_tensor(ops.convert_to_tensor(layer.kernel))
    if _sides(layer, maps) == [1, 1]:
        return _to_single_pixels(maps, kernel[..., 0], layer.padding)
    if hardware.accelerated:
        return keras.layers.DepthwiseConv2D.call(layer, maps)
    return _depthwise(maps, kernel, layer, padding)


def _sides(layer, maps):
    """Sides of the output map, a list; None where products do not apply."""
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


def _is_square(layer):
    return (
        layer.data_format == "channels_last"
        and len(set(layer.kernel_size)) == len(set(layer.strides)) == 1
        and set(layer.dilation_rate) == {1}
    )


def _padding(layer, maps):
    """Rows and columns that a layer adds: `[[top, bottom], [left, right]]`.

    None where that is not known beforehand, or the layer is not square.
    """
    if not _is_square(layer) or None in maps.shape[1:3]:
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
    """Whether it is a network's first, of stride 2, by its channels."""
    return (
        _padding(layer, maps) is not None
        and None not in maps.shape[1:]
        and layer.groups == 1
        and layer.strides == (2, 2)
        and layer.kernel_size[0] > 2
        and maps.shape[3] * maps.dtype.size < _LANES
    )


def _of_blocks(maps, kernel, padding):
    """Blocks of 2x2 pixels are channels, and the stride is 1.

    The same sums, of the same products and of some with zeros.
    """
    size, _, width, filters = kernel.shape
    taps = -(-size // 2)  # blocks that a kernel touches
    # Whole lanes, or cuDNN would copy all to widen it.
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


def _to_small_maps(maps, kernel, layer, padding, sides):
    """A convolution whose kernel's gradient is a product for each tap."""
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


def _to_single_pixels(maps, kernel, padding):
    size = kernel.shape[0]
    if padding == "same":
        return maps * kernel[size // 2, size // 2]
    window = _window(maps, 0, 0, size) * kernel
    return tf.reduce_sum(window, axis=(1, 2), keepdims=True)


def _depthwise(maps, kernel, layer, padding):
    """A depthwise convolution whose gradients take the fastest kernels."""
    dtype, size, stride = maps.dtype, kernel.shape[0], layer.strides[0]
    options = {
        "strides": [1, stride, stride, 1],
        "padding": layer.padding.upper(),
    }
    # With explicit padding TensorFlow leaves a gradient to its own kernel.
    # oneDNN's has vectors for kernels of up to 3x3 on maps as large.
    own = size > 3 or min(maps.shape[1:3]) < size
    flat = [0, 0, *padding[0], *padding[1], 0, 0]
    explicit = {**options, "padding": "EXPLICIT", "explicit_paddings": flat}

    def in_float32(tensor):
        return tf.cast(tensor, tf.float32) if dtype.size == 2 else tensor

    @tf.custom_gradient
    def convolve(maps, kernel):
        outputs = tf.nn.depthwise_conv2d(maps, kernel, **options)

        def gradients(upstream):
            # These two are slower by an order of magnitude in 16 bits.
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
