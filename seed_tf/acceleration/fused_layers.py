"""Training kernels in place of rows of elementary operations.

Each operation reads and writes whole feature maps, and that is what it costs.
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
_LARGEST_POOL = 11  # whose taps 8 bits tell apart


def replacement(
    layer: keras.layers.Layer, hardware: Hardware
) -> tuple[str, Callable] | None:
    """Returns what a layer may compute faster in training.

    The function stands in for a method of the layer. Outputs, gradients and
    running statistics are the same up to rounding. In inference, and on inputs
    that no faster kernel exists for, the function calls the layer's own
    method.

    BatchNorm goes through TensorFlow's fused kernel, where Keras computes
    moments, normalisation and their gradients one by one. Activations have one
    kernel forward and one back, compiled by XLA. See `convolutions` for
    convolutions. Averages over maps in bfloat16 and, on accelerators, the
    gradients of max-pooling have kernels of their own.

    Args:
        layer: keras.layers.Layer.
        hardware: `Hardware` that the layer trains on.

    Returns:
        pair of the method's name and the function, or None for a layer of
        another class, a subclass that computes something else included.
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
    """`tf.nn.max_pool2d` with a gradient in one pass, compiled by XLA.

    XLA's own gradient on GPUs, a scatter, takes several times as long.
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
    # Of equal ones the first, as TensorFlow's kernels have it.
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
        """What the windows `back` before hold, one value for each block."""
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
    """Which tap of the window `back` before sees each pixel of a block.

    Returns:
        int8 `[1, 1, stride, 1, stride, 1]`, -2 where none does.
    """
    rows, columns = (np.arange(stride) + stride * m for m in back)
    taps = size * rows[:, None] + columns
    taps[(rows[:, None] >= size) | (columns >= size)] = -2
    return tf.constant(taps[None, None, :, None, :, None], tf.int8)


def _kernel(value, derivative):
    """A function of tensors, by its elementwise value and derivative."""
    back = _compiled(lambda x, upstream: upstream * derivative(x))

    @tf.custom_gradient
    def function(x):
        return value(x), lambda upstream: back(x, upstream)

    return function


def _compiled(function):
    @tf.function(jit_compile=True)
    def wide(*tensors):
        # XLA would round after each operation, which takes longer.
        dtype = tensors[0].dtype
        if dtype.size == 2:
            tensors = tuple(tf.cast(x, tf.float32) for x in tensors)
        return tf.cast(function(*tensors), dtype)

    def call(*tensors):
        # Called as it is, TensorFlow would warn of a trace for every shape.
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
    # Forward it is one kernel as it is.
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
        # oneDNN takes four times as long for such widths as in float32.
        inputs = tf.cast(inputs, tf.float32)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=self.gamma if self.scale else tf.ones([width]),
        offset=self.beta if self.center else tf.zeros([width]),
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=self.epsilon,
        is_training=True,
    )
    outputs = tf.cast(outputs, dtype)
    if self.momentum == 1:
        return outputs
    # The kernel divides the variance by n - 1, and Keras by n.
    # Of one value both are 0.
    size = inputs.shape.num_elements() or tf.cast(tf.size(inputs), tf.float32)
    variance *= 1 - width / size
    for running, value in (
        (self.moving_mean, mean),
        (self.moving_variance, variance),
    ):
        running.assign(self.momentum * running + (1 - self.momentum) * value)
    return outputs
