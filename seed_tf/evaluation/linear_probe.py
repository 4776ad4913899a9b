"""The linear probe: one linear classifier on a frozen encoder."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from seed_tf import random
from seed_tf.datasets.python_functions import PythonFunctions
from seed_tf.evaluation.features import feature_function
from seed_tf.evaluation.labels import (
    accuracies,
    check_classes,
    check_labelled,
    check_widths,
    label_fraction,
)
from seed_tf.images import check_channels, check_value_range
from seed_tf.io.pipelines import BATCHES_AHEAD, steady
from seed_tf.optimizers.sgd import SGD

_BLOCK = 4096  # rows checked at a time


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """A trained linear classifier of frozen features, and how good it is.

    Attributes:
        accuracy: float in [0, 1], top-1 on the test set.
        mean_per_class: float in [0, 1], mean of the classes' own accuracies.
        kernel: `[C, num_classes]` float32.
        bias: `[num_classes]` float32. `features @ kernel + bias` are the
            logits of features as the encoder gives them.
        loss: float, mean cross-entropy of the last training epoch, in nats.
    """

    accuracy: float
    mean_per_class: float
    kernel: np.ndarray
    bias: np.ndarray
    loss: float


class DivergenceError(ValueError):
    """Raised when the loss of a training is not finite."""


def linear_probe(
    train: Any,
    test: Any,
    *,
    encoder: keras.Model | None = None,
    view: Callable[..., tf.Tensor] | None = None,
    num_classes: int | None = None,
    learning_rate: float = 30.0,
    epochs: int = 100,
    batch_size: int = 256,
    steps_per_epoch: int | None = None,
    milestones: Sequence[float] = (60, 80),
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    standardize: bool = False,
    seed: int = 0,
    log: Callable[[str], None] = logging.info,
) -> ProbeResult:
    """Trains a linear classifier on a frozen encoder, by the paper's protocol.

    The kernel starts as N(0, 0.01), the bias at zero; SGD minimises the
    softmax cross-entropy over shuffled batches, of which the last one of an
    epoch may be smaller; the rate falls tenfold at each milestone.

    Without an encoder, `train` and `test` hold features (see `embed`), which
    takes seconds. Arrays are read a batch at a time and never copied as a
    whole: they may be memory-mapped files. With an encoder they hold images,
    and every step runs it, in inference mode, on fresh views: the paper's
    protocol to the letter.

    Args:
        train: a pair of arrays, features `[N, C]` (or, with `encoder`, images
            `[N, H, W, 3]`, RGB in [0, 255]) and labels `[N]` integers; or a
            `tf.data.Dataset` of batches of such pairs, shuffled by its maker:
            those of one epoch, or with `steps_per_epoch` of all, one after
            the other.
        test: the same, of one epoch. Images of the size that the encoder is
            to see: the paper resizes to 256 and crops the central 224.
        encoder: `Encoder` or keras.Model, see `embed`. It is not changed.
        view: with `encoder`, the augmentation of training images, `[B, H, W,
            3]` to `[B, h, w, 3]` in [0, 255]: a crop of area 0.08-1 and a
            flip in the paper. A layer whose call takes `seeds` is given
            them, from `seed`, step and position.
        num_classes: int; for arrays read off the labels if None.
        learning_rate: float. The paper takes 30 for ResNets, 3 for
            EfficientNet and MobileNet (as DisCo and BINGO do).
        epochs: int.
        batch_size: int. A dataset has its own.
        steps_per_epoch: int or None, see `train`; for datasets only.
        milestones: percentages of the training at which the rate is divided
            by 10: epochs 60 and 80 of 100.
        momentum: float.
        weight_decay: float, coupled (see `seed_tf.training.SGD`).
        standardize: bool, train on features less their training mean, divided
            by sqrt(C) times their training standard deviation. A linear
            classifier can express the same either way, and one learning rate,
            anywhere from 1 to 30, then suits features of every scale and
            width. `kernel` and `bias` of the result have it folded in.
        seed: int, of kernel, shuffling and views.
        log: function of one str, called with lines of progress.

    Returns:
        A `ProbeResult`.

    Raises:
        ValueError: if the data do not fit.
        DivergenceError: a ValueError, if the training diverges.

    Source: He et al., "Momentum Contrast", CVPR 2020, section 4.1, which Fang
    et al., ICLR 2021, follow.

    Example:

    >>> train, test = (seed_tf.datasets.digits(s) for s in ("train", "test"))
    >>> train, test = (
    ...     (images.reshape(-1, 768) / 255, labels)
    ...     for images, labels in (train, test)
    ... )
    >>> linear_probe(train, test, learning_rate=0.1, epochs=10).accuracy > 0.9
    True

    On the images themselves, by the paper:

    >>> view = seed_tf.views.View(
    ...     [
    ...         seed_tf.views.RandomResizedCrop(224, scale=(0.08, 1.0)),
    ...         seed_tf.views.RandomHorizontalFlip(),
    ...     ]
    ... )
    >>> linear_probe(train, test, encoder=student, view=view)  # doctest: +SKIP
    """
    if view is not None and encoder is None:
        raise ValueError(
            "`view` needs `encoder`: features have no views. "
            "Received: encoder=None."
        )
    if epochs < 1:
        raise ValueError(
            f"`epochs` must be a positive integer. Received: epochs={epochs}."
        )
    if steps_per_epoch and not isinstance(train, tf.data.Dataset):
        raise ValueError(
            "`steps_per_epoch` is for `train` as a tf.data.Dataset. Received: "
            f"steps_per_epoch={steps_per_epoch}, train of type "
            f"{type(train).__name__}."
        )
    if num_classes is None:
        num_classes = 1 + max(
            _largest_label("train", train), _largest_label("test", test)
        )
    epoch = tf.Variable(0, trainable=False, dtype="int64")
    train = _batches("train", train, num_classes, batch_size, (seed, epoch))
    test = _batches("test", test, num_classes, batch_size)
    features = _feature_function(encoder, train, test)
    width = features(next(iter(train))[0][:1]).shape[1]

    mean, scale = tf.zeros(width), tf.ones(width)
    if standardize:
        once = train.take(steps_per_epoch or -1)
        mean, scale = _standardization(features, width, once)
    normal = keras.initializers.RandomNormal(stddev=0.01, seed=seed)
    kernel = keras.Variable(normal, (width, num_classes), "float32")
    bias = keras.Variable("zeros", (num_classes,), "float32")
    optimizer = SGD(float(learning_rate), momentum, weight_decay)
    optimizer.build([kernel, bias])

    def mean_loss(batches):
        total, count, left = 0.0, 0, steps_per_epoch or -1
        for examples, labels in batches:
            if view is not None:
                step = optimizer.iterations.value
                examples = _augment(view, examples, seed, step)
            inputs = (features(examples) - mean) * scale
            with tf.GradientTape() as tape:
                logits = tf.matmul(inputs, kernel.value) + bias.value
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    labels, logits
                )
                loss = tf.reduce_mean(losses)
            optimizer.apply(tape.gradient(loss, [kernel.value, bias.value]))
            total += tf.reduce_sum(losses)
            count += tf.size(losses)
            left -= 1
            if left == 0:
                break
        return total / tf.cast(count, tf.float32)

    train_epoch = _compile(mean_loss, train, anew=not steps_per_epoch)
    start = time.monotonic()
    for i in range(epochs):
        passed = sum(100 * i >= milestone * epochs for milestone in milestones)
        optimizer.learning_rate = learning_rate * 0.1**passed
        epoch.assign(i)
        loss = float(train_epoch())
        if not math.isfinite(loss):
            raise DivergenceError(
                f"The linear probe diverged: loss {loss} in epoch {i + 1}. "
                "Lower the learning rate, or set `standardize=True`. Received: "
                f"learning_rate={learning_rate}, weight_decay={weight_decay}."
            )
        if encoder is not None:
            left = (time.monotonic() - start) / (i + 1) * (epochs - i - 1)
            log(
                f"probe: epoch {i + 1}/{epochs}, loss {loss:.3f}, "
                f"{left / 60:.1f} min left"
            )
    guessing = math.log(num_classes)
    if loss > guessing:
        logging.warning(
            "The linear probe ends with a training loss of %.3f, more than the "
            "%.3f of guessing. Lower the learning rate, %g, or set "
            "`standardize=True`.",
            *(loss, guessing, learning_rate),
        )
    kernel = kernel.value * scale[:, None]
    bias = bias.value - tf.linalg.matvec(kernel, mean, transpose_a=True)

    examples = test.element_spec[0]
    predict = tf.function(
        lambda x: tf.argmax(tf.matmul(features(x), kernel) + bias, 1)
    ).get_concrete_function(
        tf.TensorSpec([None, *examples.shape[1:]], examples.dtype)
    )
    predicted, truth = zip(*((predict(x), y) for x, y in test), strict=True)
    accuracy, mean_per_class = accuracies(
        np.concatenate(predicted), np.concatenate(truth)
    )
    return ProbeResult(
        accuracy=accuracy,
        mean_per_class=mean_per_class,
        kernel=kernel.numpy(),
        bias=bias.numpy(),
        loss=loss,
    )


def choose_learning_rate(
    train: tuple[np.ndarray, np.ndarray],
    learning_rates: Sequence[float],
    *,
    held_out: float = 0.1,
    seed: int = 0,
    **options: Any,
) -> tuple[float, dict[float, float | None]]:
    """Chooses the rate whose linear probe is best on held-out examples.

    The examples are held out from the training set, never from the test set.

    Args:
        train: pair of features `[N, C]`, read as in `linear_probe`, and labels
            `[N]`.
        learning_rates: floats.
        held_out: float in (0, 1), share of every class that is kept from
            training.
        seed: int, of that choice and of the probes.
        **options: of `linear_probe`.

    Returns:
        The best rate, of equals the first; and a dict of all rates to their
        accuracies in [0, 1], None where the probe diverged.

    Raises:
        ValueError: if the data do not fit, a class is too small for the share,
            or every probe diverged.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 3, 300)
    >>> features = np.eye(3)[labels] + rng.normal(size=(300, 3)) / 4
    >>> train = features, labels
    >>> rate, _ = choose_learning_rate(train, [1e-6, 1.0], epochs=5)
    >>> rate
    1.0
    """
    features, labels = check_labelled("train", train)
    chosen = np.zeros(len(labels), bool)
    chosen[label_fraction(labels, held_out, seed)] = True
    rest, kept = (
        (_Rows(features, np.flatnonzero(rows)), labels[rows])
        for rows in (~chosen, chosen)
    )
    check_classes(rest[1], kept[1])

    def accuracy(rate):
        probe = linear_probe(
            rest, kept, learning_rate=rate, seed=seed, **options
        )
        return probe.accuracy

    return best_rate(learning_rates, accuracy)


def best_rate(
    learning_rates: Sequence[float], accuracy: Callable[[float], float]
) -> tuple[float, dict[float, float | None]]:
    """Finds the rate with the highest accuracy.

    Args:
        learning_rates: floats.
        accuracy: function of a rate to a float in [0, 1].

    Returns:
        The best rate, of equals the first; and a dict of all rates to their
        accuracies, None where `accuracy` raised `DivergenceError`.

    Raises:
        DivergenceError: if it did at every rate.
    """
    found: dict[float, float | None] = {}
    for rate in learning_rates:
        try:
            found[rate] = accuracy(rate)
        except DivergenceError:
            found[rate] = None
    finite = {rate: x for rate, x in found.items() if x is not None}
    best = max(finite, key=lambda rate: finite[rate], default=None)
    if best is None:
        raise DivergenceError(
            "The linear probe diverged at every learning rate. Received: "
            f"learning_rates={list(learning_rates)}."
        )
    return best, found


class _Rows:
    """Some rows of an array, not copied before they are asked for."""

    def __init__(self, array, numbers):
        self._array, self._numbers = array, numbers
        self.dtype, self.shape = array.dtype, (len(numbers), *array.shape[1:])

    def __len__(self):
        return len(self._numbers)

    def __getitem__(self, rows):
        return self._array[self._numbers[rows]]


def _compile(function, dataset, anew=True):
    """The function of the dataset's batches, as a graph that is traced once.

    Each call begins the dataset anew, or goes on with it. An iterator, unlike
    the dataset, leaves the loop's operators on the GPU.
    """
    # The second probe of a process would draw TensorFlow's warning of frequent
    # retracing; a concrete function does not.
    batches = iter(dataset)
    graph = tf.function(function).get_concrete_function(batches)
    return lambda: graph(iter(dataset) if anew else batches)


def _batches(name, data, num_classes, batch_size, shuffle=None):
    """A dataset of (examples, labels) batches.

    With `shuffle`, a pair (seed, epoch), the order of an array is a function
    of the two alone; `epoch` is a variable.
    """
    if isinstance(data, tf.data.Dataset):
        spec = data.element_spec
        if not isinstance(spec, tuple) or len(spec) != 2:
            raise ValueError(
                f"`{name}` must give batches (examples, labels). "
                f"Received: a dataset of {spec}."
            )
        return steady(data)
    examples, labels = check_labelled(name, data, num_classes)
    size = len(labels)
    for start in range(0, size, _BLOCK):
        if not np.isfinite(examples[start : start + _BLOCK]).all():
            raise ValueError(
                f"Examples of `{name}` must be finite. Received: NaN or "
                f"infinity in rows {start} to "
                f"{min(start + _BLOCK, size) - 1}."
            )
    dtype = tf.as_dtype(examples.dtype)
    functions = PythonFunctions()

    def rows(index):
        return examples[index], labels[index]

    def pick(index):
        if shuffle is not None:
            key = tf.stack([tf.cast(shuffle[0], tf.int64), shuffle[1]])
            index = tf.random.experimental.index_shuffle(index, key, size - 1)
        # Not tf.gather, which would hold all of the examples in memory.
        batch, numbers = functions.call(rows, [index], [dtype, tf.int64])
        shape = [None, *examples.shape[1:]]
        return tf.ensure_shape(batch, shape), tf.ensure_shape(numbers, [None])

    indices = steady(tf.data.Dataset.range(size)).batch(batch_size)
    batches = functions.kept_by(indices.map(pick))
    return batches.prefetch(BATCHES_AHEAD)


def _largest_label(name, data):
    if isinstance(data, tf.data.Dataset):
        raise ValueError(
            "`num_classes` must be given where data are a tf.data.Dataset. "
            f"Received: num_classes=None, `{name}` a dataset."
        )
    return int(check_labelled(name, data)[1].max())


def _feature_function(encoder, train, test):
    """The function examples -> features `[B, C]`, once the data are checked."""
    if encoder is None:
        check_widths(train.element_spec[0], test.element_spec[0])
        return lambda features: tf.cast(features, tf.float32)
    for data in (train, test):
        images = next(iter(data))[0]
        check_channels(images)
        check_value_range(images)
    return feature_function(encoder)


def _standardization(features, width, train):
    """Mean `[C]` and scale `[C]` that give features a mean square of 1 / C."""

    def moments(batches):
        count = tf.constant(0, tf.int32)
        total = squares = tf.zeros(width, tf.float64)
        for examples, _ in batches:
            batch = tf.cast(features(examples), tf.float64)
            count += tf.shape(batch)[0]
            total += tf.reduce_sum(batch, 0)
            squares += tf.reduce_sum(tf.square(batch), 0)
        count = tf.cast(count, tf.float64)
        mean = total / count
        return mean, tf.sqrt(tf.maximum(squares / count - mean**2, 0))

    mean, deviation = _compile(moments, train)()
    # A feature that never moves tells nothing, and is not blown up.
    moves = deviation > 1e-6 * tf.abs(mean)
    scale = width**-0.5 / tf.where(moves, deviation, tf.ones_like(deviation))
    return tf.cast(mean, tf.float32), tf.cast(scale, tf.float32)


def _augment(view, images, seed, step):
    if not random.takes_seeds(view):
        return view(images)
    seeds = random.image_seeds(seed, step, tf.shape(images)[0])
    return view(images, seeds=seeds)
