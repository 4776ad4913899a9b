"""A frozen network rewritten: the same outputs from fewer operations."""

from __future__ import annotations

import collections
import functools

import keras
import tensorflow as tf
from absl import logging
from keras import ops

from seed_tf import keras_internals
from seed_tf.acceleration import convolutions, precision
from seed_tf.acceleration import hardware as machine
from seed_tf.encoders.encoder import Encoder
from seed_tf.encoders.tokens import PoolTokens, Resize


class FoldedTeacher:
    """An inference-only copy of a network, BatchNorm folded into convolutions.

    With its stored statistics BatchNorm is an affine map of channels. If it
    alone follows a convolution, the convolution's weights can absorb it:

        w <- w * gamma / sqrt(variance + epsilon)
        b <- beta + (b - mean) * gamma / sqrt(variance + epsilon)

    The copy follows the network's weights by `update`. Keras does not track
    it: it is neither saved nor counted.

    Args:
        model: an `Encoder` whose backbone is a functional or sequential
            keras.Model, or such a model itself. Other models run unfolded.
        dtype: "float32", or "bfloat16" for the backbone's weights and
            arithmetic. A backbone that is not in float32, or has layers that
            are unsafe in bfloat16, keeps its precision.
        hardware: `Hardware`, by default this machine's.

    Attributes:
        dtype: str, compute dtype of the backbone.

    Example:

    >>> encoder = seed_tf.Encoder("resnet18", stem="cifar")
    >>> frozen = seed_tf.acceleration.FoldedTeacher(encoder)
    >>> frozen(np.zeros((1, 32, 32, 3), "float32")).shape
    TensorShape([1, 128])
    """

    def __init__(
        self,
        model: keras.Model,
        dtype: str = "float32",
        hardware: machine.Hardware | None = None,
    ):
        self._model = model
        is_encoder = isinstance(model, Encoder)
        self._original = model.backbone if is_encoder else model
        network = _functional(self._original)
        if network is None:
            logging.warning(
                "%s runs as it is: BatchNorm is folded only in functional "
                "models whose layers have no methods of their own.",
                self._original.name,
            )
        if network is None or _is_wrapped(network):
            self._copy, self._whole = None, model
            self.dtype = model.compute_dtype
            return
        shorter = dtype != "float32" and precision.stands_16_bits(network)
        self._pairs = _pairs(network)
        with precision.no_16_bits():
            self._copy = self._whole = _clone(
                network,
                self._pairs,
                dtype if shorter else None,
                hardware or machine.current(),
            )
            if is_encoder:
                config = model.get_config() | {"backbone": self._copy}
                self._whole = Encoder(**config)
        self.dtype = self._copy.layers[-1].compute_dtype
        self.update()

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Computes `model(images, training=False)`."""
        return self._whole(images, training=False)

    @property
    def folded(self) -> bool:
        """Whether the network could be copied and folded."""
        return self._copy is not None

    @property
    def variables(self) -> list:
        """Variables of the copy."""
        return [] if self._copy is None else self._whole.variables

    def update(self) -> None:
        """Copies the present weights of the model."""
        if self._copy is None:
            return
        if self._whole is not self._copy and self._model.head is not None:
            _copy_weights(self._model.head, self._whole.head)
        absorbed = list(self._pairs.values())
        for layer in self._original.layers:
            if not layer.weights or layer in absorbed:
                continue
            copy = self._copy.get_layer(layer.name)
            if layer in self._pairs:
                _fold(layer, self._pairs[layer], copy)
            else:
                _copy_weights(layer, copy)


class _Nothing(keras.layers.Layer):
    """Replaces an absorbed BatchNorm, and takes its arguments."""

    def call(self, inputs, training=None, mask=None):
        return inputs


def _functional(model):
    """Returns a model that can be cloned layer by layer, or None."""
    if not precision.is_functional(model):
        return None  # a clone would lose methods of single layers
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0])
    return model


def _is_wrapped(network):
    """Whether there is nothing to fold around a transformer's own layers."""
    return any(isinstance(x, Resize | PoolTokens) for x in network.layers)


def _pairs(network):
    """Maps convolutions to the BatchNorm that each can absorb."""
    nodes = keras_internals.nodes(network)
    sources = {id(y): x.operation for x in nodes for y in x.output_tensors}
    users = collections.defaultdict(list)
    for node in nodes:
        for tensor in node.input_tensors:
            users[sources[id(tensor)]].append(node.operation)
    for tensor in network.outputs:
        users[sources[id(tensor)]].append(None)
    calls = collections.Counter(node.operation for node in nodes)
    pairs = {}
    for conv in network.layers:
        norm = users[conv][0] if len(users[conv]) == 1 else None
        if (
            type(conv) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
            and conv.activation is keras.activations.linear
            and conv.data_format == "channels_last"
            and isinstance(norm, keras.layers.BatchNormalization)
            and norm.axis in (-1, 3)
            and calls[norm] == calls[conv] == 1
        ):
            pairs[conv] = norm
    return pairs


def _clone(network, pairs, dtype, hardware):
    """Returns the network without absorbed layers, in `dtype` if given."""
    absorbed = list(pairs.values())
    policy = dtype
    strategy = tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        # Weights stay in float32: the broadcast of a new variable's value to
        # other workers does not support bfloat16.
        policy = f"mixed_{dtype}"

    def clone(layer):
        if layer in absorbed:
            return _Nothing(name=layer.name, dtype=dtype or layer.dtype_policy)
        config = layer.get_config()
        if "kernel_initializer" in config:
            config["kernel_initializer"] = "zeros"  # `update` overwrites it
        if layer in pairs:
            config["use_bias"] = True
        if dtype:
            config["dtype"] = policy
        copy = type(layer).from_config(config)
        if type(copy) is keras.layers.Conv2D:
            copy.convolution_op = functools.partial(
                convolutions.convolution, copy, hardware=hardware
            )
        return copy

    return keras.models.clone_model(network, clone_function=clone)


def _fold(conv, norm, copy):
    factor = ops.rsqrt(norm.moving_variance + norm.epsilon)
    if norm.scale:
        factor *= norm.gamma
    bias = 0 if conv.bias is None else conv.bias
    bias = (bias - norm.moving_mean) * factor
    if norm.center:
        bias += norm.beta
    # [h, w, in, out], or for a depthwise convolution [h, w, in, multiplier].
    kernel = ops.convert_to_tensor(conv.kernel)
    if isinstance(conv, keras.layers.DepthwiseConv2D):
        factor = ops.reshape(factor, kernel.shape[2:])
    copy.kernel.assign(ops.cast(kernel * factor, copy.kernel.dtype))
    copy.bias.assign(ops.cast(bias, copy.bias.dtype))


def _copy_weights(source, target):
    for old, new in zip(source.weights, target.weights, strict=True):
        new.assign(ops.cast(old, new.dtype))
