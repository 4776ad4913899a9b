"""SEED, self-supervised distillation of small image encoders, in Keras.

Shapes in all docstrings: B images in a batch, H x W pixels, D the width of an
embedding, C of pooled features, K the size of the queue. Images are RGB in
[0, 255].
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

from seed_tf import onednn
from seed_tf.version import __version__

if TYPE_CHECKING:
    from seed_tf import (
        checkpoints,
        datasets,
        evaluation,
        export,
        losses,
        random,
        recipes,
        search,
        teachers,
        training,
        view_cache,
        views,
    )
    from seed_tf.acceleration import precision
    from seed_tf.embedding_queue import EmbeddingQueue
    from seed_tf.encoders import Encoder, backbone
    from seed_tf.moco import MoCo
    from seed_tf.runs import distill, pretrain
    from seed_tf.seed import SEED

__all__ = [
    "Encoder",
    "EmbeddingQueue",
    "MoCo",
    "SEED",
    "__version__",
    "backbone",
    "checkpoints",
    "datasets",
    "distill",
    "evaluation",
    "export",
    "losses",
    "precision",
    "pretrain",
    "random",
    "recipes",
    "search",
    "teachers",
    "training",
    "view_cache",
    "views",
]

# Where public names stand that are not modules of this package. All names are
# imported at first use: matplotlib, KerasCV and other packages then load only
# for those who use them.
_MODULES = {
    "EmbeddingQueue": "seed_tf.embedding_queue",
    "Encoder": "seed_tf.encoders",
    "MoCo": "seed_tf.moco",
    "SEED": "seed_tf.seed",
    "backbone": "seed_tf.encoders",
    "distill": "seed_tf.runs",
    "precision": "seed_tf.acceleration",
    "pretrain": "seed_tf.runs",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command_line() -> bool:
    """Whether this process is `seed-tf` or `python -m seed_tf`."""
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    if program == "-m":  # as long as Python looks for the module to run
        return sys.orig_argv[-len(sys.argv)] == __name__
    return os.path.basename(program).startswith("seed-tf")


def _check_backend() -> None:
    """Raises ImportError unless Keras computes with TensorFlow."""
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend == "tensorflow" or "keras" in sys.modules:
        # Keras may have been imported before, or read its keras.json.
        backend = importlib.import_module("keras").backend.backend()
    if backend != "tensorflow":
        raise ImportError(
            "seed_tf needs Keras with the TensorFlow backend. Received: "
            f"{backend!r}. Set KERAS_BACKEND=tensorflow before Keras is first "
            "imported."
        )


def _register_classes() -> None:
    """Imports the classes that Keras finds by name when it loads a file."""
    _check_backend()
    encoders = ("encoders", "encoders.classifier", "encoders.tokens")
    for name in (*encoders, "losses", "optimizers", "moco", "seed"):
        importlib.import_module(f"{__name__}.{name}")


onednn.enable()
# `import seed_tf; keras.models.load_model("student.keras")` must work: Keras
# knows a class once its module has been imported. Only the command line waits:
# it imports this package to find its commands, and answers `--help` without
# TensorFlow. It calls `_register_classes` before it runs a command.
# PyTorch's networks (`seed_tf.conversion.torch_networks`) can be imported where
# there is no TensorFlow.
if not _is_command_line() and importlib.util.find_spec("tensorflow"):
    _register_classes()
