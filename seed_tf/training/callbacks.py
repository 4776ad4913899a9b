"""What a run tells while it trains."""

import json
import time

import keras
from keras import ops


class Progress(keras.callbacks.Callback):
    """Prints a line now and then: step, metrics, images/s, time left.

    Args:
        total_steps: int, of the whole run.
        batch_size: int, images per step.
        every: float, seconds between lines.
        show: names of the metrics to print.
        write: where lines go, `print` or a function of one str.
    """

    async_safe = True

    def __init__(
        self,
        total_steps,
        batch_size,
        *,
        every=10.0,
        show=("loss", "gap", "accuracy", "cosine"),
        write=print,
    ):
        super().__init__()
        self._total, self._batch = total_steps, batch_size
        self._every, self._show, self._write = every, show, write
        self._steps = self._measured = 0
        self._start = self._last = None

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        self._steps += 1
        if self._start is None:
            # The first step traces and compiles; rates are taken after it.
            self._start = self._last = now
            return
        self._measured += 1
        if now - self._last < self._every and self._steps < self._total:
            return
        self._last = now
        seconds = (now - self._start) / self._measured
        left = seconds * (self._total - self._steps)
        values = "  ".join(
            f"{name} {logs[name]:.3f}" for name in self._show if name in logs
        )
        self._write(
            f"  step {self._steps}/{self._total}  {values}  "
            f"{self._batch / seconds:.0f} images/s  {duration(left)} left"
        )


class MetricsLog(keras.callbacks.Callback):
    """Appends one JSON object per epoch to a file: metrics, step, seconds.

    Args:
        path: file, made if missing; lines of an earlier part of the run stay.
    """

    def __init__(self, path):
        super().__init__()
        self._path = path

    def on_train_begin(self, logs=None):
        self._start = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        line = {
            "epoch": epoch + 1,
            "step": int(ops.convert_to_numpy(self.model.step)),
            "seconds": round(time.monotonic() - self._start, 2),
            "learning_rate": float(self.model.optimizer.learning_rate),
            **{name: float(value) for name, value in (logs or {}).items()},
        }
        with open(self._path, "a") as f:
            f.write(json.dumps(line) + "\n")


def duration(seconds):
    """Seconds as a person writes them: "42 s", "7 min 05 s", "3 h 20 min".

    >>> duration(425)
    '7 min 05 s'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
