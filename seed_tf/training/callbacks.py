"""Callbacks that print, evaluate and log during training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.framework.summary_pb2 import SummaryMetadata

from seed_tf.io.files import atomic_write, read_json_lines
from seed_tf.io.units import duration


class Progress(keras.callbacks.Callback):
    """Prints step, metrics, images per second and the time left.

    The first line follows the first step, which takes the longest.

    Args:
        total_steps: steps of the whole run.
        batch_size: images per step.
        every: seconds between lines.
        show: names of the metrics to print.
        log: function of one str, which gets each line.
    """

    async_safe = True

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        *,
        every: float = 10.0,
        show: Sequence[str] = ("loss", "gap", "accuracy", "cosine"),
        log: Callable[[str], Any] = print,
    ):
        super().__init__()
        self._total, self._batch = total_steps, batch_size
        self._every, self._show, self._log = every, show, log
        self._steps = self._measured = 0
        self._start: float | None = None
        self._last: float | None = None

    def on_train_begin(self, logs=None):
        self._steps = int(self.model.step.numpy())
        self._start = None

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        self._steps += 1
        if self._start is None:
            # Rates leave out the first step, which traces and compiles.
            self._start, self._measured = now, 0
            if self._last is None:
                self._last = now
                self._log(self._line(logs))
            return
        self._measured += 1
        if now - self._last < self._every and self._steps < self._total:
            return
        self._last = now
        seconds = (now - self._start) / self._measured
        left = seconds * (self._total - self._steps)
        self._log(
            f"{self._line(logs)}  {self._batch / seconds:.0f} images/s  "
            f"{duration(left)} left"
        )

    def _line(self, logs):
        values = "  ".join(
            f"{name} {logs[name]:.3f}" for name in self._show if name in logs
        )
        return f"  step {self._steps}/{self._total}  {values}"


class Evaluate(keras.callbacks.Callback):
    """Adds measurements to the logs of some epochs.

    Place this callback before the callbacks that read the measurements.

    Args:
        measures: dict of names to pairs: a function that measures, and the
            number of epochs between measurements.
        epochs: epochs of the whole run. The last epoch is always measured.
    """

    def __init__(
        self,
        measures: Mapping[str, tuple[Callable[[], float], int]],
        epochs: int,
    ):
        super().__init__()
        self._measures, self._epochs = measures, epochs

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self._epochs
        for name, (measure, every) in self._measures.items():
            if last or (epoch + 1) % every == 0:
                logs[name] = measure()


def read_metrics(path: str) -> list[dict[str, Any]]:
    """Reads the lines of a `MetricsLog`, without damaged lines."""
    return read_json_lines(path, ("step", "seconds"))


class MetricsLog(keras.callbacks.Callback):
    """Writes metrics to a file of JSON lines and to TensorBoard events.

    A line has `step`, `epoch` (a fraction), `seconds` of training,
    `images_per_second`, `waiting` (the share of time spent waiting for data),
    `learning_rate`, and the mean of each metric since the previous line. The
    last line of an epoch adds the measurements of `Evaluate`.

    A resumed run removes the lines that follow its checkpoint.

    Args:
        path: the file of JSON lines.
        batch_size: images per step.
        steps_per_epoch: steps in an epoch.
        every: steps between lines.
        events: folder for TensorBoard events, or None.
    """

    def __init__(
        self,
        path: str,
        *,
        batch_size: int,
        steps_per_epoch: int,
        every: int = 50,
        events: str | None = None,
    ):
        super().__init__()
        self._path, self._batch, self._every = path, batch_size, every
        self._steps_per_epoch = steps_per_epoch
        self._sums: dict[str, float] = {}
        self._events = events and tf.summary.create_file_writer(events)

    def on_train_begin(self, logs=None):
        self._step = int(self.model.step.numpy())
        lines = read_metrics(self._path)
        kept = [line for line in lines if line["step"] <= self._step]
        with atomic_write(self._path) as path, open(path, "w") as f:
            f.writelines(json.dumps(line) + "\n" for line in kept)
        self._seconds = kept[-1]["seconds"] if kept else 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self._begin_window({})

    def on_train_batch_begin(self, batch, logs=None):
        self._waited += time.monotonic() - self._idle

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        self._steps += 1
        self._idle = time.monotonic()
        # Keras logs means over the steps of this `fit` in the epoch.
        self._sums = {name: (batch + 1) * logs[name] for name in logs}
        at_end = batch + 1 == self.params["steps"]  # on_epoch_end follows
        if self._step % self._every == 0 and not at_end:
            self._write({})

    def on_epoch_end(self, epoch, logs=None):
        measured = {k: v for k, v in logs.items() if k not in self._sums}
        self._write(measured)

    def on_train_end(self, logs=None):
        if self._events:
            self._events.flush()

    def _begin_window(self, sums):
        # Waiting counts from here too: it is a share of this window's seconds.
        self._start = self._idle = time.monotonic()
        self._steps, self._waited = 0, 0.0
        self._sums_before = sums

    def _write(self, measured):
        seconds = self._idle - self._start  # without evaluation
        self._seconds += seconds
        means = {
            name: (total - self._sums_before.get(name, 0.0)) / self._steps
            for name, total in self._sums.items()
        }
        line = {
            "step": self._step,
            "epoch": round(self._step / self._steps_per_epoch, 4),
            "seconds": round(self._seconds, 3),
            "images_per_second": round(self._batch * self._steps / seconds, 2),
            "waiting": round(self._waited / seconds, 4),
            "learning_rate": float(self.model.optimizer.learning_rate),
            **means,
            **{name: float(value) for name, value in measured.items()},
        }
        with open(self._path, "a") as f:
            f.write(json.dumps(line) + "\n")
        if self._events:
            self._write_events(line)
        self._begin_window(self._sums)

    def _write_events(self, line):
        # `tf.summary.scalar` does the same, but needs TensorBoard.
        plugin = SummaryMetadata.PluginData(plugin_name="scalars")
        with self._events.as_default(step=line["step"]):
            for name, value in line.items():
                tf.summary.write(
                    name,
                    tf.constant(value, tf.float32),
                    metadata=SummaryMetadata(plugin_data=plugin),
                )
