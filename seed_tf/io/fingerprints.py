"""Fingerprints: short texts that differ if contents differ."""

from __future__ import annotations

import hashlib

import keras
import numpy as np
from keras import ops


def fingerprint(model: keras.Model) -> str:
    """Returns 16 hexadecimal digits that identify a model's weights.

    Settings outside the weights, such as the mean and standard deviation of
    an `Encoder`, do not count.
    """
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(str((weight.shape, weight.dtype)).encode())
        values = np.ascontiguousarray(ops.convert_to_numpy(weight))
        digest.update(values.data)
    return digest.hexdigest()[:16]
