"""k-nearest neighbours by cosine similarity, streamed over the bank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized

import numpy as np
import tensorflow as tf

from seed_tf.embeddings import l2_normalise
from seed_tf.evaluation.labels import check_labelled, check_widths


def knn(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    k: int = 10,
    num_classes: int | None = None,
    weighting: str = "uniform",
    temperature: float = 0.07,
    query_block: int = 1024,
    bank_block: int = 16384,
) -> float:
    """Computes top-1 accuracy of k nearest neighbours by cosine similarity.

    Args:
        train: the bank, a pair (features `[N, C]`, labels `[N]` integers).
        test: the queries, a pair (features `[Q, C]`, labels `[Q]` integers).
        k: int in [1, N], number of neighbours that vote.
        num_classes: int; None to infer it from the labels.
        weighting: "uniform", a majority vote, or "similarity", votes weighted
            by `exp(similarity / temperature)`. With equal votes, the smallest
            label wins.
        temperature: positive float, for "similarity".
        query_block, bank_block: ints, see `nearest_neighbours`.

    Returns:
        float in [0, 1].

    Raises:
        ValueError: if widths or counts differ, labels or `k` are out of
            range, or features are not finite.

    Source: k = 10 of Fang et al., ICLR 2021; the weighted vote of Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
    CVPR 2018, equation 11.

    Example:

    >>> bank = np.eye(3), np.array([0, 1, 2])
    >>> knn(bank, (np.eye(3) + 0.1, np.array([0, 1, 1])), k=1)
    0.6666666666666666
    """
    accuracies = knn_grid(
        train,
        test,
        ks=[k],
        weightings=[weighting],
        num_classes=num_classes,
        temperature=temperature,
        query_block=query_block,
        bank_block=bank_block,
    )
    return accuracies[k, weighting]


def knn_grid(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    ks: Sequence[int] = (10,),
    weightings: Sequence[str] = ("uniform", "similarity"),
    num_classes: int | None = None,
    temperature: float = 0.07,
    query_block: int = 1024,
    bank_block: int = 16384,
) -> dict[tuple[int, str], float]:
    """Computes `knn` for several k and weightings, in one pass over the bank.

    Args:
        train, test, num_classes, temperature, query_block, bank_block: see
            `knn`.
        ks: ints in [1, N].
        weightings: list of "uniform" and "similarity".

    Returns:
        dict of pairs (k, weighting) to accuracies in [0, 1].

    Raises:
        ValueError: see `knn`.

    Example:

    >>> bank = np.eye(3), np.array([0, 1, 2])
    >>> knn_grid(bank, bank, ks=[1, 3], weightings=["uniform"])
    {(1, 'uniform'): 1.0, (3, 'uniform'): 0.3333333333333333}
    """
    for weighting in weightings:
        if weighting not in ("uniform", "similarity"):
            raise ValueError(
                '`weighting` must be "uniform" or "similarity". '
                f"Received: weighting={weighting!r}."
            )
    if temperature <= 0:
        raise ValueError(
            "`temperature` must be positive. "
            f"Received: temperature={temperature}."
        )
    bank, labels = check_labelled("train", train, num_classes)
    queries, truth = check_labelled("test", test, num_classes)
    for k in ks:
        check_k(bank, k)
    similarities, neighbours = nearest_neighbours(
        bank, queries, max(ks), query_block=query_block, bank_block=bank_block
    )
    # Relative to the nearest, so that no temperature overflows.
    weights = {
        "uniform": np.ones_like(similarities),
        "similarity": np.exp(
            (similarities - similarities[:, :1]) / temperature
        ),
    }
    shape = len(truth), 1 + max(labels.max(), truth.max())
    rows, found = np.arange(len(truth)), {}
    for weighting in weightings:
        votes = np.zeros(shape, np.float32)
        for i in range(max(ks)):
            votes[rows, labels[neighbours[:, i]]] += weights[weighting][:, i]
            if i + 1 in ks:
                right = votes.argmax(axis=1) == truth
                found[i + 1, weighting] = float(right.mean())
    return {(k, w): found[k, w] for k in ks for w in weightings}


def nearest_neighbours(
    bank: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    query_block: int = 1024,
    bank_block: int = 16384,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the `k` rows of a bank most similar to each query, by cosine.

    The bank is read once, block by block, and never copied as a whole: it may
    be a memory-mapped file. Memory holds `[query_block, bank_block]`
    similarities. On a GPU, TensorFlow multiplies in TF32 unless
    `tf.config.experimental.enable_tensor_float_32_execution(False)` is called.

    Args:
        bank: `[N, C]` array or memmap of any float dtype.
        queries: `[Q, C]` array of any float dtype.
        k: int in [1, N].
        query_block: int, number of queries compared at a time.
        bank_block: int, number of bank rows compared at a time.

    Returns:
        `(similarities [Q, k] float32, indices [Q, k] int64)`, the most
        similar first. Among equally similar rows the lower index comes first.
        A row of zeros has similarity 0 to every row.

    Raises:
        ValueError: if widths differ, `k` is out of range, or features are not
            finite.
    """
    check_widths(bank, queries)
    check_k(bank, k)
    query_blocks = [
        block for _, block in normalised_blocks("test", queries, query_block)
    ]
    best = [
        (tf.zeros([len(block), 0]), tf.zeros([len(block), 0], "int64"))
        for block in query_blocks
    ]
    for start, rows in normalised_blocks("train", bank, bank_block):
        for i, block in enumerate(query_blocks):
            best[i] = _merge(*best[i], block, rows, start, k)
    similarities, indices = zip(*best, strict=True)
    return np.concatenate(similarities), np.concatenate(indices)


def neighbour_agreement(
    first: np.ndarray, second: np.ndarray, *, k: int = 10
) -> float:
    """Computes the share of k nearest neighbours on which two encoders agree.

    The neighbours of an image are the k other images most similar by cosine.
    The share measures, without labels, how well a student reproduces its
    teacher's similarities.

    Args:
        first: `[N, C]` array, features of N images by one encoder.
        second: `[N, D]` array, features of the same images by another encoder.
        k: int in [1, N - 1].

    Returns:
        float in [0, 1]. Unrelated encoders agree on `k / (N - 1)`.

    Raises:
        ValueError: if the numbers of images differ, `k` is out of range, or
            features are not finite.

    Example:

    >>> first = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    >>> neighbour_agreement(first, np.ones((4, 2)) + 9 * first, k=1)
    1.0
    """
    if len(first) != len(second):
        raise ValueError(
            "`first` and `second` must have one row per image. "
            f"Received: {len(first)} and {len(second)} rows."
        )
    if not 1 <= k < len(first):
        raise ValueError(
            "`k` must lie between 1 and the number of other images. "
            f"Received: k={k}, {len(first)} images."
        )
    mine, theirs = (
        nearest_others(features, k)[:, :, None] for features in (first, second)
    )
    both = mine == np.swapaxes(theirs, 1, 2)
    return float(both.sum() / (k * len(first)))


def nearest_others(features: np.ndarray, k: int) -> np.ndarray:
    """Finds the `k` rows nearest to each row of `[N, C]`, except itself.

    Returns:
        Indices `[N, k]` int64, the nearest first.
    """
    _, indices = nearest_neighbours(features, features, k + 1)
    # An equal row may come before the row itself, or replace it.
    itself = indices == np.arange(len(features))[:, None]
    last = np.argsort(itself, axis=1, kind="stable")
    return np.take_along_axis(indices, last, axis=1)[:, :k]


def check_k(bank: Sized, k: int) -> None:
    """Raises ValueError if a bank has fewer than `k` rows or `k` < 1."""
    if not 1 <= k <= len(bank):
        raise ValueError(
            "`k` must lie between 1 and the number of bank rows. "
            f"Received: k={k}, {len(bank)} rows."
        )


def normalised_blocks(
    name: str, features: np.ndarray, size: int
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Yields the first index and the normalised rows of each block."""
    for start in range(0, len(features), size):
        block = np.asarray(features[start : start + size], np.float32)
        if not np.isfinite(block).all():
            raise ValueError(
                f"Features of `{name}` must be finite. Received: NaN or "
                f"infinity in rows {start} to {start + len(block) - 1}."
            )
        # Not by rsqrt, whose last bit depends on a row's place in the block.
        block = tf.convert_to_tensor(l2_normalise(block))
        yield tf.constant(start, "int64"), block


_MATRIX = tf.TensorSpec([None, None], tf.float32)
_INDICES = tf.TensorSpec([None, None], tf.int64)


# Traced once for all shapes.
@tf.function(
    input_signature=[_MATRIX, _INDICES, _MATRIX, _MATRIX]
    + [tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int32)]
)
def _merge(similarities, indices, queries, rows, start, k):
    """Merges the best `k` rows so far with the rows that begin at `start`.

    The rows so far come first: among equals `top_k` prefers the first, so the
    lower index wins.
    """
    products = tf.matmul(queries, rows, transpose_b=True)
    values, columns = tf.math.top_k(products, tf.minimum(k, tf.shape(rows)[0]))
    values = tf.concat([similarities, values], 1)
    indices = tf.concat([indices, start + tf.cast(columns, tf.int64)], 1)
    values, ranks = tf.math.top_k(values, tf.minimum(k, tf.shape(values)[1]))
    return values, tf.gather(indices, ranks, batch_dims=1)
