"""Checks labels, and draws small labelled subsets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging


def few_labels(labels: np.ndarray, per_class: int, seed: int = 0) -> np.ndarray:
    """Draws a class-balanced subset, for evaluation from few labels.

    Args:
        labels: `[N]` integers.
        per_class: positive int, number of examples to draw from each class.
        seed: int, of the draw.

    Returns:
        `[num_classes * per_class]` int64 indices into `labels`, ascending.

    Raises:
        ValueError: if a class has fewer than `per_class` examples.

    Example:

    >>> few_labels(np.array([7, 7, 3, 3, 3]), per_class=2)
    array([0, 1, 2, 4])
    """
    labels = np.asarray(labels)
    if per_class < 1:
        raise ValueError(
            "`per_class` must be a positive integer. "
            f"Received: per_class={per_class}."
        )
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise ValueError(
                f"Class {label} has {len(members)} examples, fewer than "
                f"`per_class`. Received: per_class={per_class}."
            )
        chosen.append(rng.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def label_fraction(
    labels: np.ndarray, fraction: float, seed: int = 0
) -> np.ndarray:
    """Draws a share of each class, for evaluation from few labels.

    Args:
        labels: `[N]` integers.
        fraction: float in (0, 1], the share of each class, rounded to whole
            examples.
        seed: int, of the draw.

    Returns:
        int64 indices into `labels`, ascending.

    Raises:
        ValueError: if the share of a class rounds to no example.

    Source: Chen et al., "A Simple Framework for Contrastive Learning", ICML
    2020, section 6.2. Their draws for ImageNet are published as lists.

    Example:

    >>> label_fraction(np.array([7, 7, 3, 3, 3, 3]), 0.5)
    array([1, 2, 4])
    """
    labels = np.asarray(labels)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"`fraction` must be in (0, 1]. Received: fraction={fraction}."
        )
    rng = np.random.default_rng(seed)
    chosen = []
    for label, count in zip(
        *np.unique(labels, return_counts=True), strict=True
    ):
        share = round(fraction * count)
        if not share:
            raise ValueError(
                "`fraction` must select at least one example of each class. "
                f"Received: fraction={fraction:g}, {count} examples of class "
                f"{label}. Increase `fraction`, or use `few_labels`."
            )
        members = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(members)[:share])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def accuracies(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Computes top-1 accuracy, and its mean over the classes that occur.

    Args:
        predicted, truth: `[N]` integer labels.

    Returns:
        Two floats in [0, 1].

    Example:

    >>> accuracies(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 2]))
    (0.75, 0.5)
    """
    right = np.asarray(predicted) == truth
    counts = np.bincount(truth)
    found = np.bincount(truth, right)[counts > 0] / counts[counts > 0]
    return float(right.mean()), float(found.mean())


def check_classes(
    train: np.ndarray,
    test: np.ndarray,
    names: Mapping[int, str] | None = None,
) -> None:
    """Raises if a test class has no training examples.

    Logs a warning if a training class has no test examples.

    Args:
        train, test: `[N]` and `[M]` integer labels.
        names: dict of labels to class names, for the message.

    Raises:
        ValueError: if a test class has no training examples.
    """

    def listed(labels):
        shown = [str((names or {}).get(i, i)) for i in labels[:5]]
        more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
        return ", ".join(shown) + more

    train, test = np.unique(train), np.unique(test)
    if len(unknown := np.setdiff1d(test, train)):
        raise ValueError(
            "Every class to be tested must have training examples. Received: "
            f"{len(train)} classes in train, {len(test)} in test; not in "
            f"train: {listed(unknown)}."
        )
    if len(untested := np.setdiff1d(train, test)):
        logging.warning(
            "%d of %d classes have no test examples: %s.",
            *(len(untested), len(train), listed(untested)),
        )


def check_labelled(
    name: str, data: Any, num_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Checks a pair of examples and labels, and returns two arrays.

    Args:
        name: str, for messages: "train" or "test".
        data: pair of `[N, ...]` examples, which may be memory-mapped, and
            `[N]` integer labels from 0.
        num_classes: int, which exceeds all labels; None for no limit.

    Returns:
        The examples, not copied, and labels `[N]` int64.

    Raises:
        ValueError: if `data` is not a pair or empty, or labels do not fit.
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(
            f"`{name}` must be a pair (examples [N, ...], labels [N]). "
            f"Received: {name} of type {type(data).__name__}."
        )
    examples, labels = data[0], np.asarray(data[1])
    if not hasattr(examples, "shape"):
        examples = np.asarray(examples)
    if labels.ndim != 1 or len(labels) != len(examples) or not len(labels):
        raise ValueError(
            f"`{name}` must have one label per example, and at least one. "
            f"Received: examples of shape {tuple(examples.shape)}, labels of "
            f"shape {labels.shape}."
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"Labels of `{name}` must be integers from 0. "
            f"Received: dtype {labels.dtype}."
        )
    limit = np.inf if num_classes is None else num_classes
    if labels.min() < 0 or labels.max() >= limit:
        raise ValueError(
            f"Labels of `{name}` must lie in [0, num_classes). Received: "
            f"labels in [{labels.min()}, {labels.max()}], "
            f"num_classes={num_classes}."
        )
    return examples, labels.astype(np.int64)


def check_widths(train: Any, test: Any) -> None:
    """Raises ValueError if two arrays of features differ in width."""
    if len(train.shape) != 2 or len(test.shape) != 2:
        raise ValueError(
            "Features must be [N, C]. Received: shapes "
            f"{tuple(train.shape)} and {tuple(test.shape)}."
        )
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            "Features of train and test must have one width. Received: shapes "
            f"{tuple(train.shape)} and {tuple(test.shape)}."
        )
