"""Where 16 bits are enough, and where the hardware gains by them.

Measured, see docs/performance.md.
"""

import contextlib
import functools
import pathlib

import keras
import tensorflow as tf

# Below, what 16 bits round off a cosine would move the teacher's softmax.
_SHARPEST = 0.01


def accelerated():
    """Whether there is a GPU or a TPU, and the processor does not compute."""
    return any(map(tf.config.list_physical_devices, ("GPU", "TPU")))


@functools.cache
def bfloat16_is_fast():
    """Whether the first device has matrix units for bfloat16.

    Of GPUs these are NVIDIA's from compute capability 8.0 on, of CPUs those
    with AVX512-BF16 or AMX, which oneDNN uses. Elsewhere, bfloat16 is converted
    to and fro and slower than float32.
    """
    if tf.config.list_physical_devices("TPU"):
        return True
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return details.get("compute_capability", (0, 0)) >= (8, 0)
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def default_student_policy():
    """The policy by which students train fastest and no worse.

    Weights, statistics of BatchNorm and losses are float32 always.

    Returns:
        "mixed_bfloat16" or "float32", a name of a Keras dtype policy.

    Example:

    >>> policy = seed_tf.acceleration.precision.default_student_policy()
    """
    return "mixed_bfloat16" if bfloat16_is_fast() else "float32"


def default_teacher_precision(teacher_temperature):
    """What a frozen teacher computes its targets in.

    Args:
        teacher_temperature: positive float.

    Returns:
        "bfloat16" where that is fast and the temperature is 0.01 or more, else
        "float32". What it costs: docs/performance.md.
    """
    sharp = teacher_temperature < _SHARPEST
    return "bfloat16" if bfloat16_is_fast() and not sharp else "float32"


@contextlib.contextmanager
def no_16_bits():
    """Within, what has no dtype of its own is float32, not in 16 bits.

    A frozen network is so whatever the policy of the one that is trained:
    under "mixed_bfloat16" even a loaded network would round its images, for
    files do not hold the policy of input layers and of models themselves.
    """
    policy = keras.mixed_precision.global_policy()
    if policy.compute_dtype in ("bfloat16", "float16"):
        keras.mixed_precision.set_global_policy("float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(policy)


def in_float32(model):
    """The model itself, or its copy in float32 if it computes in 16 bits.

    Weights are float32 under Keras's mixed policies: the copy has the same.
    """
    layers = model._flatten_layers()
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
