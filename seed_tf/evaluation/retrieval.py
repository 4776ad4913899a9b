"""Retrieval: are the images most similar to an image of its class?"""

import dataclasses

import numpy as np

from seed_tf.evaluation.knn import check_k, normalised_blocks
from seed_tf.evaluation.labels import check_labelled, check_widths


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
        query_block: int, queries ranked at a time. By default so many that
            their similarities to the bank take 256 MB.

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
    size = query_block or max(1, 2**26 // len(labels))
    hits = dict.fromkeys(ks, 0)
    precision, count = 0.0, 0
    for first, block in normalised_blocks("test", wanted, size):
        first, block = int(first), block.numpy()
        similarities = _similarities(block, features)
        own = truth[first : first + len(block)]
        relevant = labels == own[:, None]
        if alone:
            rows = np.arange(len(block))
            similarities[rows, first + rows] = -np.inf  # the last of all
            relevant[rows, first + rows] = False
        counted = relevant.any(axis=1)
        count += int(counted.sum())
        if not counted.any():
            continue
        order = np.argsort(-similarities[counted], axis=1, kind="stable")
        ranked = np.take_along_axis(similarities[counted], order, 1)
        relevant = np.take_along_axis(relevant[counted], order, 1)
        for k in ks:
            hits[k] += int(relevant[:, :k].any(axis=1).sum())
        precision += _average_precision(ranked, relevant).sum()
    if not count:
        raise ValueError(
            "No query has an image of its class in the bank. Received: "
            f"labels {np.unique(truth)[:5]} of queries, "
            f"{np.unique(labels)[:5]} of the bank, at least."
        )
    recall = {k: hit / count for k, hit in hits.items()}
    return RetrievalResult(recall, float(precision / count), count)


def _similarities(queries, features):
    """`[q, N]` float32."""
    similarities = np.empty((len(queries), len(features)), np.float32)
    for start, block in normalised_blocks("train", features, 16384):
        part = queries @ block.numpy().T
        similarities[:, int(start) : int(start) + part.shape[1]] = part
    return similarities


def _average_precision(ranked, relevant):
    """`[q]`, of similarities that fall and whether each is of the class."""
    places = np.arange(ranked.shape[1])
    # Of equals all count at the place of the last.
    last = np.ones(ranked.shape, bool)
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    ends = np.where(last, places, len(places))
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    found = np.take_along_axis(relevant.cumsum(axis=1), ends, 1)
    precisions = np.where(relevant, found / (ends + 1), 0)
    return precisions.sum(axis=1) / relevant.sum(axis=1)
