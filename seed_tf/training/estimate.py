"""The cost of a training, estimated before it begins."""

import time

import keras
import numpy as np

from seed_tf.io.units import (
    duration,
    readable,
    readable_bytes,
)
from seed_tf.reporting.tables import table
from seed_tf.training import cost
from seed_tf.training.checkpointing import Checkpoints
from seed_tf.training.resources import (
    disk_needed,
    free_memory,
    peak_memory,
)

DRY_STEPS = 5


class _Times(keras.callbacks.Callback):
    """When each step began and ended."""

    def __init__(self):
        super().__init__()
        self.begin, self.end = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begin.append(time.monotonic())

    def on_train_batch_end(self, batch, logs=None):
        self.end.append(time.monotonic())


def dry_run(
    model,
    load,
    *,
    encoder,
    epochs,
    steps_per_epoch,
    batch_size,
    targets_cached=False,
    teacher=None,
):
    """Estimates the cost of a run from shapes and from a few steps.

    Operations and memory are counted from shapes, before anything is run.
    Then a few steps are measured: five, or, where their memory is not there,
    five of fewer images. Arguments are those of `train`, and the teacher if
    there is one. It writes no file, but trains the model: build it anew to
    train.

    Returns:
        str, a table to print.
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
    """What a few steps take, of as many images as there is memory for."""
    measured = cost.images_that_fit(step, batch_size, free_memory())
    if not measured:
        return {
            "measured": f"nothing: {readable_bytes(free_memory())} are free",
        }
    batches, steps = load(0), min(DRY_STEPS, steps_per_epoch)
    if measured < batch_size:
        batches = batches.unbatch().batch(measured, drop_remainder=True)
        batches = batches.repeat()  # a short run has fewer than five
        steps = DRY_STEPS
    times, start = _Times(), time.monotonic()
    model.fit(
        batches,
        epochs=-(-DRY_STEPS // steps),
        steps_per_epoch=steps,
        callbacks=[times],
        verbose=0,
    )
    # The first step traces and compiles: the rate is that of the others.
    seconds = (times.end[-1] - times.end[0]) / (len(times.end) - 1)
    waited = np.subtract(times.begin[1:], times.end[:-1]).mean()
    rate = measured / seconds
    return {
        "measured": f"steps of {measured} images, for that is all that the "
        f"{readable_bytes(free_memory())} of free memory take"
        if measured < batch_size
        else None,
        "peak memory": readable_bytes(peak_memory()),
        "until the end of the first step": duration(times.end[0] - start),
        "images per second": f"{rate:.1f}",
        "waiting for data": f"{waited / seconds:.0%} of the time",
        "time for all steps": duration(total * batch_size / rate),
    }
