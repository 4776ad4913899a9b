"""Measures disk, memory and machine of a run."""

from __future__ import annotations

import contextlib
import importlib
import pathlib
import platform
import sys
from typing import Any

import keras
import tensorflow as tf

from seed_tf.training.checkpointing import Checkpoints
from seed_tf.version import __version__


def disk_needed(checkpoints: Checkpoints, encoder: keras.Model) -> int:
    """Estimates the most bytes that a run writes."""
    # Three newest checkpoints, the best, an unfinished one; encoder files.
    return 5 * checkpoints.size() + 3 * 4 * encoder.count_params() + 2**20


def peak_memory() -> int:
    """Returns the peak bytes of the process and of all GPUs."""
    used = 0
    with contextlib.suppress(ImportError):  # Windows
        resource: Any = importlib.import_module("resource")
        unit = 1 if sys.platform == "darwin" else 1024
        used = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for gpu in tf.config.list_logical_devices("GPU"):
        used += tf.config.experimental.get_memory_info(gpu.name)["peak"]
    return used


def free_memory() -> int | None:
    """Returns the bytes that this process may still take; None with GPUs."""
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


def machine() -> dict:
    """Returns versions and devices for `summary.json`."""
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
