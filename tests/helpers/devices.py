"""Two logical CPUs in every test process."""

import functools

import tensorflow as tf


def two_logical_cpus():
    """Splits the processor in two, for tests of several replicas.

    TensorFlow takes new logical devices only before it computes anything, and
    importing a test may compute. So conftest.py calls this first.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    if not tf.config.get_logical_device_configuration(cpu):
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )


@functools.cache
def two_replicas():
    """One strategy: a second one's collectives would meet the first one's."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
