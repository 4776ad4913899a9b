"""LiteRT (TensorFlow Lite) files, for phones and other small devices."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from seed_tf.export.checking import (
    LIMITS,
    Limits,
    ParityReport,
    Run,
    write_checked,
)
from seed_tf.io.extras import extra

PRECISIONS = tuple(LIMITS)
# Operators that int8 leaves in float. With normalisation in int8, lengths were
# between 0.98 and 1.17, or the file failed with a division by zero. XNNPACK has
# no int8 kernel for hard swish, and MobileNetV3 took twice the time.
_FLOAT = ["SQUARE", "SUM", "SQRT", "MAXIMUM", "DIV", "HARD_SWISH"]


def litert(
    encoder: keras.Model,
    path: str,
    *,
    images: np.ndarray | tf.data.Dataset,
    image_size: int | None = None,
    precision: str = "float32",
    labelled: Sequence[Any] | None = None,
    limits: Limits | None = None,
) -> ParityReport:
    """Writes an encoder as a LiteRT file, and compares it with the encoder.

    The file takes uint8 RGB images `[B, S, S, 3]`, for any B, and gives
    "embedding" `[B, D]`, with length 1, and "features" `[B, C]`, both float32
    (see `Outputs`), under the signature "serving_default". It normalises
    pixels itself. A file that agrees with the Keras model on `images` replaces
    the file at `path`. The report lies beside the file, as JSON.

    Args:
        encoder: `seed_tf.Encoder`, or any keras.Model from images to `[B, C]`.
            An encoder that computes in 16 bits is exported in float32.
        path: path that ends in ".tflite".
        images: `[N, S, S, 3]` uint8, or a `tf.data.Dataset` of such batches,
            with or without labels. Use real images, like those on the device.
            256 are compared. For int8, 256 more calibrate the ranges of
            activations; int8 needs at least 2 images.
        image_size: required side S of `images`. By default the encoder's
            training size, if the encoder stores it.
        precision: precision of weights and arithmetic.
            - "float32".
            - "float16": half the size. A CPU computes in float32.
            - "int8_dynamic": a quarter of the size, nearly as exact. Weights
              have a scale per channel, activations a range per image.
            - "int8": a quarter of the size, the fastest. Calibration fixes the
              ranges of activations, at a cost in accuracy. Hard swish and the
              normalisation to length 1 stay in float32.
        labelled: None, or a pair (train, test) to report k-NN top-1 before and
            after. Each is a pair of images `[N, S, S, 3]` uint8 and labels
            `[N]`, or a `tf.data.Dataset` of such batches.
        limits: by default the limits of the precision.

    Returns:
        The differences between the file and the Keras model.

    Raises:
        ValueError: if an argument is wrong, the file exceeds the limits, or
            the extra `litert` is not installed. `path` stays unchanged.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"`precision` must be one of {', '.join(PRECISIONS)}. "
            f"Received: precision={precision!r}."
        )
    with extra("litert", "LiteRT files"):
        from ai_edge_litert import interpreter  # noqa: F401
    return write_checked(
        encoder,
        path,
        format="litert",
        ending=".tflite",
        precision=precision,
        images=images,
        image_size=image_size,
        labelled=labelled,
        limits=limits,
        write=functools.partial(_write, precision=precision),
        load=load,
    )


def load(path: str, *, threads: int = 1) -> Run:
    """Loads a LiteRT file as a function, which returns NumPy float32."""
    with extra("litert", "LiteRT files"):
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(str(path), num_threads=threads)
    run = interpreter.get_signature_runner("serving_default")
    return lambda images: run(images=images)


def _write(outputs, path, images, precision):
    archive = keras.export.ExportArchive()
    archive.track(outputs)
    archive.add_endpoint(
        "serving_default",
        lambda images: outputs(images),
        input_signature=[
            tf.TensorSpec([None, *images.shape[1:]], tf.uint8, name="images")
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        # The converter loses the weights of a `tf.saved_model.save` and of
        # `from_concrete_functions`, but keeps the weights of an
        # ExportArchive.
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        content = _convert(converter, precision, images)
    with open(path, "wb") as file:
        file.write(content)


def _convert(converter, precision, images):
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision != "int8":
        return converter.convert()
    converter.representative_dataset = lambda: (
        {"images": image[np.newaxis]} for image in images
    )
    with warnings.catch_warnings():
        # TensorFlow's calibrator uses TensorFlow's deprecated interpreter.
        warnings.simplefilter("ignore", UserWarning)
        # Only the debugger can leave some operators in float.
        return tf.lite.experimental.QuantizationDebugger(
            converter=converter,
            debug_dataset=converter.representative_dataset,
            debug_options=tf.lite.experimental.QuantizationDebugOptions(
                denylisted_ops=_FLOAT
            ),
        ).get_nondebug_quantized_model()
