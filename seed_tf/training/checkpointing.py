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

from seed_tf.io.files import atomic_folder, reason
from seed_tf.trainer import NOT_FINITE

_CHECKPOINT = re.compile(r"step-\d{9}")
# What reading a damaged checkpoint raises.
_DAMAGE = (OSError, IndexError, tf.errors.OpError)


class Checkpoints:
    """Checkpoints of a model in training, one folder each, whole or absent.

    A checkpoint holds the model's `state` (all but a frozen teacher), as
    `tf.train.Checkpoint` writes it, with its checksums. It is written beside
    the others, flushed to the disk, and given its name last, so that a process
    killed at any moment leaves no half of one.

    Args:
        folder: made if missing.
        model: a compiled `SEED` or `MoCo`.
        keep: int, how many of the newest stay; the best stays besides.
    """

    def __init__(self, folder, model, *, keep=3):
        self._folder, self._keep = folder, keep
        # Variables that are made later would wait for a restored value.
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
        """Writes the checkpoint of a step, and removes those no longer kept.

        Args:
            step: int, steps trained.
            best: int, step whose checkpoint is kept as the best.

        Raises:
            OSError: if the disk is full or fails; others stay as they are.
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
        """Restores the newest checkpoint that is whole.

        Damaged ones are renamed to `*.damaged`, with a warning.

        Returns:
            int, the step to go on from; 0 if there is no checkpoint.

        Raises:
            ValueError: if a checkpoint is whole but of another model, or none
                is whole.
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
                    "Checkpoint %s is damaged (%s) and set aside; the one "
                    "before it is used.",
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
        """Bytes of a checkpoint, about."""
        return sum(
            math.prod(v.shape) * tf.as_dtype(v.dtype).size
            for v in self._variables()
        )

    def _variables(self):
        parts = [p for p in self._state.values() if hasattr(p, "variables")]
        return [variable for part in parts for variable in part.variables]

    def _path(self, step):
        return os.path.join(self._folder, f"step-{step:09d}")
