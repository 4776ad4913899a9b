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
from seed_tf.export.checking import (
    LIMITS,
    Limits,
    ParityReport,
    compare,
)
from seed_tf.export.decoding import decode
from seed_tf.export.index import read_index
from seed_tf.export.outputs import Outputs
from seed_tf.export.serving import Server
from seed_tf.export.versions import check_version, new_version
from seed_tf.export.warm_up import write_warm_up
from seed_tf.images import image_size_of, shorter_side
from seed_tf.io.fingerprints import fingerprint


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

    `path/<version>/` appears whole, or not at all: a SavedModel that plain
    TensorFlow loads, requests that warm a server up, and a model card,
    `README.md` and `metadata.json`. Its signatures take a batch "images":

    - `serving_default`: uint8 `[B, H, W, 3]`, RGB. Where H = W = S they are
      embedded as they are, else resized and cropped as in evaluation.
    - `serve_bytes`: string `[B]`, JPEG, PNG or WebP files, which are decoded
      (EXIF orientation respected, alpha dropped), resized and cropped as in
      evaluation, to the same bits.
    - `classify`, if there is a probe: files likewise.
    - `nearest`, if there is an index: files likewise.

    The first two give "embedding" `[B, D]`, of length 1, and "features"
    `[B, C]`, float32, see `Outputs`; `classify` "labels" `[B, k]` string and
    "scores" `[B, k]`, the probabilities, highest first; `nearest` "ids"
    `[B, k]` string and "similarities" `[B, k]`, the cosines, highest first,
    by comparison with every row of the index.

    A file that cannot be decoded is an INVALID_ARGUMENT error that names its
    position in the batch. Large batches are worked off a few images at a time.

    Args:
        encoder: `seed_tf.Encoder`, or any keras.Model of images that gives
            `[B, C]`. One that computes in 16 bits is exported in float32.
        path: str, folder of the model's versions; its last part is the name.
        image_size: positive int, S; by default the size that the encoder was
            trained at.
        resize: int, at least S, what the shorter side is resized to before
            the central crop; by default as 256 is to 224.
        files: sequence of bytes, image files on which the written model is
            compared with the Keras model and the evaluation's decoder; by
            default synthetic ones. 32 to 256 real ones are best.
        probe: `seed_tf.evaluation.ProbeResult`, of the encoder's features.
        labels: sequence of str, the names of the probe's classes.
        index: str, folder of an index that `seed_tf.search.build` made with
            this encoder. Embeddings become a variable, paths an asset.
        k: positive int, labels and neighbours that are answered, at most.
        version: positive int; by default one more than the highest there is.
        card: JSON dict of what else belongs into `metadata.json`: "license",
            and of a run "config" and "summary".
        limits: `seed_tf.export.Limits`, by default those of float32.

    Returns:
        `seed_tf.export.ParityReport`, what files give differently.

    Raises:
        ValueError: if an argument is wrong, another process is exporting to
            `path`, or the written model differs from the encoder by more
            than the limits. There is no new version then.
        OSError: if it cannot be written.

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
    files = list(files or synthetic_files())
    squares = _squares(files, image_size, resize)
    server = Server(
        outputs,
        image_size=image_size,
        resize=resize,
        classifier=probe and (probe.kernel, probe.bias, list(labels or ())),
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
                "fingerprint": fingerprint(encoder),
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


def synthetic_files():
    """Twelve image files of smooth noise, list of bytes."""
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
            "`probe` and `labels`, the names of its classes, need each other. "
            f"Received: {'labels' if probe is None else 'probe'} alone."
        )
    if probe is not None and probe.kernel.shape != (width, len(labels)):
        raise ValueError(
            f"The probe must be of {width} features and {len(labels)} labels. "
            f"Received: a kernel of shape {tuple(probe.kernel.shape)}."
        )


def _squares(files, image_size, resize):
    """What evaluation makes of files, `[N, S, S, 3]`."""
    squares = []
    for position, file in enumerate(files):
        try:
            squares.append(EncodedImage(file).square(image_size, resize))
        except Exception as error:  # of any kind: the data are damaged
            raise ValueError(
                "`files` must be images that can be decoded. Received: number "
                f"{position}: {error}."
            ) from error
    return np.stack(squares)


def _requests(server, blank):
    """A request for every signature."""
    jpeg = tf.io.encode_jpeg(blank[0]).numpy()
    png = tf.io.encode_png(blank[0]).numpy()
    return [
        (
            name,
            {"images": blank if name == "serving_default" else [jpeg, png]},
        )
        for name in server.functions
    ]


def _check(outputs, folder, final, files, squares, resize, limits):
    """Compares what was written with the Keras model, and refuses it."""
    signatures = tf.saved_model.load(folder).signatures
    size = sum(
        os.path.getsize(os.path.join(root, name))
        for root, _, names in os.walk(folder)
        for name in names
    )
    numbers = np.arange(len(files))
    for name, inputs in (("serving_default", squares), ("serve_bytes", files)):

        def run(rows, signature=signatures[name], inputs=inputs):
            return signature(tf.gather(inputs, rows))

        checked = ParityReport(
            path=final,
            format="saved_model",
            precision="float32",
            bytes=size,
            image_size=squares.shape[1],
            images=len(files),
            **compare(
                lambda rows: outputs.predict_on_batch(squares[rows]),
                run,
                numbers,
            ),
        )
        try:
            checked.refuse(limits or LIMITS["float32"])
        except ValueError as error:
            others = _decoded_otherwise(files, squares, resize)
            raise ValueError(f"{error} It was `{name}`. {others}") from None
    return checked


def _decoded_otherwise(files, squares, resize):
    """Says whether the server's decoder is at fault, or the network."""
    pixels, _ = decode(tf.constant(files), squares.shape[1], resize)
    less = np.abs(pixels.numpy().astype(int) - squares)
    count = np.count_nonzero(less.any((1, 2, 3)))
    return (
        f"Of {len(files)} files it decodes {count} otherwise than evaluation "
        f"does, by at most {less.max()} grey levels."
    )


def _described(server):
    """Inputs and outputs of each signature: names to dtypes and shapes."""

    def describe(specs):
        return {
            name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            for name, spec in specs.items()
        }

    described = {}
    for name, function in server.functions.items():
        graph = function.get_concrete_function()
        (images,) = graph.inputs[:1]
        described[name] = {
            "inputs": describe({"images": images}),
            "outputs": describe(graph.structured_outputs),
        }
    return described
