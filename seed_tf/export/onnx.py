"""ONNX files, for other runtimes."""

from __future__ import annotations

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


def onnx(
    encoder: keras.Model,
    path: str,
    *,
    images: np.ndarray | tf.data.Dataset,
    image_size: int | None = None,
    labelled: Sequence[Any] | None = None,
    limits: Limits | None = None,
) -> ParityReport:
    """Writes an encoder as an ONNX file that agrees with it.

    The file takes uint8 "images" `[B, S, S, 3]`, RGB, of any B, and gives
    "embedding" `[B, D]`, of length 1, and "features" `[B, C]`, both float32
    (see `Outputs`). Pixels are normalised inside. It is run by ONNX Runtime
    and compared with the Keras model on `images` before it takes the place of
    `path`; the result is stored beside it as JSON.

    Args:
        encoder: `seed_tf.Encoder`, or any keras.Model of images that gives
            `[B, C]`. One that computes in 16 bits is exported in float32.
        path: str, ending in ".onnx".
        images: `[N, S, S, 3]` uint8, or a `tf.data.Dataset` of batches of
            them, alone or with labels: real images. 256 are compared.
        image_size: int S, the size that `images` must have; by default the
            size that the encoder was trained at, if it is known.
        labelled, limits: as of `seed_tf.export.litert`.

    Returns:
        `ParityReport`, what the file does differently.

    Raises:
        ValueError: if an argument is wrong, or the file differs from the
            model by more than the limits, or the extra `onnx` is not
            installed. Nothing is written then.
    """
    check_ending(path, ".onnx")
    with extra("onnx", "ONNX files"):
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    image_size = image_size or getattr(encoder, "image_size", None)
    (images,) = some(images, image_size)

    def write(outputs, path):
        shape = (None, *images.shape[1:])
        spec = keras.InputSpec(dtype="uint8", shape=shape, name="images")
        with warnings.catch_warnings():
            # Keras asks NumPy for what tf2onnx misses there.
            warnings.simplefilter("ignore", FutureWarning)
            outputs.export(
                path, format="onnx", input_signature=[spec], verbose=False
            )

    return write_checked(
        encoder,
        path,
        format="onnx",
        precision="float32",
        images=images,
        labelled=labelled,
        limits=limits,
        write=write,
        load=load,
    )


def load(path: str, *, threads: int = 1) -> Callable[[np.ndarray], dict]:
    """Loads an ONNX file as a function, run by ONNX Runtime.

    Args:
        path: str.
        threads: positive int.

    Returns:
        Function, images `[B, S, S, 3]` uint8 -> dict of "embedding" `[B, D]`
        and "features" `[B, C]`, NumPy float32.
    """
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
