"""Turns a finished run into what production uses.

    python -m experiments.export --run=runs/student --output=exports \\
        --format=saved_model --format=litert --data_dir=photos

writes `exports/student/1/` for TensorFlow Serving and
`exports/student.tflite`, and tells how far each is from the Keras model. See
docs/serving.md and docs/formats.md.
"""

import importlib.util
import json
import os

import numpy as np
from absl import flags

import seed_tf
from seed_tf import export
from seed_tf.datasets.folders import ImageFolder
from seed_tf.encoders import Encoder
from seed_tf.export.decoding import decode
from seed_tf.export.index import read_index
from seed_tf.export.litert import PRECISIONS
from seed_tf.images import shorter_side
from seed_tf.io.files import atomic_write
from seed_tf.reporting import tables

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "run", None, "A run folder, .keras file or published checkpoint."
)
flags.mark_flag_as_required("run")
flags.DEFINE_multi_enum(
    "format",
    ["saved_model"],
    ["saved_model", "litert", "onnx", "keras"],
    "Repeat it for several. 'keras' writes encoder and backbone.",
)
flags.DEFINE_multi_enum(
    "precision", ["float32"], list(PRECISIONS), "Of litert; may be repeated."
)
flags.DEFINE_string("output", None, "Folder for all that is written.")
flags.mark_flag_as_required("output")
flags.DEFINE_string("name", None, "Of the model; by default the run's.")
flags.DEFINE_integer(
    "image_size", None, "Pixels of a side; by default the run's.", 1
)
flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of images like those to come: 256 are compared, and calibrate "
    "int8. litert and onnx need it.",
)
flags.DEFINE_string(
    "labels_dir",
    None,
    "Folder with train and test, each of class folders. A linear probe is "
    "trained on them, for saved_model's signature 'classify'; for litert and "
    "onnx they tell k-NN top-1 before and after.",
)
flags.DEFINE_string(
    "index",
    None,
    "Folder of an index by experiments.search, for saved_model's signature "
    "'nearest'.",
)
flags.DEFINE_integer("k", 10, "Labels and neighbours answered, at most.", 1)
flags.DEFINE_string("license", None, "What the model card says of it.")
flags.DEFINE_integer("batch_size", 64, "Images run at a time.", 1)

EXTRAS = {"litert": "ai_edge_litert", "onnx": "tf2onnx"}
_MOST = 256  # images that are compared


class Run:
    """What the flags name, checked before long work."""

    def __init__(self):
        folder = os.path.expanduser(FLAGS.run)
        if not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        self.config = _read(os.path.join(folder, "config.json"))
        self.summary = _read(os.path.join(folder, "summary.json"))
        self.size = FLAGS.image_size or self.config.get("image_size")
        if not self.size:
            raise ValueError(
                "--image_size is needed: there is no config.json of a run "
                f"beside {FLAGS.run!r} to tell it."
            )
        self.resize = shorter_side(self.size)
        path = os.path.abspath(os.path.expanduser(FLAGS.run))
        self.name = FLAGS.name or os.path.basename(path).split(".")[0]
        if os.path.basename(self.name) != self.name or not self.name:
            raise ValueError(
                f"--name must be a file name. Received: {self.name!r}."
            )
        if FLAGS.index and "saved_model" not in FLAGS.format:
            raise ValueError("--index needs --format=saved_model.")
        if not FLAGS.data_dir and {"litert", "onnx"} & set(FLAGS.format):
            raise ValueError(
                "litert and onnx need --data_dir, images to compare on."
            )
        for name in set(FLAGS.format) & set(EXTRAS):
            if not importlib.util.find_spec(EXTRAS[name]):
                raise ValueError(
                    f"--format={name} needs optional packages: "
                    f'pip install "seed_tf[{name}]".'
                )
        os.makedirs(FLAGS.output, exist_ok=True)
        self.images = FLAGS.data_dir and self._load(FLAGS.data_dir, "train")
        self.labelled = FLAGS.labels_dir and [
            self._load(FLAGS.labels_dir, split, labels=True)
            for split in ("train", "test")
        ]
        self.encoder = seed_tf.checkpoints.load_encoder(FLAGS.run)
        if FLAGS.index:
            read_index(
                FLAGS.index,
                self.encoder,
                image_size=self.size,
                resize=self.resize,
            )

    def file(self, ending):
        return os.path.join(FLAGS.output, self.name + ending)

    def _load(self, data_dir, split, labels=False):
        return seed_tf.datasets.load(
            "folder",
            split=split,
            data_dir=data_dir,
            image_size=self.size,
            resize=self.resize,
            batch_size=FLAGS.batch_size,
            shuffle=False,
            labels=labels,
            # What cannot be read is left out, with a warning.
            corrupt=seed_tf.datasets.CorruptFiles(1.0),
        )


# Functions of a `Run` that yield paths, and what was compared there.
def saved_model(run):
    probe, labels = probe_and_labels(run) if run.labelled else (None, None)
    checked = export.saved_model(
        run.encoder,
        run.file(""),
        image_size=run.size,
        resize=run.resize,
        files=FLAGS.data_dir and some_files(run),
        probe=probe,
        labels=labels,
        index=FLAGS.index,
        k=FLAGS.k,
        card={
            "source": FLAGS.run,
            "license": FLAGS.license,
            "config": run.config,
            "summary": run.summary,
        },
    )
    yield checked.path, checked


def litert(run):
    for precision in dict.fromkeys(FLAGS.precision):
        ending = "" if precision == "float32" else f".{precision}"
        path = run.file(f"{ending}.tflite")
        yield (
            path,
            export.litert(
                run.encoder,
                path,
                images=run.images,
                image_size=run.size,
                precision=precision,
                labelled=run.labelled,
            ),
        )


def onnx(run):
    path = run.file(".onnx")
    yield (
        path,
        export.onnx(
            run.encoder,
            path,
            images=run.images,
            image_size=run.size,
            labelled=run.labelled,
        ),
    )


def keras(run):
    models = {".keras": run.encoder}
    if isinstance(run.encoder, Encoder):
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


def probe_and_labels(run):
    """A linear probe of the labelled images, and the names of its classes."""
    print("Training a linear probe ...", flush=True)
    train, test = (
        seed_tf.evaluation.embed(run.encoder, images) for images in run.labelled
    )
    probe = seed_tf.evaluation.linear_probe(
        train, test, learning_rate=10.0, standardize=True
    )
    # A class that is only in `test` is called by its number.
    labels = list(map(str, range(len(probe.bias))))
    folder = os.path.expanduser(FLAGS.labels_dir)
    files = ImageFolder(folder, "train")
    for path, label in map(files.__getitem__, range(files.size)):
        _, name, *_ = os.path.relpath(path, folder).split(os.sep)
        labels[label] = name
    return probe, labels


def some_files(run):
    """At most 256 files of --data_dir, of those that a server takes."""
    names = ImageFolder(os.path.expanduser(FLAGS.data_dir), "train")
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
        raise ValueError(f"No JPEG, PNG or WebP files in {FLAGS.data_dir!r}.")
    return files


def _read(path):
    """A JSON file of the run; {} if there is none."""
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def main(_):
    run = Run()
    rows = []
    for name in dict.fromkeys(FLAGS.format):
        print(f"Writing {name} ...", flush=True)
        for path, checked in WRITERS[name](run):
            row = {"written": path, "bytes": f"{_bytes(path):,}"}
            if checked:
                difference = checked.largest_difference["embedding"]
                row["largest difference"] = f"{difference:.2g}"
                row["cosine"] = f"{checked.mean_cosine['embedding']:.6f}"
            if checked and checked.knn:
                row |= {f"k-NN, {k}": 100 * v for k, v in checked.knn.items()}
            rows.append(row)
    print("\n" + tables.table(rows, list(max(rows, key=len))))


def _bytes(path):
    """Bytes of a file, or of all files in a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(_bytes(os.path.join(path, name)) for name in os.listdir(path))
