"""An exported file is compared with the Keras model before it gets its name."""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from seed_tf.acceleration.precision import in_float32
from seed_tf.embeddings import l2_normalise
from seed_tf.evaluation import embed, knn, neighbour_agreement
from seed_tf.evaluation.labels import check_labelled
from seed_tf.export.outputs import Outputs
from seed_tf.images import check_channels
from seed_tf.io.files import atomic_write, write_json

_MOST = 256  # images that an export is checked on, and calibrated on
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far a file may be from the Keras model, see `ParityReport`.

    Attributes:
        difference: float, the largest of any number of an embedding.
        cosine: float, the least mean over images, of either output.
        agreement: float, the least share of neighbours, of either output.
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
    """What an exported file does differently from the Keras model.

    Of LiteRT and ONNX stored as JSON, `student.tflite.json` beside
    `student.tflite`.

    Attributes:
        path: str, the file, or folder.
        format: "litert", "onnx" or "saved_model".
        precision: str, as of `seed_tf.export.litert`.
        bytes: int, its size.
        image_size: int, pixels of a side of the images that it takes.
        images: int, number of images that were compared.
        largest_difference: dict of "embedding" and "features" to floats:
            absolute of embeddings, whose length is 1; of features as a
            multiple of their root mean square.
        least_cosine, mean_cosine: dicts likewise, over the images, between
            what Keras and what the file gives.
        agreement: dict likewise, the share of each image's (at most 10)
            nearest neighbours among the others that Keras and the file both
            name. Of two encoders whose embeddings all point about one way the
            cosine is near 1 whatever they do; this is not.
        knn: None, or dict of "keras", "exported" and "mixed" to k-NN top-1 in
            [0, 1] on features: of bank and queries by the Keras model, by the
            file, and of a bank by Keras asked with queries by the file.
    """

    path: str
    format: str
    precision: str
    bytes: int
    image_size: int
    images: int
    largest_difference: dict
    least_cosine: dict
    mean_cosine: dict
    agreement: dict
    knn: dict | None = None

    def __str__(self):
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

    def refuse(self, limits):
        """Raises ValueError if the file is further away than `limits`."""
        difference = self.largest_difference["embedding"]
        cosine = min(self.mean_cosine.values())
        agreement = min(self.agreement.values())
        # Written so that NaN is refused.
        if not difference <= limits.difference:
            problem = (
                f"an embedding differs by {difference:.3g}, the limit is "
                f"{limits.difference:g}"
            )
        elif not cosine >= limits.cosine:
            problem = (
                f"the mean cosine with it is {cosine:.6f}, the limit is "
                f"{limits.cosine:g}"
            )
        elif not agreement >= limits.agreement:
            problem = (
                f"{agreement:.3f} of an image's nearest neighbours are shared, "
                f"the limit is {limits.agreement:g}"
            )
        else:
            return
        raise ValueError(
            f"The {self.format} file in {self.precision} is not the Keras "
            f"model: {problem}. Nothing was written to {self.path!r}. "
            f"{_REMEDIES[self.precision]} To accept it all the same, pass "
            "other `limits`."
        )


_REMEDIES = {
    "float32": (
        "Deep networks with random weights amplify rounding: export a trained "
        "encoder, and give images like those it was trained on."
    ),
    "float16": (
        'Weights or images may exceed its range: use precision="float32".'
    ),
    "int8_dynamic": 'Use precision="float16", of twice the size.',
    "int8": (
        'Use precision="int8_dynamic", of the same size, and give such '
        "`images` as the device will see: they calibrate the activations."
    ),
}


def write_checked(
    encoder, path, *, format, precision, images, labelled, limits, write, load
):
    """Writes a file, compares it with the encoder, and keeps it if it agrees.

    Args:
        encoder, images, labelled, limits: as of `seed_tf.export.litert`;
            images `[N, S, S, 3]` uint8, see `some`.
        path, format, precision: as of `ParityReport`.
        write: function of `Outputs` and a path that writes the file.
        load: function of a path that gives the file as a function: images
            `[B, S, S, 3]` uint8 -> dict of "embedding" and "features".

    Returns:
        `ParityReport`.

    Raises:
        ValueError: if the file differs by more than the limits.
    """
    if labelled is not None:
        labelled = _labelled(labelled, images.shape[1])
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    outputs = Outputs(in_float32(encoder))
    with atomic_write(path) as unfinished:
        write(outputs, unfinished)
        run = load(unfinished)
        comparison = compare(outputs.predict_on_batch, run, images)
        result = ParityReport(
            path=str(path),
            format=format,
            precision=precision,
            bytes=os.path.getsize(unfinished),
            image_size=images.shape[1],
            images=len(images),
            **comparison,
        )
        result.refuse(limits or LIMITS[precision])
        if labelled is not None:
            scores = knn_drift(outputs.encoder, run, *labelled)
            result = dataclasses.replace(result, knn=scores)
        write_json(f"{path}.json", dataclasses.asdict(result))
    return result


def compare(expected, actual, images):
    """Differences and cosines, as the fields of `ParityReport`.

    Args:
        expected, actual: functions, images `[B, S, S, 3]` uint8 -> dict of
            arrays `[B, C]`.
        images: `[N, S, S, 3]` uint8.
    """
    names = "largest_difference", "least_cosine", "mean_cosine", "agreement"
    fields = {name: {} for name in names}
    expected, actual = run_all(expected, images), run_all(actual, images)
    for name, wanted in expected.items():
        given = actual[name]
        scale = 1.0 if name == "embedding" else np.sqrt(np.mean(wanted**2))
        difference = np.abs(given - wanted).max() / max(scale, 1e-12)
        cosines = np.sum(l2_normalise(given) * l2_normalise(wanted), axis=1)
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


def run_all(run, images):
    """Outputs of all images, a few at a time: dict of arrays `[N, C]`."""
    batches = [
        run(images[start : start + _BATCH])
        for start in range(0, len(images), _BATCH)
    ]
    return {
        name: np.concatenate([np.asarray(b[name], np.float64) for b in batches])
        for name in batches[0]
    }


def knn_drift(encoder, run, train, test, *, k=10):
    """k-NN top-1 before and after, see `ParityReport.knn`.

    Args:
        encoder: the Keras model.
        run: the exported one, a function as in `compare`.
        train, test: pairs of images `[N, S, S, 3]` uint8 and labels `[N]`.
        k: int, or as many as there are in `train`.
    """
    k = min(k, len(train[1]))
    rows = {
        "keras": lambda images: embed(encoder, images, batch_size=_BATCH),
        "exported": lambda images: run_all(run, images)["features"],
    }
    bank, queries = (
        {name: (row(images), labels) for name, row in rows.items()}
        for images, labels in (train, test)
    )
    pairs = {
        "keras": ("keras", "keras"),
        "exported": ("exported", "exported"),
        "mixed": ("keras", "exported"),
    }
    return {
        name: knn(bank[first], queries[second], k=k)
        for name, (first, second) in pairs.items()
    }


def some(images, image_size=None, *, parts=1):
    """The images that an export is checked on, and those it is calibrated on.

    Args:
        images: `[N, S, S, 3]` uint8, or a `tf.data.Dataset` of batches of
            them, alone or with labels.
        image_size: int S, or None.
        parts: int, how many arrays to deal them out to.

    Returns:
        List of arrays `[n, S, S, 3]` uint8, each of at most 256.

    Raises:
        ValueError: if there are fewer than `parts` images, or they are of
            another shape or dtype.
    """
    count = parts * _MOST
    if isinstance(images, tf.data.Dataset):
        batches, found = [], 0
        for batch in images:
            batches.append(batch[0] if isinstance(batch, tuple) else batch)
            found += len(batches[-1])
            if found >= count:
                break
        images = np.concatenate(batches) if batches else np.zeros([0], "uint8")
    images = np.asarray(images)
    if len(images) < parts:
        raise ValueError(
            f"`images` must hold at least {parts}: an export is checked on "
            + ("them" if parts == 1 else "one half and calibrated on the other")
            + f". Received: {len(images)}."
        )
    _check_pixels("images", images, image_size)
    # Spread over all of them, which may be sorted by class.
    chosen = np.linspace(0, len(images) - 1, min(count, len(images)))
    images = images[np.round(chosen).astype(int)]
    return [images[part::parts] for part in range(parts)]


def _check_pixels(name, images, image_size=None):
    check_channels(images)
    side = image_size or images.shape[1]
    if images.dtype != np.uint8 or images.shape[1:3] != (side, side):
        raise ValueError(
            f"`{name}` must be uint8 [N, {side}, {side}, 3], the images that "
            f"the file will take. Received: {images.dtype} {images.shape}. "
            "Crop and resize the images as for evaluation with "
            f"`seed_tf.datasets.load(..., image_size={side})`, or pass another "
            "`image_size`."
        )


def check_ending(path, ending):
    """Raises ValueError unless a path ends as its format does."""
    if not str(path).endswith(ending):
        raise ValueError(
            f"`path` must end in {ending!r}. Received: path={str(path)!r}."
        )


def _labelled(pair, side):
    """The pair (train, test), checked, as pairs of arrays."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            "`labelled` must be a pair (train, test). "
            f"Received: {type(pair).__name__}."
        )
    checked = []
    for name, data in zip(("train", "test"), pair, strict=True):
        if isinstance(data, tf.data.Dataset):
            images, labels = zip(*data.as_numpy_iterator(), strict=True)
            data = np.concatenate(images), np.concatenate(labels)
        images, labels = check_labelled(name, data)
        _check_pixels(name, images, side)
        checked.append((images, labels))
    return checked
