"""A training run that survives: resumed, evaluated, kept, reported."""

import contextlib
import os
import signal
import time

import keras

from seed_tf.io.files import read_json_lines
from seed_tf.training import cost, devices
from seed_tf.training.callbacks import (
    Evaluate,
    MetricsLog,
    Progress,
)
from seed_tf.training.resources import disk_needed, machine
from seed_tf.training.run_folder import (
    Checkpoints,
    EncoderFiles,
)

CHIEF_FIRST = 5  # seconds that other workers wait when told to stop


class Stopped(Exception):  # noqa: N818 - it is no error
    """A run was told to stop, and has saved what it needs to go on.

    Attributes:
        signal: int, SIGINT or SIGTERM.
    """

    def __init__(self, message, signal):
        super().__init__(message)
        self.signal = signal


def train(
    model,
    load,
    *,
    encoder,
    epochs,
    steps_per_epoch,
    batch_size,
    folder,
    targets_cached=False,
    measures=None,
    monitor=None,
    patience=0,
    checkpoint_minutes=10.0,
    summary=None,
    on_evaluated=None,
    log=print,
):
    """Trains a compiled model to its end, from where an earlier try stopped.

    Writes into the folder as it goes: `metrics.jsonl` and TensorBoard events,
    checkpoints (the last three and the best), `student.keras` and
    `backbone.keras` (of the best evaluation, or the newest where there is
    none), and at the end, however it comes, `summary.json`. SIGTERM and SIGINT
    end it after the step in progress, saved.

    Args:
        model: a compiled `SEED` or `MoCo`, in its starting state.
        load: function of a step to the `tf.data.Dataset` of all batches from
            there to the end of the run.
        encoder: keras.Model, the part of `model` to save.
        epochs, steps_per_epoch, batch_size: ints.
        folder: `RunFolder`.
        targets_cached: bool, whether batches come from a view cache.
        measures: see `Evaluate`.
        monitor: name of the measure, larger is better, by which the best
            checkpoint is chosen; None for the newest.
        patience: int, evaluations without a new best after which training
            stops; 0 for never.
        checkpoint_minutes: float, minutes from one checkpoint to the next.
        summary: function without arguments to a dict, for `summary.json`.
        on_evaluated: function without arguments, called after an epoch's end
            was written, at most once a minute, and at the end of the run.
        log: function of one str, for progress.

    Returns:
        dict, the content of `summary.json`.

    Raises:
        Stopped: when told to.
        FloatingPointError: at the first step whose loss is not finite.
        OSError: if the disk is full. Earlier checkpoints stay intact.
        ValueError: if no checkpoint is whole, or they are of another model.
    """
    total = steps_per_epoch * epochs
    checkpoints = Checkpoints(folder.file("checkpoints"), model)
    step = checkpoints.restore()
    if folder.chief and not step:
        folder.check_space(disk_needed(checkpoints, encoder))
    metrics = folder.file("metrics.jsonl")
    lines = [x for x in read_json_lines(metrics) if x["step"] <= step]
    best = _Best(monitor, patience, lines)
    if step and folder.chief:
        log(f"Going on after step {step} of {total}.")
    files = EncoderFiles(folder, encoder)
    flops = folder.read("summary.json").get("flops_per_step")

    def summarise(ended):
        step = int(model.step.numpy())
        result = {
            "ended": ended,
            "step": step,
            "total_steps": total,
            "flops_per_step": flops,
            "encoder_of_step": best.step or step,
            **({monitor: best.value} if best.step else {}),
            "last": (read_json_lines(metrics) or [{}])[-1],
            **(summary() if summary else {}),
            "machine": machine(),
        }
        if folder.chief:
            folder.write("summary.json", result)
        return result

    def summarise_saved():
        nonlocal flops
        if flops is None:  # not before the first step, which a person awaits
            replicas = model.distribute_strategy.num_replicas_in_sync
            counted = cost.of_step(
                model,
                encoder=encoder,
                batch_size=batch_size // replicas,
                targets_cached=targets_cached,
            )
            flops = replicas * sum(counted.flops.values())
        summarise("running")

    try:
        with _Interruption() as interruption:
            callbacks = [Evaluate(measures or {}, epochs)]
            if folder.chief:
                callbacks += [
                    MetricsLog(
                        metrics,
                        batch_size=batch_size,
                        steps_per_epoch=steps_per_epoch,
                        events=folder.file("events"),
                    ),
                    Progress(total, batch_size, log=log),
                ]
            save = _Save(
                *(checkpoints, files, best, interruption),
                seconds=60 * checkpoint_minutes,
                chief=folder.chief,
                on_saved=summarise_saved,
                on_evaluated=on_evaluated,
            )
            if not best.lost_patience:
                _fit(
                    model,
                    load,
                    step,
                    steps_per_epoch,
                    epochs,
                    [*callbacks, save],
                )
    except BaseException as error:
        if interruption.signal and devices.worker_lost(error):
            error = Stopped("Stopped, after the chief.", interruption.signal)
        with contextlib.suppress(OSError):  # the disk may be full
            summarise(str(error) or type(error).__name__)
        raise error
    if best.lost_patience:
        return summarise(
            f"stopped early: {monitor} did not rise in {patience} evaluations"
        )
    return summarise("finished")


def _fit(model, load, step, steps_per_epoch, epochs, callbacks):
    epoch, done = divmod(step, steps_per_epoch)
    if done:  # the rest of an epoch
        model.fit(
            load(step),
            initial_epoch=epoch,
            epochs=epoch + 1,
            steps_per_epoch=steps_per_epoch - done,
            callbacks=callbacks,
            verbose=0,
        )
        epoch += 1
    if epoch < epochs and not model.stop_training:
        model.fit(
            load(epoch * steps_per_epoch),
            initial_epoch=epoch,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            callbacks=callbacks,
            verbose=0,
        )


class _Interruption:
    """Notes SIGINT and SIGTERM within a block; a second one acts at once."""

    signals = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self):
        self.signal = self.time = None
        self._handlers = {s: signal.signal(s, self._note) for s in self.signals}
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.signal, self.time = number, time.monotonic()
        for s, handler in self._handlers.items():
            signal.signal(s, handler)
        name = signal.Signals(number).name
        # Not `print`, which a handler may have interrupted itself.
        os.write(1, f"{name}: finishing this step, then saving.\n".encode())


class _Best:
    """Which evaluation was the best so far; without any, the newest is."""

    def __init__(self, monitor, patience, lines):
        self.monitor, self._patience = monitor, patience
        self._values = []
        for line in lines:
            self.add(line["step"], line)

    def add(self, step, logs):
        """Notes an evaluation; says whether it is the best."""
        if self.monitor in logs:
            self._values.append((step, logs[self.monitor]))
            return self.step == step
        return self.monitor is None

    @property
    def step(self):
        return self._best[0]

    @property
    def value(self):
        return self._best[1]

    @property
    def _best(self):
        return max(self._values, key=lambda x: x[1], default=(None, None))

    @property
    def lost_patience(self):
        since = [step for step, _ in self._values if step > (self.step or 0)]
        return 0 < self._patience <= len(since)


class _Save(keras.callbacks.Callback):
    """Saves when it is time, the best, or told to stop.

    Stands behind `MetricsLog`: no checkpoint without its line.
    """

    def __init__(
        self,
        checkpoints,
        files,
        best,
        interruption,
        *,
        seconds,
        chief,
        on_saved,
        on_evaluated,
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
            return  # the checkpoint is to hold what the epoch's end measures
        if self._due or self._interruption.signal:
            self._save()
        self._stop_if_told()

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
        self._stop_if_told()

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

    def _stop_if_told(self):
        if not self._interruption.signal:
            return
        waited = time.monotonic() - self._interruption.time
        if not self._chief and waited < CHIEF_FIRST:
            # If all workers were told, the chief is to stop first, and save:
            # in the step after another has left it can no longer.
            return
        step = int(self.model.step.numpy())
        saved = ", which is saved" if self._chief else ""
        raise Stopped(
            f"Stopped after step {step}{saved}.", self._interruption.signal
        )
