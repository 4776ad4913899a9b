"""k-nearest neighbours by cosine similarity, streamed over the bank."""

import numpy as np
import tensorflow as tf

from seed_tf.embeddings import l2_normalise
from seed_tf.evaluation.labels import check_labelled, check_widths


def knn(
    train,
    test,
    *,
    k=10,
    num_classes=None,
    weighting="uniform",
    temperature=0.07,
    query_block=1024,
    bank_block=16384,
):
    """Top-1 accuracy of a k-nearest-neighbour classifier, cosine similarity.

    Args:
        train: the bank, a pair (features `[N, C]`, labels `[N]` integers).
        test: the queries, a pair (features `[Q, C]`, labels `[Q]` integers).
        k: int in [1, N], neighbours that vote.
        num_classes: int or None, to be read off the labels.
        weighting: "uniform", a majority vote, or "similarity", votes weighted
            by `exp(similarity / temperature)`. Of classes with equal votes
            the smallest label wins.
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
    train,
    test,
    *,
    ks=(10,),
    weightings=("uniform", "similarity"),
    num_classes=None,
    temperature=0.07,
    query_block=1024,
    bank_block=16384,
):
    """`knn` for several k and votes, in one pass over the bank.

    Args:
        train, test, num_classes, temperature, query_block, bank_block: as of
            `knn`.
        ks: ints in [1, N].
        weightings: list of "uniform" and "similarity".

    Returns:
        dict of pairs (k, weighting) to accuracies in [0, 1].

    Raises:
        ValueError: as `knn`.

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


def nearest_neighbours(bank, queries, k, *, query_block=1024, bank_block=16384):
    """The `k` rows of a bank most similar to each query, by cosine.

    The bank is read once, a block at a time, and normalised on the way; the
    similarities held at any time are `[query_block, bank_block]`. So 1.28
    million features of width 2048 need no more memory than themselves, and
    none if they are a memory-mapped file. On a GPU TensorFlow multiplies in
    TF32 unless `tf.config.experimental.enable_tensor_float_32_execution(False)`
    is called.

    Args:
        bank: `[N, C]` array or memmap of any float dtype.
        queries: `[Q, C]` array of any float dtype.
        k: int in [1, N].
        query_block: int, queries compared at a time.
        bank_block: int, rows of the bank compared at a time.

    Returns:
        `(similarities [Q, k] float32, indices [Q, k] int64)`, the most
        similar first. Of equally similar rows the lower index comes first. A
        row of zeros has similarity 0 to everything.

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


def neighbour_agreement(first, second, *, k=10):
    """Share of the k nearest neighbours that two encoders both name.

    Of each image, its k nearest among the others by cosine. It needs no
    labels, and tells whether a student sees the similarities that its teacher
    sees.

    Args:
        first: `[N, C]` array, features of N images by one encoder.
        second: `[N, D]` array, of the same images by another.
        k: int in [1, N - 1].

    Returns:
        float in [0, 1]; of encoders with nothing in common `k / (N - 1)`.

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
            "Expected features of the same images. "
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


def nearest_others(features, k):
    """Indices `[N, k]` of the nearest rows of `[N, C]` to each, but itself."""
    _, indices = nearest_neighbours(features, features, k + 1)
    # Of equal rows another may come before the row itself, or push it out.
    itself = indices == np.arange(len(features))[:, None]
    last = np.argsort(itself, axis=1, kind="stable")
    return np.take_along_axis(indices, last, axis=1)[:, :k]


def check_k(bank, k):
    """Raises ValueError if a bank has no `k` rows."""
    if not 1 <= k <= len(bank):
        raise ValueError(
            "`k` must lie between 1 and the number of bank rows. "
            f"Received: k={k}, {len(bank)} rows."
        )


def normalised_blocks(name, features, size):
    """Yields pairs of a first row and the normalised rows from there on."""
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
    """The best `k` of those so far and of the rows from number `start` on.

    Those so far come first: `top_k` prefers the first of equals, so the lower
    index wins.
    """
    products = tf.matmul(queries, rows, transpose_b=True)
    values, columns = tf.math.top_k(products, tf.minimum(k, tf.shape(rows)[0]))
    values = tf.concat([similarities, values], 1)
    indices = tf.concat([indices, start + tf.cast(columns, tf.int64)], 1)
    values, order = tf.math.top_k(values, tf.minimum(k, tf.shape(values)[1]))
    return values, tf.gather(indices, order, batch_dims=1)
