"""Chooses 16 or 32 bits. docs/performance.md has the measurements."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
from absl import logging

from seed_tf import keras_internals
from seed_tf.acceleration import hardware as machine
from seed_tf.acceleration import patching
from seed_tf.encoders.encoder import Encoder
from seed_tf.grouped_batch_norm import GroupedBatchNormalization

# At a lower temperature, rounding a cosine to 16 bits moves the softmax.
_SHARPEST = 0.01

# Layers that may compute in 16 bits between images in float32 and features in
# float32. Others, such as a network's own normalisation of images, may not.
_SAFE_IN_16_BITS = (
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.AveragePooling2D,
    keras.layers.BatchNormalization,
    keras.layers.Concatenate,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dropout,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Identity,
    keras.layers.InputLayer,
    keras.layers.MaxPooling2D,
    keras.layers.Multiply,
    keras.layers.ReLU,
    keras.layers.Reshape,
    keras.layers.ZeroPadding2D,
)


def default_student_policy(hardware: machine.Hardware | None = None) -> str:
    """Returns the policy by which students train fastest and no worse.

    Weights, statistics of BatchNorm and losses are float32 always.

    Args:
        hardware: `Hardware`, by default this machine's.

    Returns:
        "mixed_bfloat16" or "float32", a name of a Keras dtype policy.

    Example:

    >>> policy = seed_tf.acceleration.precision.default_student_policy()
    """
    hardware = hardware or machine.current()
    return "mixed_bfloat16" if hardware.bfloat16 else "float32"


def default_teacher_precision(
    teacher_temperature: float, hardware: machine.Hardware | None = None
) -> str:
    """Returns the precision in which a frozen teacher computes its targets.

    Args:
        teacher_temperature: positive float.
        hardware: `Hardware`, by default this machine's.

    Returns:
        "bfloat16" where that is fast and the temperature is 0.01 or more, else
        "float32". docs/performance.md has the measured cost.
    """
    hardware = hardware or machine.current()
    sharp = teacher_temperature < _SHARPEST
    return "bfloat16" if hardware.bfloat16 and not sharp else "float32"


def layers_for_16_bits(network: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a trained network that may compute in 16 bits.

    Between images and embeddings in float32 these are all layers or none.
    There are none if a layer has another precision than float32, which its
    owner chose, or if a layer may be unsafe in 16 bits.

    Args:
        network: a functional or sequential keras.Model, or an `Encoder`,
            whose backbone and head are looked at.
    """
    parts = [network]
    if isinstance(network, Encoder):
        parts = [x for x in (network.backbone, network.head) if x is not None]
    if not all(is_functional(x) and stands_16_bits(x) for x in parts):
        return []
    return [layer for part in parts for layer in part.layers]


def is_functional(model: keras.Model) -> bool:
    """Whether a model is nothing but a graph of its layers.

    A subclass may have a `call` of its own, and so may a single layer.
    """
    if any(map(patching.is_patched, keras_internals.all_layers(model))):
        return False
    if isinstance(model, keras.Sequential):
        return model.built
    inputs = keras.Input((1,))
    return type(model).call is type(keras.Model(inputs, inputs)).call


def stands_16_bits(network: keras.Model) -> bool:
    """Whether a functional network in float32 may compute in 16 bits."""
    for layer in network.layers:
        kind, policy = type(layer), layer.dtype_policy.name
        if issubclass(kind, GroupedBatchNormalization):
            kind = kind.__bases__[-1]
        if kind not in _SAFE_IN_16_BITS or policy != "float32":
            logging.info(
                "%s keeps its precision: its layer %s (%s, %s) might not "
                "stand 16 bits.",
                network.name,
                layer.name,
                kind.__name__,
                policy,
            )
            return False
    return True


@contextlib.contextmanager
def no_16_bits() -> Iterator[None]:
    """Within the context, layers without a dtype of their own are float32.

    A frozen network must not depend on the policy of the trained network.
    Files do not hold the policy of input layers and of models themselves, so
    that under "mixed_bfloat16" a loaded network would round its images.
    """
    policy = keras.mixed_precision.global_policy()
    if policy.compute_dtype in ("bfloat16", "float16"):
        keras.mixed_precision.set_global_policy("float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(policy)


def in_float32(model: keras.Model) -> keras.Model:
    """Returns the model, or a copy in float32 if it computes in 16 bits.

    Keras's mixed policies hold weights in float32: the copy has the same.
    """
    layers = keras_internals.all_layers(model)
    if all(layer.compute_dtype == "float32" for layer in layers):
        return model
    config = keras.saving.serialize_keras_object(model)
    with no_16_bits():
        copy = keras.saving.deserialize_keras_object(_without_16_bits(config))
    copy.set_weights(model.get_weights())
    return copy


def _without_16_bits(config):
    if isinstance(config, list | tuple):
        return [_without_16_bits(value) for value in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return {**config, "config": {"name": "float32"}}
    return {key: _without_16_bits(value) for key, value in config.items()}
