"""oneDNN, Intel's kernels, which TensorFlow leaves off on many processors.

On x86 without AVX512-VNNI, TensorFlow 2.21 uses oneDNN only if an environment
variable asks for it when TensorFlow is imported.
"""

from __future__ import annotations

import os
import sys

from absl import logging

_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


def enable() -> None:
    """Asks for oneDNN, unless the user has set the variable.

    Without effect once TensorFlow is imported.
    """
    if "tensorflow" not in sys.modules:
        os.environ.setdefault(_VARIABLE, "1")


def warn_if_off() -> None:
    """Logs a warning, once, if oneDNN is off because `enable` came too late."""
    # This extension module has no public counterpart in TensorFlow 2.21.
    from tensorflow.python.util import _pywrap_util_port as built

    if (
        _VARIABLE not in os.environ
        and built.IsX86Available()
        and sys.platform != "darwin"  # built without oneDNN
        and not built.IsMklEnabled()
    ):
        logging.log_first_n(
            logging.WARNING,
            "oneDNN is off, since TensorFlow was imported before seed_tf: "
            "steps take 1.4 to 2.5 times as long on this processor. Import "
            f"seed_tf first, or set the environment variable {_VARIABLE}=1.",
            1,
        )
