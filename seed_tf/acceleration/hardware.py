"""Describes the machine, on which every acceleration depends."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A machine, as far as kernels and precision depend on it.

    Attributes:
        accelerated: bool, whether a GPU or a TPU computes, not the processor.
        bfloat16: bool, whether the computing device has matrix units for
            bfloat16. Other devices convert to float32 and back, slowly.
    """

    accelerated: bool = False
    bfloat16: bool = False

    def __str__(self):
        device = "accelerator" if self.accelerated else "processor"
        return f"{device} {'with' if self.bfloat16 else 'without'} bfloat16"


# Values of ONEDNN_MAX_CPU_ISA that leave oneDNN no bfloat16.
_WITHOUT_BFLOAT16 = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI"),
)

_assumed: contextvars.ContextVar[Hardware | None] = contextvars.ContextVar(
    "seed_tf_hardware", default=None
)


def current() -> Hardware:
    """Returns the hardware that `assume` names, or else this machine's."""
    accelerators = map(tf.config.list_physical_devices, ("GPU", "TPU"))
    return _assumed.get() or Hardware(any(accelerators), _bfloat16_is_fast())


@contextlib.contextmanager
def assume(hardware: Hardware) -> Iterator[None]:
    """Within the context, `current` returns `hardware`, in this thread.

    It serves steps that are traced here and run elsewhere, and tests.

    Example:

    >>> from seed_tf.acceleration import hardware
    >>> with hardware.assume(hardware.Hardware(accelerated=True)):
    ...     print(hardware.current())
    accelerator without bfloat16
    """
    token = _assumed.set(hardware)
    try:
        yield
    finally:
        _assumed.reset(token)


@functools.cache
def _bfloat16_is_fast():
    """Whether the first device has matrix units for bfloat16.

    Among GPUs these are NVIDIA's from compute capability 8.0 on; among CPUs
    those with AVX512-BF16 or AMX, where oneDNN may use it.
    """
    if tf.config.list_physical_devices("TPU"):
        return True
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return details.get("compute_capability", (0, 0)) >= (8, 0)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    if limit.upper() in _WITHOUT_BFLOAT16:
        return False
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
