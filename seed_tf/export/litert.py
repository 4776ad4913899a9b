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

from seed_tf.arguments import integer
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
    batch_size: int | None = 1,
    int8_inputs: bool = False,
    labelled: Sequence[Any] | None = None,
    limits: Limits | None = None,
) -> ParityReport:
    """Writes an encoder as a LiteRT file, and compares it with the encoder.

    The file takes uint8 RGB images `[B, S, S, 3]` and gives
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
        batch_size: B. A phone embeds one image at a time, and knows all
            shapes beforehand: XNNPACK then computes the whole network. None
            for any B, which splits the network into parts.
        int8_inputs: bool, with precision="int8" only: inputs, outputs and
            every operation in int8, as microcontrollers and compilers for
            Edge TPUs need. The input is the pixel less 128. Outputs have the
            scale and zero point that the file states, and "embedding" is not
            scaled to length 1; `load` does both.
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
    if int8_inputs and precision != "int8":
        raise ValueError(
            '`int8_inputs` needs precision="int8". '
            f"Received: precision={precision!r}."
        )
    if batch_size is not None:
        batch_size = integer("batch_size", batch_size)
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
        write=functools.partial(
            _write,
            precision=precision,
            batch_size=batch_size,
            int8_inputs=int8_inputs,
        ),
        load=load,
    )


def load(path: str, *, threads: int = 1) -> Run:
    """Loads a LiteRT file of `litert` as a function.

    Args:
        path: path of the file.
        threads: number of threads.

    Returns:
        Function from images `[N, S, S, 3]` uint8, for any N, to a dict of
        "embedding" `[N, D]` and "features" `[N, C]`, NumPy float32.
    """
    with extra("litert", "LiteRT files"):
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(str(path), num_threads=threads)
    signature = interpreter.get_signature_runner("serving_default")
    given = signature.get_input_details()["images"]
    made = signature.get_output_details()
    batch = int(given["shape_signature"][0])

    def run(images):
        images = np.asarray(images)
        if given["dtype"] == np.int8:
            images = (images.astype(np.int16) - 128).astype(np.int8)
        if batch < 0:
            return signature(images=images)
        parts = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            missing = [(0, batch - len(part))] + [(0, 0)] * 3
            outputs = signature(images=np.pad(part, missing))
            parts.append({k: v[: len(part)] for k, v in outputs.items()})
        return {k: np.concatenate([p[k] for p in parts]) for k in made}

    def real(images):
        outputs = run(images)
        for name, details in made.items():
            if details["dtype"] == np.int8:
                scale, zero = details["quantization"]
                outputs[name] = np.float32(scale) * (
                    outputs[name].astype(np.float32) - zero
                )
        length = np.linalg.norm(outputs["embedding"], axis=1, keepdims=True)
        if given["dtype"] == np.int8:
            outputs["embedding"] /= np.maximum(length, 1e-12)
        return outputs

    return real


def _write(outputs, path, images, precision, batch_size, int8_inputs):
    archive = keras.export.ExportArchive()
    archive.track(outputs)
    archive.add_endpoint(
        "serving_default",
        (lambda images: outputs.raw(images))
        if int8_inputs
        else (lambda images: outputs(images)),
        input_signature=[
            tf.TensorSpec(
                [batch_size, *images.shape[1:]],
                tf.float32 if int8_inputs else tf.uint8,
                name="images",
            )
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        # The converter loses the weights of a `tf.saved_model.save` and of
        # `from_concrete_functions`, but keeps the weights of an
        # ExportArchive.
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        content = _convert(
            converter, precision, images, batch_size or 1, int8_inputs
        )
    with open(path, "wb") as file:
        file.write(content)


def _convert(converter, precision, images, batch_size, int8_inputs):
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision != "int8":
        return converter.convert()
    if int8_inputs:
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        ]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
        # The scale becomes 1, the zero point -128.
        range_ = np.zeros_like(images[:1])
        range_[:, ::2] = 255
        images = np.concatenate([images, range_]).astype(np.float32)
    converter.representative_dataset = lambda: (
        {"images": np.repeat(image[np.newaxis], batch_size, axis=0)}
        for image in images
    )
    with warnings.catch_warnings():
        # TensorFlow's calibrator uses TensorFlow's deprecated interpreter.
        warnings.simplefilter("ignore", UserWarning)
        if int8_inputs:
            return converter.convert()
        # Only the debugger can leave some operators in float.
        return tf.lite.experimental.QuantizationDebugger(
            converter=converter,
            debug_dataset=converter.representative_dataset,
            debug_options=tf.lite.experimental.QuantizationDebugOptions(
                denylisted_ops=_FLOAT
            ),
        ).get_nondebug_quantized_model()
