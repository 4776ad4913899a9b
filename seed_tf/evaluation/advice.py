"""Which temperature and which queue suit a teacher and a set of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from seed_tf import losses
from seed_tf.io.pipelines import steady
from seed_tf.trainer import Trainer

# From the authors' default to a nearly uniform target, about evenly in log.
TEMPERATURES = (
    *(1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.003, 0.005, 0.007, 0.01),
    *(0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3),
)
PAPER_TEMPERATURE, PAPER_QUEUE = 0.01, 65536
# A healthy target spreads over so many points: two to some hundred.
NEIGHBOURS = (2.0, 300.0)
ONE_HOT = 0.95  # mass on the image itself
# What a queue should hold of the data set at most; and what is too much.
QUEUE_SHARE, LARGE_SHARE = 1 / 8, 1 / 4
SMALLEST_QUEUE = 64  # fewer points have hardly a neighbour among them
QUERIES = 256


@dataclasses.dataclass(frozen=True)
class Target:
    """The teacher's typical target at one temperature.

    Attributes:
        temperature: float.
        neighbours: float, exp(entropy) of the target, median of images.
        self_mass: float, the target's probability of the image itself,
            median of images.
    """

    temperature: float
    neighbours: float
    self_mass: float

    @property
    def one_hot(self) -> bool:
        return self.self_mass > ONE_HOT


@dataclasses.dataclass(frozen=True)
class Advice:
    """The result of `advise`.

    Attributes:
        sample: int, number of embeddings in the measured queue.
        images: int, number of images in the data set.
        queue_size: int, recommended; `expected` assumes it.
        measured: list of `Target`, with the sample as queue.
        expected: list of `Target`, with a queue of `queue_size`.
        doubt: float, factor by which `expected` neighbours may be off, seen
            by predicting the measured ones from a quarter of the sample.
        temperature: float, recommended.
        reasons: list of str.
        warnings: list of str, about the settings in question.
    """

    sample: int
    images: int
    queue_size: int
    measured: list[Target]
    expected: list[Target]
    doubt: float
    temperature: float
    reasons: list[str]
    warnings: list[str]


def view_embeddings(
    teacher: keras.Model, batches: tf.data.Dataset, views: Any, *, seed: int = 0
) -> np.ndarray:
    """Computes a teacher's embeddings of one augmented view of each image.

    Args:
        teacher: keras.Model of images.
        batches: `tf.data.Dataset` of images, or of the crops that `views`
            begin with, as for training.
        views: as of `seed_tf.SEED`. Of multi-crop the large view is taken.
        seed: int, of the views, as of `seed_tf.SEED`.

    Returns:
        `[N, D]` float32, L2-normalised.
    """
    trainer = Trainer(views=views, seed=seed)

    @tf.function(reduce_retracing=True)
    def run(images, step):
        return trainer.embed(teacher, trainer.augment(images, step)[0])

    rows = [
        run(_images(batch), tf.constant(step, tf.int64)).numpy()
        for step, batch in enumerate(steady(batches))
    ]
    return np.concatenate(rows)


def _images(batch):
    """Returns the images of a batch that may be a tuple."""
    return batch[0] if isinstance(batch, tuple) else batch


def targets(
    queries: np.ndarray,
    queue: np.ndarray,
    *,
    queue_size: int | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
) -> list[Target]:
    """Measures SEED's target at each temperature.

    The target is that of `losses.similarity_distillation`. A queue larger
    than the sample at hand is one that holds each point of it several times:
    as many other images, as similar as these. That is good for targets that
    spread over many points, and overlooks that among more images some are
    nearer than any of the sample's.

    Args:
        queries: `[Q, D]` L2-normalised embeddings.
        queue: `[K, D]` L2-normalised embeddings of other images.
        queue_size: int, a multiple of K, or its divisor; None for K.
        temperatures: positive floats.

    Returns:
        list of `Target`.

    Raises:
        ValueError: if `queue_size` is neither.
    """
    size = len(queue)
    queue_size = queue_size or size
    if queue_size % size and size % queue_size:
        raise ValueError(
            "`queue_size` must be a multiple or a divisor of the queue's "
            f"length. Received: queue_size={queue_size}, length {size}."
        )
    queue = np.tile(queue[:queue_size], (max(1, queue_size // size), 1))
    found = []
    for temperature in temperatures:
        _, metrics = losses.similarity_distillation(
            queries,
            queries,
            queue,
            teacher_temperature=temperature,
            return_metrics=True,
        )
        found.append(
            Target(
                temperature,
                float(np.median(metrics["teacher_neighbours"])),
                float(np.median(metrics["self_mass"])),
            )
        )
    return found


def advise(
    embeddings: np.ndarray,
    *,
    images: int,
    temperature: float = PAPER_TEMPERATURE,
    queue_size: int = PAPER_QUEUE,
) -> Advice:
    """Recommends a teacher's temperature and a queue's size.

    Args:
        embeddings: `[N, D]` of `view_embeddings`, in random order. A few
            hundred of them play the batch, a power of two of the others the
            queue.
        images: int, images in the data set.
        temperature: float, the setting asked about.
        queue_size: int, likewise.

    Returns:
        `Advice`. Its rules of thumb exclude targets that cannot teach; they do
        not find the best temperature.

    Raises:
        ValueError: if there are fewer than 64 embeddings, or they are all the
            same.
    """
    if len(embeddings) < 64:
        raise ValueError(
            "`embeddings` must be of 64 images or more, and a thousand to be "
            f"worth a look. Received: {len(embeddings)}."
        )
    if np.ptp(embeddings, axis=0).max() < 1e-4:
        raise ValueError(
            "The teacher gives the same embedding for every image: it is "
            "collapsed, or was not loaded with its weights."
        )
    sample = 2 ** int(math.log2(len(embeddings) * 3 / 4))
    queue, queries = embeddings[:sample], embeddings[sample:][:QUERIES]
    best_queue = min(PAPER_QUEUE, 2 ** int(math.log2(images * QUEUE_SHARE)))
    best_queue = max(best_queue, SMALLEST_QUEUE)
    measured = targets(queries, queue)
    expected = targets(queries, queue, queue_size=best_queue)
    quarter = targets(queries, queue[: sample // 4], queue_size=sample)
    doubt = max(
        max(a.neighbours / b.neighbours, b.neighbours / a.neighbours)
        for a, b in zip(quarter, measured, strict=True)
    )
    chosen, reasons = _choose(expected, best_queue)
    asked = targets(
        queries, queue, queue_size=best_queue, temperatures=[temperature]
    )[0]
    return Advice(
        sample=sample,
        images=images,
        queue_size=best_queue,
        measured=measured,
        expected=expected,
        doubt=doubt,
        temperature=chosen.temperature,
        reasons=[*reasons, _queue_reason(best_queue, images)],
        warnings=_warnings(asked, queue_size, images),
    )


def _choose(expected, queue_size):
    """The paper's temperature if it is healthy, or the nearest that is."""
    low, high = NEIGHBOURS
    high = min(high, queue_size / 4)

    def distance(target):
        return abs(math.log(target.temperature / PAPER_TEMPERATURE))

    paper = next(t for t in expected if t.temperature == PAPER_TEMPERATURE)
    healthy = [
        t for t in expected if low <= t.neighbours <= high and not t.one_hot
    ]
    if not healthy:
        middle = math.sqrt(low * high)
        chosen = min(
            expected, key=lambda t: abs(math.log(t.neighbours / middle))
        )
        return chosen, [
            "No temperature gives a target that spreads over "
            f"{low:.0f} to {high:.0f} points; {chosen.temperature:g} comes "
            f"nearest, with about {about(chosen.neighbours)}. The teacher "
            "tells these images apart too little, or all at once: look at "
            "its nearest neighbours."
        ]
    chosen = min(healthy, key=distance)
    spread = (
        f"the target spreads over about {about(chosen.neighbours)} points "
        f"and keeps {chosen.self_mass:.0%} for the image itself"
    )
    if chosen is paper:
        return chosen, [f"At {chosen.temperature:g}, the paper's, {spread}."]
    how = "too few" if paper.neighbours < low or paper.one_hot else "too many"
    return chosen, [
        f"At the paper's {PAPER_TEMPERATURE:g} the target has {how} points: "
        f"about {about(paper.neighbours)}, with {paper.self_mass:.0%} for the "
        "image itself.",
        f"At {chosen.temperature:g}, the nearest that is healthy, {spread}.",
    ]


def _queue_reason(size, images):
    if size == PAPER_QUEUE:
        return (
            f"A queue of {size:,}, the paper's, holds {size / images:.1%} of "
            f"{images:,} images."
        )
    if size > QUEUE_SHARE * images:
        return (
            f"A queue of {size:,} is the smallest that is recommended; it "
            f"holds {size / images:.0%} of {images:,} images, more than the "
            "eighth that would be better."
        )
    return (
        f"A queue of {size:,} is the largest power of two that holds no more "
        f"than an eighth of {images:,} images; the paper's 65,536 held a "
        "twentieth of ImageNet."
    )


def _warnings(asked, queue_size, images):
    found = []
    if asked.one_hot:
        found.append(
            f"At a teacher temperature of {asked.temperature:g} the target is "
            f"one-hot: {asked.self_mass:.1%} of it lie on the image itself. "
            "The student would learn to separate images, and none of the "
            "teacher's similarities. (The authors' code defaults to "
            "1e-4, where every teacher's target is so; the paper says 0.01.)"
        )
    share = queue_size / images
    if share > LARGE_SHARE:
        times = f"{share:.1f} views of each" if share >= 1 else f"{share:.0%}"
        found.append(
            f"A queue of {queue_size:,} holds {times} of {images:,} images: "
            "the neighbours it offers are more and more other views of the "
            "same images, from the epoch before, and fewer others."
        )
    return found


def about(value: float) -> str:
    """Rounds a number to two significant digits.

    >>> about(1234.5), about(3.14159), about(0.999)
    ('1,200', '3.1', '1')
    """
    return f"{float(f'{value:.2g}'):,g}"
