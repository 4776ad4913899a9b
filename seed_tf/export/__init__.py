"""Trained encoders for production: TensorFlow Serving, LiteRT, ONNX."""

from seed_tf.export.checking import Limits, ParityReport
from seed_tf.export.litert import litert
from seed_tf.export.onnx import onnx
from seed_tf.export.outputs import Outputs
from seed_tf.export.saved_model import saved_model

__all__ = ["ParityReport", "Limits", "Outputs", "litert", "onnx", "saved_model"]
