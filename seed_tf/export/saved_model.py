"""SavedModels for TensorFlow Serving: from image files to embeddings."""

from __future__ import annotations

import datetime
import io
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from seed_tf.acceleration.precision import in_float32
from seed_tf.datasets.decoding import EncodedImage
from seed_tf.evaluation import ProbeResult
from seed_tf.export import card as model_card
from seed_tf.export.checking import LIMITS, Limits, ParityReport, compare
from seed_tf.export.decoding import decode
from seed_tf.export.index import read_index
from seed_tf.export.outputs import Outputs
from seed_tf.export.serving import Server
from seed_tf.export.versions import check_version, new_version
from seed_tf.export.warm_up import write_warm_up
from seed_tf.images import image_size_of, shorter_side
from seed_tf.io.fingerprints import identity


def saved_model(
    encoder: keras.Model,
    path: str,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    files: Sequence[bytes] | None = None,
    probe: ProbeResult | None = None,
    labels: Sequence[str] | None = None,
    index: str | None = None,
    k: int = 10,
    version: int | None = None,
    card: dict[str, Any] | None = None,
    limits: Limits | None = None,
) -> ParityReport:
    """Writes an encoder as a version of a model for TensorFlow Serving.

    `path/<version>/` appears whole, or not at all. It holds a SavedModel that
    plain TensorFlow loads, requests that warm a server up, and a model card,
    `README.md` and `metadata.json`. The signatures take a batch "images":

    - `serving_default` takes pixels, uint8 RGB `[B, H, W, 3]`. If H or W
      differs from S, it resizes and crops them as in evaluation.
    - `serve_bytes` takes JPEG, PNG or WebP files, string `[B]`. It turns them
      upright by EXIF, drops alpha, and resizes and crops to the same bits as
      evaluation.
    - `classify` takes files. It needs a probe.
    - `nearest` takes files. It needs an index.

    The first two give "embedding" `[B, D]`, with length 1, and "features"
    `[B, C]`, float32, see `Outputs`. `classify` gives "labels" `[B, k]` string
    and "scores" `[B, k]`, the probabilities, highest first. `nearest` compares
    with every row of the index, and gives "ids" `[B, k]` string and
    "similarities" `[B, k]`, the cosines, highest first.

    A damaged file causes an INVALID_ARGUMENT error with the file's position in
    the batch.

    Args:
        encoder: `seed_tf.Encoder`, or any keras.Model from images to `[B, C]`.
            An encoder that computes in 16 bits is exported in float32.
        path: folder of the model's versions. Its last part names the model.
        image_size: positive int, S; by default the encoder's training size.
        resize: length of the shorter side before the central crop, at least
            S; by default S * 256 / 224.
        files: image files to compare the new model with the Keras model and
            the decoder of evaluation; by default synthetic files. Best are 32
            to 256 real files.
        probe: linear probe on the encoder's features.
        labels: names of the probe's classes.
        index: folder of an index by `seed_tf.search.build` with this encoder.
            Embeddings become a variable, paths an asset.
        k: largest number of labels and neighbours in an answer.
        version: positive int; by default the highest version plus 1.
        card: more JSON for `metadata.json`: "license", and a run's "config"
            and "summary".
        limits: by default the limits of float32.

    Returns:
        The differences between the SavedModel and the Keras model.

    Raises:
        ValueError: if an argument is wrong, another process exports to
            `path`, or the SavedModel exceeds the limits. There is no new
            version then.
        OSError: if the version cannot be written.

    Example:

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/birds"
    >>> checked = seed_tf.export.saved_model(student, path, image_size=32)
    >>> server = tf.saved_model.load(checked.path)
    >>> files = tf.io.encode_jpeg(images[0])[None]
    >>> server.functions["serve_bytes"](files)["embedding"].shape
    TensorShape([1, 128])
    """
    image_size = image_size_of(encoder, image_size)
    resize = resize or shorter_side(image_size)
    if image_size > resize:
        raise ValueError(
            "`resize` must be no smaller than `image_size`. "
            f"Received: image_size={image_size}, resize={resize}."
        )
    if k < 1:
        raise ValueError(f"`k` must be a positive integer. Received: k={k}.")
    path = os.path.abspath(os.path.expanduser(path))
    check_version(path, version)
    outputs = Outputs(in_float32(encoder))
    blank = np.zeros([1, image_size, image_size, 3], np.uint8)
    widths = {name: x.shape[1] for name, x in outputs(blank).items()}
    _check_probe(probe, labels, widths["features"])
    stored = None
    if index is not None:
        stored = read_index(
            index, encoder, image_size=image_size, resize=resize
        )
        if stored.embeddings.shape[1] != widths[stored.output]:
            raise ValueError(
                f"The index must have {widths[stored.output]} columns, as "
                f"{stored.output}. Received: {stored.embeddings.shape[1]}."
            )
    files = list(files or _synthetic_files())
    squares = _squares(files, image_size, resize)
    server = Server(
        outputs,
        image_size=image_size,
        resize=resize,
        probe=probe,
        labels=labels,
        index=stored,
        k=k,
    )
    with new_version(path, version) as (folder, final):
        tf.saved_model.save(server, folder, signatures=server.functions)
        write_warm_up(folder, _requests(server, blank))
        checked = _check(outputs, folder, final, files, squares, resize, limits)
        model_card.write(
            folder,
            {
                "name": os.path.basename(path),
                "version": int(os.path.basename(final)),
                "created": datetime.datetime.now(datetime.UTC).isoformat(
                    timespec="seconds"
                ),
                "fingerprint": identity(encoder),
                "parameters": int(encoder.count_params()),
                "widths": widths,
                "preprocessing": {
                    "image_size": image_size,
                    "resize": resize,
                    **model_card.PREPROCESSING,
                },
                "signatures": _described(server),
                "probe": probe and {"top-1": probe.accuracy},
                "index": stored and {"images": len(stored.embeddings)},
                "checked": {
                    "images": checked.images,
                    "largest_difference": checked.largest_difference,
                    "mean_cosine": checked.mean_cosine,
                },
                **(card or {}),
            },
        )
    return checked


def _synthetic_files():
    """Returns twelve image files of smooth noise, as bytes."""
    rng = np.random.default_rng(0)
    files = []
    for i, size in enumerate([(320, 240), (90, 400), (33, 31), (256, 256)]):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize(size)
        exif = Image.Exif()
        exif[0x0112] = 2 * i + 1  # orientation
        for ending in ("JPEG", "PNG", "WEBP"):
            file = io.BytesIO()
            image.save(file, ending, exif=exif)
            files.append(file.getvalue())
    return files


def _check_probe(probe, labels, width):
    if (probe is None) != (labels is None):
        raise ValueError(
            "Pass `probe` and the names of its classes, `labels`, together. "
            f"Received: {'labels' if probe is None else 'probe'} alone."
        )
    if probe is not None and probe.kernel.shape != (width, len(labels)):
        raise ValueError(
            f"The probe must have {width} features and {len(labels)} labels. "
            f"Received: a kernel of shape {tuple(probe.kernel.shape)}."
        )


def _squares(files, image_size, resize):
    """Decodes files as in evaluation, uint8 `[N, S, S, 3]`."""
    squares = []
    for position, file in enumerate(files):
        try:
            squares.append(EncodedImage(file).square(image_size, resize))
        except Exception as error:  # damaged data cause any kind
            raise ValueError(
                "`files` must be whole image files. Received: number "
                f"{position}: {error}."
            ) from error
    return np.stack(squares)


def _requests(server, blank):
    """Returns a request for every signature."""
    encoders = tf.io.encode_jpeg, tf.io.encode_png
    files = [encode(blank[0]).numpy() for encode in encoders]
    return [
        (name, {"images": blank if name == "serving_default" else files})
        for name in server.functions
    ]


def _check(outputs, folder, final, files, squares, resize, limits):
    """Compares the SavedModel with the Keras model, and refuses it if wrong."""
    signatures = tf.saved_model.load(folder).signatures
    size = sum(
        os.path.getsize(os.path.join(root, name))
        for root, _, names in os.walk(folder)
        for name in names
    )

    def expected(rows):
        return outputs.predict_on_batch(squares[rows])

    for name, inputs in (("serving_default", squares), ("serve_bytes", files)):

        def actual(rows, signature=signatures[name], inputs=inputs):
            return signature(tf.gather(inputs, rows))

        checked = ParityReport(
            path=final,
            format="saved_model",
            precision="float32",
            bytes=size,
            image_size=squares.shape[1],
            images=len(files),
            **compare(expected, actual, np.arange(len(files))),
        )
        try:
            checked.refuse(limits or LIMITS["float32"])
        except ValueError as error:
            cause = _decoder_differences(files, squares, resize)
            raise ValueError(f"{error} Signature: `{name}`. {cause}") from None
    return checked


def _decoder_differences(files, squares, resize):
    """Describes the differences of the decoder, to rule out the network."""
    pixels, _ = decode(tf.constant(files), squares.shape[1], resize)
    less = np.abs(pixels.numpy().astype(int) - squares)
    count = np.count_nonzero(less.any((1, 2, 3)))
    return (
        f"The server decodes {count} of {len(files)} files differently from "
        f"evaluation, by at most {less.max()} grey levels."
    )


def _described(server):
    """Returns dtypes and shapes of the inputs and outputs of each signature."""

    def describe(specs):
        return {
            name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            for name, spec in specs.items()
        }

    graphs = {
        name: function.get_concrete_function()
        for name, function in server.functions.items()
    }
    return {
        name: {
            "inputs": describe({"images": graph.inputs[0]}),
            "outputs": describe(graph.structured_outputs),
        }
        for name, graph in graphs.items()
    }
