"""LiteRT (TensorFlow Lite) files, for phones and other small devices."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from seed_tf.export.checking import (
    Limits,
    ParityReport,
    check_ending,
    some,
    write_checked,
)
from seed_tf.io.extras import extra

PRECISIONS = ("float32", "float16", "int8_dynamic", "int8")
# What int8 leaves in float. The normalisation to length 1: in int8 lengths were
# between 0.98 and 1.17, or the file failed in a division by zero. Hard swish:
# XNNPACK has no int8 kernel of it, and MobileNetV3 took twice the time.
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
    """Writes an encoder as a LiteRT file that agrees with it.

    The file takes uint8 images `[B, S, S, 3]`, RGB, of any B, and gives
    "embedding" `[B, D]`, of length 1, and "features" `[B, C]`, both float32
    (see `Outputs`), under the signature "serving_default". Pixels are
    normalised inside. It is compared with the Keras model on `images` before
    it takes the place of `path`; the result is stored beside it as JSON.

    Args:
        encoder: `seed_tf.Encoder`, or any keras.Model of images that gives
            `[B, C]`. One that computes in 16 bits is exported in float32.
        path: str, ending in ".tflite".
        images: `[N, S, S, 3]` uint8, or a `tf.data.Dataset` of batches of
            them, alone or with labels: real images, as the device will see
            them. 256 are compared; for int8 as many others calibrate the
            ranges of activations, so that at least 2 are needed and 512 are
            best.
        image_size: int S, the size that `images` must have; by default the
            size that the encoder was trained at, if it is known.
        precision: how weights are stored, and what is computed in.
            - "float32".
            - "float16": half the size, computed in float32 on a CPU.
            - "int8_dynamic": a quarter of the size, nearly as exact. Weights
              per channel; activations take their range from each image.
            - "int8": a quarter of the size, the fastest. Activations have
              ranges fixed by calibration, which costs accuracy. Hard swish
              and the normalisation to length 1 stay in float32.
        labelled: None, or a pair (train, test), each a pair of images
            `[N, S, S, 3]` uint8 and labels `[N]`, or a `tf.data.Dataset` of
            batches of them: k-NN top-1 before and after is reported then.
        limits: `Limits`, by default those of the precision.

    Returns:
        `ParityReport`, what the file does differently.

    Raises:
        ValueError: if an argument is wrong, or the file differs from the
            model by more than the limits, or the extra `litert` is not
            installed. Nothing is written then.
    """
    check_ending(path, ".tflite")
    if precision not in PRECISIONS:
        raise ValueError(
            f"`precision` must be one of {', '.join(PRECISIONS)}. "
            f"Received: precision={precision!r}."
        )
    with extra("litert", "LiteRT files"):
        from ai_edge_litert import interpreter  # noqa: F401
    image_size = image_size or getattr(encoder, "image_size", None)
    parts = some(images, image_size, parts=2 if precision == "int8" else 1)

    def write(outputs, path):
        with open(path, "wb") as file:
            file.write(_convert(outputs, precision, parts[-1]))

    return write_checked(
        encoder,
        path,
        format="litert",
        precision=precision,
        images=parts[0],
        labelled=labelled,
        limits=limits,
        write=write,
        load=load,
    )


def load(path: str, *, threads: int = 1) -> Callable[[np.ndarray], dict]:
    """Loads a LiteRT file as a function.

    Args:
        path: str.
        threads: positive int.

    Returns:
        Function, images `[B, S, S, 3]` uint8 -> dict of "embedding" `[B, D]`
        and "features" `[B, C]`, NumPy float32.
    """
    with extra("litert", "LiteRT files"):
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(str(path), num_threads=threads)
    run = interpreter.get_signature_runner("serving_default")
    return lambda images: run(images=images)


def _convert(outputs, precision, calibration):
    side = calibration.shape[1]
    archive = keras.export.ExportArchive()
    archive.track(outputs)
    archive.add_endpoint(
        "serving_default",
        lambda images: outputs(images),
        input_signature=[
            tf.TensorSpec([None, side, side, 3], tf.uint8, name="images")
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        # By way of a SavedModel of ExportArchive: of `tf.saved_model.save` and
        # `from_concrete_functions` the converter leaves out the weights.
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision != "int8":
            return converter.convert()
        converter.representative_dataset = lambda: (
            {"images": image[np.newaxis]} for image in calibration
        )
        with warnings.catch_warnings():
            # The calibrator uses an interpreter that it says is deprecated.
            warnings.simplefilter("ignore", UserWarning)
            # Despite its name, how some operators are left in float.
            return tf.lite.experimental.QuantizationDebugger(
                converter=converter,
                debug_dataset=converter.representative_dataset,
                debug_options=tf.lite.experimental.QuantizationDebugOptions(
                    denylisted_ops=_FLOAT
                ),
            ).get_nondebug_quantized_model()
