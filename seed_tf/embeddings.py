"""What everything that handles embeddings shares."""

import numpy as np
from keras import ops

_SHORTEST = 1e-12  # norm below which a vector stays shorter than 1


def l2_normalise(embeddings):
    """Scales every vector to length 1, in float32.

    Args:
        embeddings: NumPy array or tensor `[..., D]` of any dtype.

    Returns:
        The same shape, float32: an array of an array, a tensor of a tensor.
        Zeros stay zeros.
    """
    if isinstance(embeddings, np.ndarray):
        embeddings = np.asarray(embeddings, np.float32)
        lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
        return embeddings / np.maximum(lengths, _SHORTEST)
    embeddings = ops.cast(embeddings, "float32")
    return ops.normalize(embeddings, axis=-1, epsilon=_SHORTEST)
