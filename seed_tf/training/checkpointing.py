"""Checkpoints of a model in training, which survive a killed process."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
import shutil

import numpy as np
import tensorflow as tf
from absl import logging

from seed_tf.io.files import atomic_folder
from seed_tf.io.text import reason
from seed_tf.trainer import NOT_FINITE, Trainer

_CHECKPOINT = re.compile(r"step-\d{9}")
# What reading a damaged checkpoint raises.
_DAMAGE = (OSError, IndexError, tf.errors.OpError)


class Checkpoints:
    """Checkpoints of a model in training, one folder each, whole or absent.

    A checkpoint holds the model's `state` (all but a frozen teacher) and
    checksums, as `tf.train.Checkpoint` writes them. A checkpoint gets its name
    after it is on the disk: a killed process leaves no partial checkpoint.

    Args:
        folder: folder of the checkpoints, made if missing.
        model: a compiled `SEED` or `MoCo`.
        keep: number of newest checkpoints to keep beside the best.
    """

    def __init__(self, folder: str, model: Trainer, *, keep: int = 3):
        self._folder, self._keep = folder, keep
        # A restored checkpoint must find all variables.
        if not model.optimizer.built:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        self._state = model.state
        self._checkpoint = tf.train.Checkpoint(**self._state)

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        if not os.path.isdir(self._folder):
            return []
        names = filter(_CHECKPOINT.fullmatch, os.listdir(self._folder))
        return sorted(int(name[5:]) for name in names)

    def save(self, step: int, best: int | None = None) -> None:
        """Writes the checkpoint of a step, and removes old checkpoints.

        Args:
            step: number of steps trained.
            best: step of the best checkpoint, which stays.

        Raises:
            OSError: if writing fails. Earlier checkpoints stay.
            FloatingPointError: if a weight is not finite. The loss
                shows it only one step later.
        """
        for variable in self._variables():
            value = variable.value
            if value.dtype.is_floating and not np.all(tf.math.is_finite(value)):
                raise FloatingPointError(
                    f"{variable.path} became NaN or infinite by step {step}, "
                    f"which is not saved. {NOT_FINITE}"
                )
        path = self._path(step)
        try:
            if not os.path.exists(path):
                with atomic_folder(path) as unfinished:
                    self._checkpoint.write(os.path.join(unfinished, "state"))
        except (OSError, tf.errors.OpError) as error:
            kept = ", ".join(map(str, self.steps)) or "none"
            raise OSError(
                f"The checkpoint of step {step} could not be written to "
                f"{self._folder!r}: {reason(error)}. Checkpoints of steps "
                f"{kept} are intact: make room, then give the same command."
            ) from error
        for old in self.steps[: -self._keep]:
            if old != best:
                shutil.rmtree(self._path(old), ignore_errors=True)

    def restore(self) -> int:
        """Restores the newest intact checkpoint.

        Damaged checkpoints are renamed to `*.damaged`, with a warning.

        Returns:
            The restored step; 0 if there is no checkpoint.

        Raises:
            ValueError: if a checkpoint is of another model, or if all
                checkpoints are damaged.
        """
        for path in glob.glob(os.path.join(self._folder, "*.unfinished")):
            shutil.rmtree(path, ignore_errors=True)  # of a killed process
        damaged = []
        for step in reversed(self.steps):
            path = self._path(step)
            try:
                status = self._checkpoint.read(os.path.join(path, "state"))
                status.assert_consumed()
                return step
            except _DAMAGE as error:
                logging.warning(
                    "Checkpoint %s is damaged (%s). The previous checkpoint "
                    "is tried.",
                    path,
                    reason(error),
                )
                damaged.append(step)
                with contextlib.suppress(OSError):
                    os.rename(path, f"{path}.damaged")
            except (AssertionError, ValueError) as error:
                raise ValueError(
                    f"The checkpoint {path!r} is of another model: {error}"
                ) from error
        if damaged:
            raise ValueError(
                f"No checkpoint in {self._folder!r} is whole: steps "
                f"{', '.join(map(str, damaged))} are damaged. Start anew with "
                "`overwrite=True`."
            )
        return 0

    def size(self) -> int:
        """Approximate size of a checkpoint in bytes."""
        return sum(
            math.prod(v.shape) * tf.as_dtype(v.dtype).size
            for v in self._variables()
        )

    def _variables(self):
        parts = [p for p in self._state.values() if hasattr(p, "variables")]
        return [variable for part in parts for variable in part.variables]

    def _path(self, step):
        return os.path.join(self._folder, f"step-{step:09d}")
