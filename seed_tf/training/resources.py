"""What a run takes of the machine, and what the machine is."""

import contextlib
import pathlib
import platform
import resource

import keras
import tensorflow as tf

from seed_tf.version import __version__


def disk_needed(checkpoints, encoder):
    """Bytes that a run leaves at most, about."""
    # The last three, the best, and one in the making; encoder and backbone.
    return 5 * checkpoints.size() + 3 * 4 * encoder.count_params() + 2**20


def peak_memory():
    """Bytes of the process, and of each GPU, at their highest."""
    used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for gpu in tf.config.list_logical_devices("GPU"):
        used += tf.config.experimental.get_memory_info(gpu.name)["peak"]
    return used


def free_memory():
    """Bytes that this process may still take, or None if nobody knows.

    Of GPUs it is not known before they run out of it.
    """
    if tf.config.list_logical_devices("GPU"):
        return None
    free = []
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/meminfo") as f:
            lines = dict(line.split(":") for line in f)
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    with contextlib.suppress(OSError, ValueError):  # a container's limit
        limit, used = (
            int(pathlib.Path("/sys/fs/cgroup", name).read_text())
            for name in ("memory.max", "memory.current")
        )
        free.append(limit - used)
    return min(free, default=None)


def machine():
    """What a run ran on: dict of versions and devices."""
    devices = tf.config.list_physical_devices()
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "seed_tf": __version__,
        "devices": [d.name.removeprefix("/physical_device:") for d in devices],
        "replicas": tf.distribute.get_strategy().num_replicas_in_sync,
        "host": platform.platform(),
    }
