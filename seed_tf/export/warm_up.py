"""Requests that warm a model up in TensorFlow Serving."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import tensorflow as tf


def write_warm_up(
    folder: str, requests: Iterable[tuple[str, dict[str, Any]]]
) -> None:
    """Writes `assets.extra/tf_serving_warmup_requests`.

    The file holds TFRecords of `tensorflow.serving.PredictionLog`. The code
    writes their few fields by number, without TensorFlow Serving's packages.

    Args:
        folder: folder of a SavedModel.
        requests: pairs of a signature and its inputs.
    """
    path = os.path.join(folder, "assets.extra", "tf_serving_warmup_requests")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(path) as writer:
        for signature, inputs in requests:
            # PredictionLog.predict_log, PredictLog.request
            writer.write(_field(6, _field(1, _request(signature, inputs))))


def _request(signature, inputs):
    """Returns a serialised `tensorflow.serving.PredictRequest`."""
    # model_spec.signature_name. The model's name may be empty.
    request = _field(1, _field(3, signature.encode()))
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        # inputs, a map: each entry has a key and a value.
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))
    return request


def _field(number, content):
    """Returns a field of bytes in the wire format of protocol buffers."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number):
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])
