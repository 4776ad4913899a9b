"""Estimates the cost of a run before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from seed_tf.io.units import duration, readable, readable_bytes
from seed_tf.reporting.tables import table
from seed_tf.trainer import Trainer
from seed_tf.training import cost
from seed_tf.training.checkpointing import Checkpoints
from seed_tf.training.resources import disk_needed, free_memory, peak_memory

DRY_STEPS = 5


class _Times(keras.callbacks.Callback):
    """Records the begin and the end of each step."""

    def __init__(self):
        super().__init__()
        self.begin, self.end = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begin.append(time.monotonic())

    def on_train_batch_end(self, batch, logs=None):
        self.end.append(time.monotonic())


def dry_run(
    model: Trainer,
    load: Callable[[int], Any],
    *,
    encoder: keras.Model,
    epochs: int,
    steps_per_epoch: int,
    batch_size: int,
    targets_cached: bool = False,
    teacher: keras.Model | None = None,
) -> str:
    """Estimates the cost of a run from shapes and from five steps.

    The steps take fewer images if the batch does not fit into memory. The
    steps change the model: build a new model to train.

    Args:
        model, load, encoder, epochs, steps_per_epoch, batch_size,
            targets_cached: as of `train`.
        teacher: the teacher of `SEED`, or None.

    Returns:
        A table to print.
    """
    total = steps_per_epoch * epochs
    replicas = model.distribute_strategy.num_replicas_in_sync
    checkpoints = Checkpoints("", model)  # builds the optimizer
    step = cost.of_step(
        model,
        encoder=encoder,
        batch_size=batch_size // replicas,
        targets_cached=targets_cached,
    )
    memory, parts = sum(step.bytes.values()), step.bytes.items()
    values = {
        "parameters, trained encoder": f"{encoder.count_params():,}",
        "parameters, teacher": teacher and f"{teacher.count_params():,}",
        "FLOPs per step": readable(replicas * sum(step.flops.values())),
        **{
            f"FLOPs, {k}": readable(replicas * v) for k, v in step.flops.items()
        },
        "memory of a device, estimated": readable_bytes(memory),
        **{name: readable_bytes(value) for name, value in parts},
        "steps": f"{total:,} = {epochs} epochs of {steps_per_epoch:,}",
        "disk": readable_bytes(disk_needed(checkpoints, encoder)),
        **_measure(model, load, batch_size, steps_per_epoch, total, step),
    }
    return table(
        [{"": name, "dry run": x} for name, x in values.items() if x],
        ["", "dry run"],
    )


def _measure(model, load, batch_size, steps_per_epoch, total, step):
    """Measures a few steps of as many images as fit into memory."""
    measured = cost.images_that_fit(step, batch_size, free_memory())
    if not measured:
        return {
            "measured": f"nothing: {readable_bytes(free_memory())} are free",
        }
    batches, steps = load(0), min(DRY_STEPS, steps_per_epoch)
    if measured < batch_size:
        batches = batches.unbatch().batch(measured, drop_remainder=True)
        batches = batches.repeat()  # a short run has fewer batches
        steps = DRY_STEPS
    times, start = _Times(), time.monotonic()
    model.fit(
        batches,
        epochs=-(-DRY_STEPS // steps),
        steps_per_epoch=steps,
        callbacks=[times],
        verbose=0,
    )
    # The rate leaves out the first step, which traces and compiles.
    seconds = (times.end[-1] - times.end[0]) / (len(times.end) - 1)
    waited = np.subtract(times.begin[1:], times.end[:-1]).mean()
    rate = measured / seconds
    return {
        "measured": f"steps of {measured} images: no more fit into "
        f"{readable_bytes(free_memory())} of free memory"
        if measured < batch_size
        else None,
        "peak memory": readable_bytes(peak_memory()),
        "until the end of the first step": duration(times.end[0] - start),
        "images per second": f"{rate:.1f}",
        "waiting for data": f"{waited / seconds:.0%} of the time",
        "time for all steps": duration(total * batch_size / rate),
    }
