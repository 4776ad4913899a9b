"""Operations on embeddings that all rooms share."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from keras import ops

__all__ = ["cosine", "l2_normalise", "spread"]

_SHORTEST = 1e-12  # shorter vectors are not scaled to length 1


def l2_normalise(embeddings: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
    """Scales every vector to length 1, in float32.

    Args:
        embeddings: NumPy array or tensor `[..., D]` of any dtype.

    Returns:
        float32 `[..., D]`, an array for an array and a tensor for a tensor.
        Zero vectors stay zero.
    """
    if isinstance(embeddings, np.ndarray):
        embeddings = np.asarray(embeddings, np.float32)
        lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
        return embeddings / np.maximum(lengths, _SHORTEST)
    embeddings = ops.cast(embeddings, "float32")
    return ops.normalize(embeddings, axis=-1, epsilon=_SHORTEST)


def spread(embeddings: tf.Tensor) -> tf.Tensor:
    """Returns how widely normalised embeddings `[B, D]` spread, in [0, 1].

    It is the standard deviation over the batch, averaged over dimensions, times
    sqrt(D): near 1 for directions all around, 0 when all images collapse to
    one point.
    """
    deviation = ops.mean(ops.std(embeddings, axis=0))
    return deviation * float(embeddings.shape[-1]) ** 0.5


def cosine(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns the mean cosine of normalised rows, `a` and `b` `[B, D]`."""
    return ops.mean(ops.sum(a * b, axis=1))
