"""Comparison of an exported file with the Keras model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from seed_tf.acceleration.precision import in_float32
from seed_tf.embeddings import l2_normalise
from seed_tf.evaluation import embed, knn, neighbour_agreement
from seed_tf.evaluation.labels import check_labelled
from seed_tf.export.outputs import Outputs
from seed_tf.images import check_channels
from seed_tf.io.files import atomic_write, write_json
from seed_tf.io.pipelines import steady

# Images `[B, S, S, 3]` uint8 to "embedding" `[B, D]` and "features" `[B, C]`.
Run: TypeAlias = Callable[[np.ndarray], Mapping[str, Any]]

_MOST = 256  # images to compare, and images to calibrate on
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far a file may be from the Keras model, see `ParityReport`.

    Attributes:
        difference: largest allowed difference of a number in an embedding.
        cosine: smallest allowed mean cosine, for each output.
        agreement: smallest allowed share of common neighbours, for each
            output.
    """

    difference: float
    cosine: float
    agreement: float


# For trained encoders. See docs/formats.md for measured differences.
LIMITS = {
    "float32": Limits(difference=1e-4, cosine=0.9999, agreement=0.9),
    "float16": Limits(difference=0.02, cosine=0.999, agreement=0.9),
    "int8_dynamic": Limits(difference=0.1, cosine=0.99, agreement=0.7),
    "int8": Limits(difference=0.5, cosine=0.9, agreement=0.5),
}


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """Differences between an exported file and the Keras model.

    LiteRT and ONNX files have their report beside them, as JSON:
    `student.tflite.json` beside `student.tflite`. The first four dicts have
    the keys "embedding" and "features".

    Attributes:
        path: the file or folder.
        format: "litert", "onnx" or "saved_model".
        precision: see `seed_tf.export.litert`.
        bytes: size of the file or folder.
        image_size: side of the images that the file takes, in pixels.
        images: number of compared images.
        largest_difference: for embeddings absolute, as their length is 1. For
            features a multiple of their root mean square.
        least_cosine: smallest cosine, over the images, between the outputs of
            Keras and of the file. Two zero vectors count as equal: 1.
        mean_cosine: mean of the same cosines.
        agreement: share of each image's nearest neighbours (at most 10) that
            Keras and the file have in common. If all embeddings of an encoder
            point in about the same direction, cosines stay near 1 even for a
            wrong file, and only the neighbours show the error.
        knn: None, or k-NN top-1 in [0, 1] on features. "keras" and "exported":
            bank and queries by the Keras model, or by the file. "mixed": bank
            by Keras, queries by the file.
    """

    path: str
    format: str
    precision: str
    bytes: int
    image_size: int
    images: int
    largest_difference: dict[str, float]
    least_cosine: dict[str, float]
    mean_cosine: dict[str, float]
    agreement: dict[str, float]
    knn: dict[str, float] | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.format} {self.precision}, "
            f"{self.bytes / 1e6:.1f} MB, on {self.images} images"
        ]
        lines += [
            f"  {name}: largest difference "
            f"{self.largest_difference[name]:.2g}, cosine "
            f"{self.mean_cosine[name]:.6f} (least "
            f"{self.least_cosine[name]:.6f}), neighbours shared "
            f"{100 * self.agreement[name]:.1f} %"
            for name in self.mean_cosine
        ]
        if self.knn:
            lines.append(
                "  k-NN top-1, %: "
                + ", ".join(f"{k} {100 * v:.1f}" for k, v in self.knn.items())
            )
        return "\n".join(lines)

    def refuse(self, limits: Limits) -> None:
        """Raises ValueError if the file exceeds `limits`."""
        difference = self.largest_difference["embedding"]
        cosine = min(self.mean_cosine.values())
        agreement = min(self.agreement.values())
        # `not <=` refuses NaN too.
        if not difference <= limits.difference:
            problem = (
                f"an embedding differs by {difference:.3g}, the limit is "
                f"{limits.difference:g}"
            )
        elif not cosine >= limits.cosine:
            problem = (
                f"the mean cosine is {cosine:.6f}, the limit is "
                f"{limits.cosine:g}"
            )
        elif not agreement >= limits.agreement:
            problem = (
                f"{agreement:.3f} of an image's nearest neighbours agree, "
                f"the limit is {limits.agreement:g}"
            )
        else:
            return
        raise ValueError(
            f"The {self.format} file in {self.precision} is not the Keras "
            f"model: {problem}. Nothing was written to {self.path!r}. "
            f"{_REMEDIES[self.precision]} To accept the file anyway, pass "
            "wider `limits`."
        )


_REMEDIES = {
    "float32": (
        "Deep networks with random weights amplify rounding: export a trained "
        "encoder, and pass images like its training images."
    ),
    "float16": (
        'Values may exceed the range of float16: use precision="float32".'
    ),
    "int8_dynamic": 'Use precision="float16", with twice the size.',
    "int8": (
        'Use precision="int8_dynamic", with the same size, or pass `images` '
        "like those on the device: the images calibrate the activations."
    ),
}


def write_checked(
    encoder: keras.Model,
    path: str,
    *,
    format: str,
    ending: str,
    precision: str,
    images: np.ndarray | tf.data.Dataset,
    image_size: int | None,
    labelled: Sequence[Any] | None,
    limits: Limits | None,
    write: Callable[[Outputs, str, np.ndarray], None],
    load: Callable[[str], Run],
) -> ParityReport:
    """Writes a file, compares it with the encoder, and keeps it if they agree.

    Args:
        encoder, images, image_size, labelled, limits: see
            `seed_tf.export.litert`.
        path, format, precision: see `ParityReport`.
        ending: end of the path, such as ".onnx".
        write: writes the outputs to a path. Its images `[n, S, S, 3]` uint8
            calibrate the file.
        load: loads the file at a path as a function.

    Returns:
        The report, also written to `path` + ".json".

    Raises:
        ValueError: if an argument is wrong, or the file exceeds the limits.
    """
    if not str(path).endswith(ending):
        raise ValueError(
            f"`path` must end in {ending!r}. Received: path={str(path)!r}."
        )
    image_size = image_size or getattr(encoder, "image_size", None)
    parts = some(images, image_size, parts=2 if precision == "int8" else 1)
    compared, calibration = parts[0], parts[-1]
    side = compared.shape[1]
    if labelled is not None:
        labelled = _labelled(labelled, side)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    outputs = Outputs(in_float32(encoder))
    size = sum(int(np.prod(w.shape)) for w in encoder.weights)
    # A number takes a byte in int8, the smallest format.
    with atomic_write(path, size) as unfinished:
        write(outputs, unfinished, calibration)
        run = load(unfinished)
        report = ParityReport(
            path=str(path),
            format=format,
            precision=precision,
            bytes=os.path.getsize(unfinished),
            image_size=side,
            images=len(compared),
            **compare(outputs.predict_on_batch, run, compared),
        )
        report.refuse(limits or LIMITS[precision])
        if labelled is not None:
            scores = _knn_top1(outputs.encoder, run, *labelled)
            report = dataclasses.replace(report, knn=scores)
        write_json(f"{path}.json", dataclasses.asdict(report))
    return report


def compare(
    expected: Run, actual: Run, images: np.ndarray
) -> dict[str, dict[str, float]]:
    """Returns differences, cosines and agreement, as in `ParityReport`.

    Args:
        expected: the Keras model.
        actual: the exported file.
        images: `[N, S, S, 3]` uint8, or N arguments of another kind.
    """
    names = "largest_difference", "least_cosine", "mean_cosine", "agreement"
    fields: dict[str, dict[str, float]] = {name: {} for name in names}
    references, outputs = run_all(expected, images), run_all(actual, images)
    for name, wanted in references.items():
        given = outputs[name]
        scale = 1.0 if name == "embedding" else np.sqrt(np.mean(wanted**2))
        difference = np.abs(given - wanted).max() / max(scale, 1e-12)
        cosines = np.sum(l2_normalise(given) * l2_normalise(wanted), axis=1)
        cosines[~np.any(given, axis=1) & ~np.any(wanted, axis=1)] = 1.0
        fields["largest_difference"][name] = float(difference)
        fields["least_cosine"][name] = float(cosines.min())
        fields["mean_cosine"][name] = float(cosines.mean())
        fields["agreement"][name] = _agreement(wanted, given)
    return fields


def _agreement(wanted, given):
    if not np.isfinite(given).all():
        return 0.0
    k = min(10, len(wanted) // 4)
    return neighbour_agreement(wanted, given, k=k) if k else 1.0


def run_all(run: Run, images: np.ndarray) -> dict[str, np.ndarray]:
    """Runs all images, a few at a time, and returns float64 `[N, C]` arrays."""
    batches = [
        run(images[start : start + _BATCH])
        for start in range(0, len(images), _BATCH)
    ]
    return {
        name: np.concatenate([np.asarray(b[name], np.float64) for b in batches])
        for name in batches[0]
    }


def _knn_top1(encoder, run, train, test):
    """Returns k-NN top-1 before and after, see `ParityReport.knn`."""

    def rows(images, labels):
        return (
            (embed(encoder, images, batch_size=_BATCH), labels),
            (run_all(run, images)["features"], labels),
        )

    keras_bank, exported_bank = rows(*train)
    keras_queries, exported_queries = rows(*test)
    k = min(10, len(train[1]))
    return {
        "keras": knn(keras_bank, keras_queries, k=k),
        "exported": knn(exported_bank, exported_queries, k=k),
        "mixed": knn(keras_bank, exported_queries, k=k),
    }


def some(
    images: np.ndarray | tf.data.Dataset,
    image_size: int | None = None,
    *,
    parts: int = 1,
) -> list[np.ndarray]:
    """Chooses images to compare on, and images to calibrate on.

    Args:
        images: `[N, S, S, 3]` uint8, or a `tf.data.Dataset` of such batches,
            with or without labels.
        image_size: required S, or None for any.
        parts: number of arrays, without a common image.

    Returns:
        List of arrays `[n, S, S, 3]` uint8, with at most 256 images each.

    Raises:
        ValueError: if there are fewer than `parts` images, or the shape or
            dtype differs.
    """
    count = parts * _MOST
    if isinstance(images, tf.data.Dataset):
        batches, found = [], 0
        for batch in steady(images):
            batches.append(batch[0] if isinstance(batch, tuple) else batch)
            found += len(batches[-1])
            if found >= count:
                break
        images = np.concatenate(batches) if batches else np.zeros([0], "uint8")
    images = np.asarray(images)
    if len(images) < parts:
        raise ValueError(
            f"`images` must hold at least {parts}: an export is compared on "
            + ("all" if parts == 1 else "one half and calibrated on the other")
            + f". Received: {len(images)}."
        )
    _check_pixels("images", images, image_size)
    # Images may be sorted by class: choose them evenly.
    chosen = np.linspace(0, len(images) - 1, min(count, len(images)))
    images = images[np.round(chosen).astype(int)]
    return [images[part::parts] for part in range(parts)]


def _check_pixels(name, images, image_size=None):
    check_channels(images)
    side = image_size or images.shape[1]
    if images.dtype != np.uint8 or images.shape[1:3] != (side, side):
        raise ValueError(
            f"`{name}` must be uint8 [N, {side}, {side}, 3], as the exported "
            f"file takes. Received: {images.dtype} {images.shape}. "
            "Crop and resize the images as for evaluation, with "
            f"`seed_tf.datasets.load(..., image_size={side})`, or pass another "
            "`image_size`."
        )


def _labelled(pair, side):
    """Returns the checked pair (train, test) as pairs of arrays."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            "`labelled` must be a pair (train, test). "
            f"Received: {type(pair).__name__}."
        )
    checked = []
    for name, data in zip(("train", "test"), pair, strict=True):
        if isinstance(data, tf.data.Dataset):
            batches = steady(data).as_numpy_iterator()
            images, labels = zip(*batches, strict=True)
            data = np.concatenate(images), np.concatenate(labels)
        images, labels = check_labelled(name, data)
        _check_pixels(name, images, side)
        checked.append((images, labels))
    return checked
