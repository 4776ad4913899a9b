"""Saves a run: at intervals, at the best evaluation, at a signal."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras

from seed_tf.training.checkpointing import Checkpoints
from seed_tf.training.run_folder import EncoderFiles

_CHIEF_FIRST = 5  # seconds that other workers wait after a signal


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal ended the run. The run is saved and can be resumed.

    Attributes:
        signal: int, SIGINT or SIGTERM.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class Interruption:
    """Delays the first SIGINT or SIGTERM in a block; a second acts at once.

    Python handles signals in the main thread only. In another thread, the
    block delays nothing.

    Attributes:
        signal: int, the received signal, or None.
        time: float, the time of the signal, from `time.monotonic`.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> Interruption:
        self.signal: int | None = None
        self.time = 0.0
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                s: signal.signal(s, self._note) for s in self.signals
            }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.signal, self.time = number, time.monotonic()
        for s, handler in self._handlers.items():
            signal.signal(s, handler)
        name = signal.Signals(number).name
        # The signal may have interrupted `print`.
        os.write(1, f"{name}: finishing this step, then saving.\n".encode())


class Best:
    """The best evaluation so far. Without a measure, every step is the best.

    Args:
        monitor: name of the measure, larger is better, or None.
        patience: evaluations without a new best before training stops; 0 for
            never.
        lines: earlier lines of `metrics.jsonl`.
    """

    def __init__(
        self, monitor: str | None, patience: int, lines: Iterable[dict]
    ):
        self.monitor, self._patience = monitor, patience
        self._values: list[tuple[int, float]] = []
        for line in lines:
            self.add(line["step"], line)

    def add(self, step: int, logs: dict) -> bool:
        """Adds an evaluation; returns whether it is the best so far."""
        if self.monitor in logs:
            self._values.append((step, logs[self.monitor]))
            return self.step == step
        return self.monitor is None

    @property
    def step(self) -> int | None:
        return self._best[0]

    @property
    def value(self) -> float | None:
        return self._best[1]

    @property
    def _best(self):
        return max(self._values, key=lambda x: x[1], default=(None, None))

    @property
    def lost_patience(self) -> bool:
        since = [step for step, _ in self._values if step > (self.step or 0)]
        return 0 < self._patience <= len(since)


class Save(keras.callbacks.Callback):
    """Saves at intervals, at a new best, at the end and at a signal.

    Place this callback after `MetricsLog`: then every checkpoint has a line in
    the log.

    Args:
        checkpoints: where to save.
        files: files to write at a new best.
        best: the best evaluation so far.
        interruption: the signal to watch for.
        seconds: time between checkpoints.
        chief: whether this worker writes files.
        on_saved: function called after a checkpoint.
        on_evaluated: function called after an epoch, at most once a minute,
            and at the end of training; or None.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        files: EncoderFiles,
        best: Best,
        interruption: Interruption,
        *,
        seconds: float,
        chief: bool,
        on_saved: Callable[[], Any],
        on_evaluated: Callable[[], Any] | None,
    ):
        super().__init__()
        self._checkpoints, self._files = checkpoints, files
        self._best, self._interruption = best, interruption
        self._seconds, self._chief = seconds, chief
        self._on_saved = on_saved
        self._on_evaluated, self._reported = on_evaluated, time.monotonic()
        self._saved = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.params["steps"]:
            return  # `on_epoch_end` saves, after the evaluation
        if self._due or self._interruption.signal:
            self._save()
        self._stop_if_interrupted()

    def on_epoch_end(self, epoch, logs=None):
        best = self._best.add(int(self.model.step.numpy()), logs)
        self.model.stop_training = self._best.lost_patience
        if (
            self._due
            or (best and self._best.monitor)
            or self.model.stop_training
            or self._interruption.signal
        ):
            self._save(encoder=best)
        if time.monotonic() - self._reported > 60:
            self._report()
        self._stop_if_interrupted()

    def on_train_end(self, logs=None):
        self._save(encoder=self._best.monitor is None)
        self._report()

    @property
    def _due(self):
        return time.monotonic() - self._saved >= self._seconds

    def _save(self, encoder=False):
        if self._chief:
            if encoder:
                self._files.save()
            step = int(self.model.step.numpy())
            self._checkpoints.save(step, self._best.step)
            self._on_saved()
        self._saved = time.monotonic()

    def _report(self):
        if self._on_evaluated and self._chief:
            self._on_evaluated()
        self._reported = time.monotonic()

    def _stop_if_interrupted(self):
        if not self._interruption.signal:
            return
        waited = time.monotonic() - self._interruption.time
        if not self._chief and waited < _CHIEF_FIRST:
            # The chief must stop first and save: it cannot finish a step
            # after another worker has left.
            return
        step = int(self.model.step.numpy())
        saved = ", which is saved" if self._chief else ""
        raise Stopped(
            f"Stopped after step {step}{saved}.", self._interruption.signal
        )
