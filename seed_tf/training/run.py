"""Trains a model: resumes, evaluates, saves, reports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras

from seed_tf.training import cost, devices
from seed_tf.training.callbacks import (
    Evaluate,
    MetricsLog,
    Progress,
    read_metrics,
)
from seed_tf.training.checkpointing import Checkpoints
from seed_tf.training.resources import disk_needed, machine
from seed_tf.training.run_folder import EncoderFiles, RunFolder
from seed_tf.training.saving import Best, Interruption, Save, Stopped


def train(
    model: keras.Model,
    load: Callable[[int], Any],
    *,
    encoder: keras.Model,
    epochs: int,
    steps_per_epoch: int,
    batch_size: int,
    folder: RunFolder,
    targets_cached: bool = False,
    measures: dict[str, tuple[Callable[..., float], int]] | None = None,
    monitor: str | None = None,
    patience: int = 0,
    checkpoint_minutes: float = 10.0,
    summary: Callable[[], dict] | None = None,
    on_evaluated: Callable[[], Any] | None = None,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Trains a compiled model, and resumes from the newest checkpoint.

    Training writes `metrics.jsonl`, TensorBoard events, checkpoints (the last
    three and the best), `student.keras` and `backbone.keras` of the best
    evaluation (without evaluations, of the newest step), and `summary.json`.
    SIGTERM and SIGINT end training after the step in progress is saved.

    Args:
        model: a compiled `SEED` or `MoCo`, in its starting state.
        load: function of a step. Returns the `tf.data.Dataset` of all batches
            from this step to the end of the run.
        encoder: the part of `model` to save.
        epochs: passes over the data.
        steps_per_epoch: steps in an epoch.
        batch_size: images per step.
        folder: folder of the run.
        targets_cached: whether batches come from a view cache.
        measures: see `Evaluate`.
        monitor: name of the measure that chooses the best checkpoint; larger
            is better. None chooses the newest.
        patience: evaluations without a new best before training stops; 0 for
            never.
        checkpoint_minutes: minutes between checkpoints.
        summary: function that returns more entries of `summary.json`.
        on_evaluated: function called after an epoch, at most once a minute,
            and at the end of the run.
        log: function of one str, for progress.

    Returns:
        The content of `summary.json`.

    Raises:
        Stopped: after SIGTERM or SIGINT.
        FloatingPointError: at the first step whose loss is not finite.
        OSError: if the disk is full. Earlier checkpoints stay intact.
        ValueError: if all checkpoints are damaged or of another model.
    """
    total = steps_per_epoch * epochs
    checkpoints = Checkpoints(folder.file("checkpoints"), model)
    step = checkpoints.restore()
    if folder.chief and not step:
        folder.check_space(disk_needed(checkpoints, encoder))
    metrics = folder.file("metrics.jsonl")
    lines = [x for x in read_metrics(metrics) if x["step"] <= step]
    best = Best(monitor, patience, lines)
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
            "last": (read_metrics(metrics) or [{}])[-1],
            **(summary() if summary else {}),
            "machine": machine(),
        }
        if folder.chief:
            folder.write("summary.json", result)
        return result

    def summarise_saved():
        nonlocal flops
        if flops is None:  # not before the first step, which it would delay
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
        with Interruption() as interruption:
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
            save = Save(
                checkpoints,
                files,
                best,
                interruption,
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
            error = Stopped("Stopped after the chief.", interruption.signal)
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
