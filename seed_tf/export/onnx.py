"""ONNX files, for other runtimes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from seed_tf.export.checking import (
    Limits,
    ParityReport,
    Run,
    write_checked,
)
from seed_tf.io.extras import extra


def onnx(
    encoder: keras.Model,
    path: str,
    *,
    images: np.ndarray | tf.data.Dataset,
    image_size: int | None = None,
    labelled: Sequence[Any] | None = None,
    limits: Limits | None = None,
) -> ParityReport:
    """Writes an encoder as an ONNX file, and compares it with the encoder.

    The file has the same inputs and outputs as a LiteRT file, and a report
    beside it, see `seed_tf.export.litert`. ONNX Runtime runs the comparison.

    Args:
        encoder, images, image_size, labelled, limits: see
            `seed_tf.export.litert`.
        path: path that ends in ".onnx".

    Returns:
        The differences between the file and the Keras model.

    Raises:
        ValueError: if an argument is wrong, the file exceeds the limits, or
            the extra `onnx` is not installed. `path` stays unchanged.
    """
    with extra("onnx", "ONNX files"):
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    return write_checked(
        encoder,
        path,
        format="onnx",
        ending=".onnx",
        precision="float32",
        images=images,
        image_size=image_size,
        labelled=labelled,
        limits=limits,
        write=_write,
        load=load,
    )


def load(path: str, *, threads: int = 1) -> Run:
    """Loads an ONNX file as a function, which returns NumPy float32."""
    with extra("onnx", "ONNX files"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    names = [output.name for output in session.get_outputs()]

    def run(images):
        return dict(
            zip(names, session.run(names, {"images": images}), strict=True)
        )

    return run


def _write(outputs, path, images):
    shape = (None, *images.shape[1:])
    spec = keras.InputSpec(dtype="uint8", shape=shape, name="images")
    with warnings.catch_warnings():
        # Keras adds to NumPy an attribute that tf2onnx needs.
        warnings.simplefilter("ignore", FutureWarning)
        outputs.export(
            path, format="onnx", input_signature=[spec], verbose=False
        )
