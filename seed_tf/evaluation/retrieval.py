"""Retrieval: are the images most similar to an image of its class?"""

import dataclasses

import numpy as np

from seed_tf.evaluation.knn import check_k, normalised_blocks
from seed_tf.evaluation.labels import check_labelled, check_widths

_SIMILARITIES = 2**26  # held at a time: 256 MB
_BLOCK = 16384  # rows of the bank compared at a time


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
    """How well similar means alike.

    Attributes:
        recall: dict of k to the share of queries, in [0, 1], that have one of
            their class, or more, among the k most similar.
        mean_average_precision: float in [0, 1], of the whole ranking.
        queries: int, that have any of their class in the bank, and count.
    """

    recall: dict
    mean_average_precision: float
    queries: int


def retrieval(bank, queries=None, *, ks=(1, 5, 10), query_block=None):
    """Recall@k and mean average precision, by cosine similarity.

    Args:
        bank: pair of features `[N, C]` and labels `[N]` integers.
        queries: the same, `[Q, C]` and `[Q]`; None for the bank itself, where
            no row finds itself.
        ks: ints in [1, N], or [1, N - 1].
        query_block: int, queries compared at a time. By default so many that
            their similarities to the bank take 256 MB, beside which there is
            little: queries are ranked one by one. The bank is read once for
            every such block, and may be a memory-mapped file.

    Returns:
        A `RetrievalResult`. Of equally similar rows none comes first: average
        precision takes them together, as scikit-learn does, and recall takes
        the lower index.

    Raises:
        ValueError: if the data do not fit, `k` is out of range, features are
            not finite, or no query has any of its class in the bank.

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
                row[i], relevant[i] = -np.inf, False  # the last of all
            if not relevant.any():
                continue
            count += 1
            place, average = _ranked(row, relevant)
            precision += average
            for k in ks:
                hits[k] += place < k
    if not count:
        raise ValueError(
            "No query has an image of its class in the bank. Received: "
            f"labels {np.unique(truth)[:5]} of queries, "
            f"{np.unique(labels)[:5]} of the bank, at least."
        )
    recall = {k: hit / count for k, hit in hits.items()}
    return RetrievalResult(recall, float(precision / count), count)


def _lengths(features):
    """Norms `[N]` float32, none of them zero."""
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
    """Fills `[q, N]` float32."""
    for start in range(0, len(features), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = np.asarray(features[rows], np.float32)
        similarities[:, rows] = queries @ block.T
        similarities[:, rows] /= lengths[rows]


def _ranked(similarities, relevant):
    """Of one query: where its class comes first, and average precision.

    Args:
        similarities: `[N]` float32.
        relevant: `[N]` bool, at least one of them.

    Returns:
        int, rows that come before the first of the class; float in (0, 1].
    """
    ascending, own = np.sort(similarities), np.sort(similarities[relevant])
    # Of equals all count at the place of the last.
    found = len(own) - np.searchsorted(own, own)
    ends = len(ascending) - np.searchsorted(ascending, own)
    best = own[-1]
    above = len(ascending) - np.searchsorted(ascending, best, "right")
    equal = similarities == best
    before = np.flatnonzero(relevant[equal])[0]
    return int(above + before), float(np.mean(found / ends))
