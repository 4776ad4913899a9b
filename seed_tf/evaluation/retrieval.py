"""Retrieval: the share of similar images that belong to the same class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from seed_tf.evaluation.knn import check_k, normalised_blocks
from seed_tf.evaluation.labels import check_labelled, check_widths

_SIMILARITIES = 2**26  # held at a time: 256 MB
_BLOCK = 16384  # rows of the bank compared at a time


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
    """Quality of image retrieval.

    Attributes:
        recall: dict of k to a float in [0, 1], the share of queries with an
            image of their class among the k most similar images.
        mean_average_precision: float in [0, 1], of the whole ranking.
        queries: int, number of queries whose class the bank contains. Other
            queries do not count.
    """

    recall: dict[int, float]
    mean_average_precision: float
    queries: int


def retrieval(
    bank: tuple[np.ndarray, np.ndarray],
    queries: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    query_block: int | None = None,
) -> RetrievalResult:
    """Computes recall@k and mean average precision, by cosine similarity.

    Args:
        bank: pair of features `[N, C]` and labels `[N]` integers. The features
            may be a memory-mapped file.
        queries: pair of features `[Q, C]` and labels `[Q]`; None for the bank
            itself, where no row finds itself.
        ks: ints in [1, N], or in [1, N - 1] without `queries`.
        query_block: int, number of queries compared at a time. The bank is
            read once for each block. None for similarities of 256 MB, the
            largest part of the memory needed.

    Returns:
        A `RetrievalResult`. Among equally similar rows, recall ranks the lower
        index first; average precision gives all of them the same rank, as
        scikit-learn does.

    Raises:
        ValueError: if the data do not fit, `k` is out of range, features are
            not finite, or the bank has no image of any query's class.

    Source: recall@k as in Jegou et al., "Product Quantization for Nearest
    Neighbor Search", PAMI 2011; average precision as in
    `sklearn.metrics.average_precision_score`.

    Example:

    >>> labels = np.array([0, 0, 1, 1])
    >>> bank = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.8, 0.3]]), labels
    >>> retrieval(bank, ks=[1]).recall
    {1: 0.75}
    """
    alone = queries is None
    features, labels = check_labelled("train", bank)
    if alone:
        wanted, truth = features, labels
    else:
        wanted, truth = check_labelled("test", queries)
    check_widths(features, wanted)
    for k in ks:
        check_k(features[alone:], k)
    size = query_block or max(1, _SIMILARITIES // len(labels))
    held = np.empty((min(size, len(truth)), len(labels)), np.float32)
    lengths = _lengths(features)
    hits = dict.fromkeys(ks, 0)
    precision, count = 0.0, 0
    for first, block in normalised_blocks("test", wanted, size):
        similarities = held[: len(block)]
        _compare(block.numpy(), features, lengths, similarities)
        for i, row in enumerate(similarities, int(first)):
            relevant = labels == truth[i]
            if alone:
                row[i], relevant[i] = -np.inf, False  # ranked last
            if not relevant.any():
                continue
            count += 1
            place, average = _ranked(row, relevant)
            precision += average
            for k in ks:
                hits[k] += place < k
    if not count:
        raise ValueError(
            "The bank must have an image of some query's class. Received: "
            f"labels {np.unique(truth)[:5]} (the first five) of queries, "
            f"{np.unique(labels)[:5]} of the bank."
        )
    recall = {k: hit / count for k, hit in hits.items()}
    return RetrievalResult(recall, float(precision / count), count)


def _lengths(features):
    """Returns norms `[N]` float32, at least 1e-12."""
    lengths = np.empty(len(features), np.float32)
    for start in range(0, len(features), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = np.asarray(features[rows], np.float32)
        if not np.isfinite(block).all():
            raise ValueError(
                "Features of `train` must be finite. Received: NaN or "
                f"infinity in rows {start} to {start + len(block) - 1}."
            )
        lengths[rows] = np.linalg.norm(block, axis=1)
    return np.maximum(lengths, 1e-12)


def _compare(queries, features, lengths, similarities):
    """Fills `similarities`, `[q, N]` float32."""
    for start in range(0, len(features), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = np.asarray(features[rows], np.float32)
        similarities[:, rows] = queries @ block.T
        similarities[:, rows] /= lengths[rows]


def _ranked(similarities, relevant):
    """Ranks the bank for one query.

    Args:
        similarities: `[N]` float32.
        relevant: `[N]` bool, rows of the query's class, at least one.

    Returns:
        int, the rows before the first relevant row; and float in (0, 1], the
        average precision.
    """
    ascending, own = np.sort(similarities), np.sort(similarities[relevant])
    # Equally similar rows all get the rank of the last.
    found = len(own) - np.searchsorted(own, own)
    ends = len(ascending) - np.searchsorted(ascending, own)
    best = own[-1]
    above = len(ascending) - np.searchsorted(ascending, best, "right")
    equal = similarities == best
    before = np.flatnonzero(relevant[equal])[0]
    return int(above + before), float(np.mean(found / ends))
