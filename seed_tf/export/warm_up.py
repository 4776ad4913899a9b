"""Requests that TensorFlow Serving plays to a model before it is served."""

import os

import tensorflow as tf


def write_warm_up(folder, requests):
    """Writes `assets.extra/tf_serving_warmup_requests`.

    A TFRecord file of `tensorflow.serving.PredictionLog`. As the messages are
    this small, their fields are written here by number: it needs none of
    TensorFlow Serving's Python packages.

    Args:
        folder: str, of a SavedModel.
        requests: list of pairs: a signature, and a dict of its inputs.
    """
    path = os.path.join(folder, "assets.extra", "tf_serving_warmup_requests")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(path) as writer:
        for signature, inputs in requests:
            # PredictionLog.predict_log, PredictLog.request
            writer.write(_field(6, _field(1, _request(signature, inputs))))


def _request(signature, inputs):
    """`tensorflow.serving.PredictRequest`."""
    # model_spec, its signature_name. Any model's name would do.
    request = _field(1, _field(3, signature.encode()))
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        # inputs, a map: its entries have key and value.
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))
    return request


def _field(number, content):
    """A field of bytes, in protocol buffers' wire format."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number):
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])
