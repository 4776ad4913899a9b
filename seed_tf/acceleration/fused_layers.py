"""Training kernels that replace sequences of elementary operations.

Memory traffic dominates: each operation reads and writes whole feature maps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from seed_tf.acceleration import convolutions
from seed_tf.acceleration.hardware import Hardware
from seed_tf.grouped_batch_norm import GroupedBatchNormalization
from seed_tf.keras_internals import is_training

_BATCH_NORM = keras.layers.BatchNormalization
_LARGEST_POOL = 11  # 8 bits number the taps


def replacement(
    layer: keras.layers.Layer, hardware: Hardware
) -> tuple[str, Callable] | None:
    """Returns a faster method for a layer in training.

    Outputs, gradients and running statistics stay the same up to rounding. In
    inference, and on inputs without a faster kernel, the function calls the
    layer's own method.

    BatchNorm uses TensorFlow's fused kernel; Keras computes moments,
    normalisation and their gradients one by one. XLA compiles activations to
    one kernel forward and one back. `convolutions` computes convolutions.
    Averages over maps in bfloat16 and, on accelerators, the gradients of
    max-pooling have kernels of their own.

    Args:
        layer: layer to replace a method of.
        hardware: machine that trains the layer.

    Returns:
        pair of the method's name and the function. None for other classes,
        and for subclasses that override the computation.
    """
    kind, name = type(layer), "call"
    function: Callable
    if _normalises_as_keras(layer):
        function = _batch_norm
        if isinstance(layer, GroupedBatchNormalization):
            name = "normalise_group"
    elif kind is keras.layers.Activation and layer.activation in _KERNELS:
        function = _activation
    elif kind is keras.layers.Conv2D:
        name, function = "convolution_op", _convolution
    elif kind is keras.layers.DepthwiseConv2D:
        function = _depthwise_convolution
    elif (
        kind is keras.layers.GlobalAveragePooling2D
        and layer.compute_dtype == "bfloat16"
        and not hardware.accelerated
    ):
        function = _average
    elif kind is keras.layers.MaxPooling2D and hardware.accelerated:
        function = _maximum
    else:
        return None
    return name, functools.partial(function, layer, hardware)


def _normalises_as_keras(layer):
    if not isinstance(layer, _BATCH_NORM):
        return False
    call = type(layer).call
    if isinstance(layer, GroupedBatchNormalization):
        call = super(GroupedBatchNormalization, layer).call.__func__
    return (
        call is _BATCH_NORM.call
        and not layer.renorm
        and layer.compute_dtype != "float64"
    )


def _activation(self, _, inputs):
    if not is_training(self) or len(inputs.shape) != 4:
        return self.activation(inputs)
    return _KERNELS[self.activation](inputs)


def _convolution(self, hardware, inputs, kernel):
    if is_training(self):
        return convolutions.convolution_in_training(
            self, inputs, kernel, hardware
        )
    return keras.layers.Conv2D.convolution_op(self, inputs, kernel)


def _depthwise_convolution(self, hardware, inputs):
    if is_training(self):
        return convolutions.depthwise_convolution_in_training(
            self, inputs, hardware
        )
    return keras.layers.DepthwiseConv2D.call(self, inputs)


def _average(self, _, inputs):
    sides = inputs.shape[1:3]
    if (
        not is_training(self)
        or inputs.dtype != tf.bfloat16
        or self.data_format != "channels_last"
        or None in sides
    ):
        return keras.layers.GlobalAveragePooling2D.call(self, inputs)
    # Keras writes the whole map in float32, and again for the gradient.
    means = tf.nn.avg_pool2d(inputs, sides, 1, "VALID")
    return means if self.keepdims else means[:, 0, 0]


def _maximum(self, _, inputs):
    if (
        not is_training(self)
        or self.data_format != "channels_last"
        or self.padding != "valid"
        or None in inputs.shape[1:]
        or len({*self.pool_size}) > 1
        or len({*self.strides}) > 1
        or self.pool_size[0] > _LARGEST_POOL
    ):
        return keras.layers.MaxPooling2D.call(self, inputs)
    return _max_pool(inputs, self.pool_size[0], self.strides[0])


def _max_pool(maps, size, stride):
    """Max-pools, with a gradient in one pass, compiled by XLA.

    XLA's own gradient on GPUs is a scatter, which takes several times as long.
    """
    back = _compiled(functools.partial(_max_pool_gradient, size, stride))

    @tf.custom_gradient
    def pool(maps):
        largest = tf.nn.max_pool2d(maps, size, stride, "VALID")
        return largest, lambda upstream: back(maps, largest, upstream)

    return pool(maps)


def _max_pool_gradient(size, stride, maps, largest, upstream):
    sides, pixels = maps.shape[1:3], largest.shape[1:3]
    tap = tf.fill(tf.shape(largest), tf.constant(-1, tf.int8))
    # Among equal pixels the first wins, as in TensorFlow's kernels.
    for k in reversed(range(size**2)):
        rows, columns = (
            slice(start, start + stride * (count - 1) + 1, stride)
            for start, count in zip(divmod(k, size), pixels, strict=True)
        )
        found = maps[:, rows, columns] == largest
        tap = tf.where(found, tf.constant(k, tf.int8), tap)

    blocks = [-(-side // stride) for side in sides]
    reach = -(-size // stride)  # windows that see a pixel, along an axis
    edge = [
        [reach - 1, block - count]
        for block, count in zip(blocks, pixels, strict=True)
    ]
    edge = [[0, 0], *edge, [0, 0]]
    tap = tf.pad(tap, edge, constant_values=-1)
    upstream = tf.pad(upstream, edge)

    def seen(tensor, back):
        """Returns the values of the windows `back` before each block."""
        rows, columns = (
            slice(reach - 1 - m, reach - 1 - m + block)
            for m, block in zip(back, blocks, strict=True)
        )
        return tensor[:, rows, None, columns, None]

    total = 0
    for back in np.ndindex(reach, reach):
        chosen = seen(tap, back) == _taps(size, stride, back)
        total += tf.where(chosen, seen(upstream, back), 0)
    shape = -1, *(stride * block for block in blocks), maps.shape[3]
    return tf.reshape(total, shape)[:, : sides[0], : sides[1]]


def _taps(size, stride, back):
    """Returns the tap of the window `back` before that sees each pixel.

    Returns:
        int8 `[1, 1, stride, 1, stride, 1]` for a block, -2 where no tap does.
    """
    rows, columns = (np.arange(stride) + stride * m for m in back)
    taps = size * rows[:, None] + columns
    taps[(rows[:, None] >= size) | (columns >= size)] = -2
    return tf.constant(taps[None, None, :, None, :, None], tf.int8)


def _kernel(value, derivative):
    """Returns a function with an elementwise value and derivative."""
    back = _compiled(lambda x, upstream: upstream * derivative(x))

    @tf.custom_gradient
    def function(x):
        return value(x), lambda upstream: back(x, upstream)

    return function


def _compiled(function):
    @tf.function(jit_compile=True)
    def wide(*tensors):
        # In 16 bits XLA rounds after each operation, which takes longer.
        dtype = tensors[0].dtype
        if dtype.size == 2:
            tensors = tuple(tf.cast(x, tf.float32) for x in tensors)
        return tf.cast(function(*tensors), dtype)

    def call(*tensors):
        # A direct call warns of retracing for every shape.
        specs = [tf.TensorSpec(x.shape, x.dtype) for x in tensors]
        return wide.get_concrete_function(*specs)(*tensors)

    return call


def _hard_silu(x):
    return x * (tf.nn.relu6(x + 3) / 6)


def _hard_silu_derivative(x):
    inner = tf.where(x < 3, x / 3 + 0.5, 1)
    return tf.where(x > -3, inner, 0)


def _silu_derivative(x):
    gate = tf.sigmoid(x)
    return gate * (1 + x * (1 - gate))


_KERNELS = {
    keras.activations.hard_silu: _kernel(
        _compiled(_hard_silu), _hard_silu_derivative
    ),
    # TensorFlow's own forward kernel is fused already.
    keras.activations.silu: _kernel(tf.nn.silu, _silu_derivative),
}


def _batch_norm(self, hardware, inputs, training=None, mask=None):
    if (
        not training
        or not self.trainable
        or self.synchronized
        or mask is not None
        or len(inputs.shape) != 4
        or self.axis not in (-1, 3)
    ):
        return _BATCH_NORM.call(self, inputs, training=training, mask=mask)
    width, dtype = inputs.shape[-1], inputs.dtype
    if dtype == tf.bfloat16 and width % 16 and not hardware.accelerated:
        # At such widths oneDNN is four times slower than in float32.
        inputs = tf.cast(inputs, tf.float32)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        # The kernel takes float32 only, also under a policy of 16 bits.
        scale=tf.cast(self.gamma, tf.float32)
        if self.scale
        else tf.ones([width]),
        offset=tf.cast(self.beta, tf.float32)
        if self.center
        else tf.zeros([width]),
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=self.epsilon,
        is_training=True,
    )
    outputs = tf.cast(outputs, dtype)
    if self.momentum == 1:
        return outputs
    # The kernel divides by n - 1, Keras by n; for n = 1 both give 0.
    size = inputs.shape.num_elements() or tf.cast(tf.size(inputs), tf.float32)
    variance *= 1 - width / size
    for running, value in (
        (self.moving_mean, mean),
        (self.moving_variance, variance),
    ):
        old = tf.cast(running, tf.float32)
        running.assign(
            tf.cast(
                self.momentum * old + (1 - self.momentum) * value, running.dtype
            )
        )
    return outputs
