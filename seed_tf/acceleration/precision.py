"""Chooses 16 or 32 bits. docs/performance.md has the measurements."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from seed_tf import keras_internals
from seed_tf.acceleration import hardware as machine

# At a lower temperature, rounding a cosine to 16 bits moves the softmax.
_SHARPEST = 0.01


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
