"""Fine-tunes a detector."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from seed_tf import random
from seed_tf.arguments import integer
from seed_tf.detection.boxes import check_images, checked, flip_images
from seed_tf.evaluation.linear_probe import DivergenceError
from seed_tf.io.pipelines import BATCHES_AHEAD
from seed_tf.io.units import duration
from seed_tf.optimizers.schedule import warmup_cosine
from seed_tf.optimizers.sgd import SGD


def fine_tune_detector(
    model: keras.Model,
    train: tf.data.Dataset,
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 0.01,
    warmup_steps: int | None = None,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    flip: bool = True,
    seed: int = 0,
    log: Callable[[str], None] = logging.info,
) -> list[float]:
    """Trains a detector, in place.

    The loss is the focal loss of classes plus the smooth L1 loss of boxes,
    over the matched anchors. SGD minimises the loss, with a linear warm-up, a
    cosine decay to zero, and gradients clipped to a norm of 10.

    Args:
        model: keras.Model, as `detector` returns it.
        train: data set of single images, see `seed_tf.detection`. The images
            are shuffled and repeated.
        steps: positive int.
        batch_size: int, 2 or more.
        learning_rate: float, peak per 16 images; scaled linearly.
        warmup_steps: int; None for a tenth of the steps, 500 at most.
        momentum: float.
        weight_decay: float, coupled.
        flip: bool, mirror half of the images. Unsuitable for digits and text.
        seed: int, for order and flips. `keras.utils.set_random_seed` sets the
            heads' initial weights.
        log: function of one str, called with the progress and the time left.

    Returns:
        List of floats, the mean loss of each tenth of the steps.

    Raises:
        ValueError: if an argument is out of range, the images do not fit, or
            boxes or classes cannot be right.
        DivergenceError: a ValueError, if the loss is not finite.

    Source: RetinaNet's settings (section 4.1), except for the schedule.
    """
    # A step of one image aborts the process: KerasCV 0.9, TensorFlow 2.21, CPU.
    steps = integer("steps", steps)
    batch_size = integer("batch_size", batch_size, least=2)
    check_images(train, model.num_classes)
    if warmup_steps is None:
        warmup_steps = min(500, steps // 10)

    def batch(step, images, objects):
        images = tf.cast(images, tf.float32)
        keep = ~objects["crowd"]
        boxes = tf.where(keep[..., None], objects["boxes"], -1.0)
        classes = tf.where(keep, objects["classes"], -1.0)
        if flip:
            seeds = random.image_seeds(seed, step, batch_size)
            flipped = random.uniform(seeds, 1)[:, 0] < 0.5
            images, boxes = flip_images(images, boxes, classes, flipped)
        return images, {"boxes": boxes, "classes": classes}

    def batches(samples):
        return (
            samples.shuffle(2048, seed)
            .repeat()
            .batch(batch_size, drop_remainder=True)
            .enumerate()
            .map(lambda step, data: batch(step, *data), BATCHES_AHEAD)
            .prefetch(BATCHES_AHEAD)
            .take(steps)
        )

    epochs = min(10, steps)
    model.compile(
        optimizer=SGD(
            warmup_cosine(
                batch_size=batch_size,
                steps_per_epoch=1,
                epochs=steps,
                warmup_epochs=warmup_steps,
                rate_per_256=16 * learning_rate,
            ),
            momentum,
            weight_decay,
            global_clipnorm=10.0,
        ),
        classification_loss="focal",
        box_loss="smoothl1",
        jit_compile=False,
    )
    progress = _Progress(steps, epochs, learning_rate, log)
    with (
        checked(train, model.num_classes) as samples,
        warnings.catch_warnings(),
    ):
        # KerasCV's input lacks its name.
        warnings.filterwarnings("ignore", "The structure of `inputs`")
        model.fit(
            batches(samples),
            shuffle=False,  # already done; Keras's default warns
            verbose=0,
            callbacks=[progress],
        )
    return progress.losses


class _Progress(keras.callbacks.Callback):
    """Logs the loss of each part of the steps; stops if it is not finite."""

    def __init__(
        self,
        steps: int,
        parts: int,
        learning_rate: float,
        log: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._ends = [round(steps * i / parts) for i in range(1, parts + 1)]
        self._steps, self._rate, self._log = steps, learning_rate, log
        self._start: float | None = None
        self._sum, self._count = 0.0, 0
        self.losses: list[float] = []

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        done = batch + 1
        # Keras logs the mean since the start.
        total = float((logs or {})["loss"]) * done
        if not math.isfinite(total):
            raise DivergenceError(
                f"Fine-tuning diverged: loss {total / done} in step {done}. "
                "Lower the learning rate. "
                f"Received: learning_rate={self._rate}."
            )
        # The first step traces: measure the time from its end.
        self._start = self._start or time.monotonic()
        if done not in self._ends:
            return
        loss = (total - self._sum) / (done - self._count)
        self._sum, self._count = total, done
        self.losses.append(loss)
        seconds = (time.monotonic() - self._start) / max(1, batch)
        self._log(
            f"detector: step {done:,}/{self._steps:,}, loss {loss:.3f}, "
            f"{duration(seconds * (self._steps - done))} left"
        )
