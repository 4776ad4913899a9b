"""Writes an encoder for TensorFlow Serving, LiteRT or ONNX.

    seed-tf export --encoder=runs/student --output=exports \\
        --format=saved_model --format=litert --data_dir=photos

writes `exports/student/1/` for TensorFlow Serving and `exports/student.tflite`,
and prints the difference of each from the Keras model. See docs/serving.md and
docs/formats.md.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import seed_tf
from seed_tf.cli.flags import Call, Command, repeated
from seed_tf.config import setting

if TYPE_CHECKING:
    from seed_tf.evaluation.linear_probe import ProbeResult

FORMATS = ("saved_model", "litert", "onnx", "keras")
PRECISIONS = ("float32", "float16", "int8_dynamic", "int8")  # of LiteRT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    encoder: str = setting(
        None,
        "A run folder, .keras file or published checkpoint.",
        required=True,
        path="read",
    )
    format: tuple[str, ...] = repeated(
        ("saved_model",),
        "Format to write. 'keras' writes encoder and backbone.",
        choices=FORMATS,
    )
    precision: tuple[str, ...] = repeated(
        ("float32",), "Arithmetic of litert.", choices=PRECISIONS
    )
    batch: int = setting(
        1, "Images that a litert file takes at a time; 0 for any.", minimum=0
    )
    int8_inputs: bool = setting(
        False,
        "Inputs, outputs and all operations of a litert file with "
        "--precision=int8 in int8, for microcontrollers and Edge TPUs.",
    )
    output: str = setting(
        None, "Folder for all files.", required=True, path="written"
    )
    name: str | None = setting(
        None, "Name of the model. The default is the run's."
    )
    image_size: int | None = setting(
        None,
        "Pixels of a side. The default is the run's, or the encoder's.",
        minimum=1,
    )
    data_dir: str | None = setting(
        None,
        "Folder of typical images: 256 of them check the export and calibrate "
        "int8. litert and onnx need the folder.",
        path="read",
    )
    split: str = setting("train", "Split of --data_dir.")
    labels_dir: str | None = setting(
        None,
        "Folder with train and test, each of class folders. saved_model trains "
        "a linear probe on them for its signature 'classify'; litert and onnx "
        "report k-NN top-1 before and after.",
        path="read",
    )
    index: str | None = setting(
        None,
        "Folder of an index by seed-tf search, for saved_model's signature "
        "'nearest'.",
        path="read",
    )
    k: int = setting(
        10, "Labels and neighbours in an answer, at most.", minimum=1
    )
    limits: str | None = setting(
        None,
        "Accepts files that differ more from the Keras model: largest "
        "difference of a number in an embedding, smallest mean cosine, "
        "smallest share of common neighbours, as in 0.001,0.99,0.8.",
    )
    license: str | None = setting(None, "License for the model card.")
    batch_size: int = setting(64, "Images run at a time.", minimum=1)


EXTRAS = {"litert": "ai_edge_litert", "onnx": "tf2onnx"}
_MOST = 256  # images to compare


Written = Iterator[tuple[str, Any]]  # path and comparison, or None


class Run:
    """Loads and checks everything that the settings name."""

    def __init__(self, settings: Settings):
        from seed_tf.export.index import read_index
        from seed_tf.images import image_size_of, shorter_side
        from seed_tf.io.files import read_json
        from seed_tf.teachers import absolute, load_encoder

        self.settings = settings
        folder = os.path.expanduser(settings.encoder)
        if not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        self.config = read_json(os.path.join(folder, "config.json"), {})
        self.summary = read_json(os.path.join(folder, "summary.json"), {})
        self.size = settings.image_size or self.config.get("image_size")
        self.encoder = None
        if not self.size:
            self.encoder = load_encoder(settings.encoder)
            try:
                self.size = image_size_of(self.encoder)
            except ValueError:
                raise ValueError(
                    f"--image_size is needed: {settings.encoder!r} does not "
                    "know it, and there is no config.json of a run beside it."
                ) from None
        self.resize = shorter_side(self.size)
        path = absolute(settings.encoder).rpartition(":")[2]
        self.name = settings.name or os.path.basename(path).split(".")[0]
        if os.path.basename(self.name) != self.name or not self.name:
            raise ValueError(
                f"--name must be a file name. Received: {self.name!r}."
            )
        self.limits = _limits(settings.limits) if settings.limits else None
        if settings.int8_inputs and "int8" not in settings.precision:
            raise ValueError("--int8_inputs needs --precision=int8.")
        if settings.index and "saved_model" not in settings.format:
            raise ValueError("--index needs --format=saved_model.")
        if not settings.data_dir and {"litert", "onnx"} & set(settings.format):
            raise ValueError(
                "litert and onnx need --data_dir, images to compare."
            )
        for name in set(settings.format) & set(EXTRAS):
            if not importlib.util.find_spec(EXTRAS[name]):
                raise ValueError(
                    f"--format={name} needs optional packages: "
                    f'pip install "seed_tf[{name}]".'
                )
        os.makedirs(settings.output, exist_ok=True)
        self.images = settings.data_dir and self._load(
            settings.data_dir, settings.split
        )
        self.labelled = settings.labels_dir and [
            self._load(settings.labels_dir, split, labels=True)
            for split in ("train", "test")
        ]
        if self.encoder is None:
            self.encoder = load_encoder(settings.encoder)
        if settings.index:
            read_index(
                settings.index,
                self.encoder,
                image_size=self.size,
                resize=self.resize,
            )

    def file(self, ending: str) -> str:
        """Returns the path of an exported file."""
        return os.path.join(self.settings.output, self.name + ending)

    def _load(self, data_dir, split, labels=False):
        source = seed_tf.datasets.describe(
            "folder", split=split, data_dir=data_dir
        ).source
        print(source.summary, flush=True)
        return seed_tf.datasets.load(
            source,
            image_size=self.size,
            resize=self.resize,
            batch_size=self.settings.batch_size,
            shuffle=False,
            labels=labels,
            # Unreadable images are left out, with a warning.
            corrupt=seed_tf.datasets.CorruptFiles(1.0),
        )


def _limits(text):
    try:
        return seed_tf.export.Limits(*map(float, text.split(",")))
    except (TypeError, ValueError):
        raise ValueError(
            "--limits must be three numbers, as in 0.001,0.99,0.8. "
            f"Received: {text!r}."
        ) from None


# These functions yield each path, and its comparison with the Keras model.
def saved_model(run: Run) -> Written:
    """Writes a model for TensorFlow Serving."""
    probe, labels = probe_and_labels(run) if run.labelled else (None, None)
    checked = seed_tf.export.saved_model(
        run.encoder,
        run.file(""),
        image_size=run.size,
        resize=run.resize,
        files=some_files(run) if run.settings.data_dir else None,
        probe=probe,
        labels=labels,
        index=run.settings.index,
        k=run.settings.k,
        limits=run.limits,
        card={
            "source": run.settings.encoder,
            "license": run.settings.license,
            "config": run.config,
            "summary": run.summary,
        },
    )
    yield checked.path, checked


def litert(run: Run) -> Written:
    """Writes a file for LiteRT in each precision."""
    batch = run.settings.batch or None
    print(
        f"LiteRT: {batch} images at a time, the fastest on phones is 1."
        if batch
        else "LiteRT: any number of images at a time; --batch=1 is faster.",
        flush=True,
    )
    for precision in dict.fromkeys(run.settings.precision):
        ending = "" if precision == "float32" else f".{precision}"
        path = run.file(f"{ending}.tflite")
        yield (
            path,
            seed_tf.export.litert(
                run.encoder,
                path,
                images=run.images,
                image_size=run.size,
                precision=precision,
                batch_size=batch,
                int8_inputs=run.settings.int8_inputs and precision == "int8",
                labelled=run.labelled,
                limits=run.limits,
            ),
        )


def onnx(run: Run) -> Written:
    """Writes a file for ONNX."""
    path = run.file(".onnx")
    yield (
        path,
        seed_tf.export.onnx(
            run.encoder,
            path,
            images=run.images,
            image_size=run.size,
            labelled=run.labelled,
            limits=run.limits,
        ),
    )


def keras(run: Run) -> Written:
    """Writes encoder and backbone for Keras."""
    from seed_tf.io.files import atomic_write

    models = {".keras": run.encoder}
    if isinstance(run.encoder, seed_tf.Encoder):
        models["_backbone.keras"] = run.encoder.backbone
    for ending, model in models.items():
        with atomic_write(run.file(ending)) as path:
            model.save(path)
        yield run.file(ending), None


WRITERS = {
    "saved_model": saved_model,
    "litert": litert,
    "onnx": onnx,
    "keras": keras,
}


def probe_and_labels(run: Run) -> tuple[ProbeResult, list[str]]:
    """Trains a linear probe; returns probe and names of its classes."""
    from seed_tf.datasets.folders import ImageFolder

    print("Training a linear probe ...", flush=True)
    train, test = (
        seed_tf.evaluation.embed(run.encoder, images) for images in run.labelled
    )
    probe = seed_tf.evaluation.linear_probe(
        train, test, learning_rate=10.0, standardize=True
    )
    # The name of a class that is only in `test` is its number.
    labels = list(map(str, range(len(probe.bias))))
    folder = run.settings.labels_dir
    files = ImageFolder(folder, "train")
    for path, label in map(files.__getitem__, range(files.size)):
        _, name, *_ = os.path.relpath(path, folder).split(os.sep)
        labels[label] = name
    return probe, labels


def some_files(run: Run) -> list[bytes]:
    """Reads at most 256 files of --data_dir that a server can decode."""
    import numpy as np

    from seed_tf.datasets.folders import ImageFolder
    from seed_tf.export.decoding import decode

    names = ImageFolder(run.settings.data_dir, run.settings.split)
    chosen = np.linspace(0, names.size - 1, min(_MOST, names.size))
    files = []
    for number in np.round(chosen).astype(int):
        with open(names[number][0], "rb") as file:
            files.append(file.read())
    _, problems = decode(files, run.size, run.resize)
    files = [
        f for f, bad in zip(files, problems.numpy(), strict=True) if not bad
    ]
    if not files:
        raise ValueError(
            f"No JPEG, PNG or WebP files in {run.settings.data_dir!r}."
        )
    return files


def run(call: Call[Settings]) -> None:
    from seed_tf.reporting import tables

    work = Run(call.settings)
    rows: list[dict[str, object]] = []
    for name in dict.fromkeys(call.settings.format):
        print(f"Writing {name} ...", flush=True)
        for path, checked in WRITERS[name](work):
            row: dict[str, object] = {
                "written": path,
                "bytes": f"{_bytes(path):,}",
            }
            if checked:
                difference = checked.largest_difference["embedding"]
                row["largest difference"] = f"{difference:.2g}"
                row["cosine"] = f"{checked.mean_cosine['embedding']:.6f}"
            if checked and checked.knn:
                row |= {f"k-NN, {k}": 100 * v for k, v in checked.knn.items()}
            rows.append(row)
    widest = max(rows, key=len)
    print("\n" + tables.table(rows, list(widest)))


def _bytes(path):
    """Returns the bytes of a file, or of all files in a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(_bytes(os.path.join(path, name)) for name in os.listdir(path))


COMMAND = Command(Settings, run)
