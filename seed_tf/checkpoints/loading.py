"""From any file that holds an encoder to the encoder."""

import os

from seed_tf.acceleration import precision
from seed_tf.checkpoints import keras_files, tensorflow_files, torch_files
from seed_tf.checkpoints.layouts import LAYOUTS, recognise
from seed_tf.checkpoints.weights import assign, misfits, parameters
from seed_tf.encoders import Encoder

_EXPECTED = (
    "Expected a .keras file, a run folder with a student.keras, a PyTorch file "
    "or the prefix of a TensorFlow checkpoint."
)


def load_encoder(path, *, source="auto"):
    """A trained encoder, ready to distil from.

    Of published checkpoints, keys and shapes tell what they are: method,
    depth, width, and the projection head. Parts that are not the encoder's
    (prototypes, queue, momentum encoder, classifier) are left out; any other
    key that is left over, missing or does not fit is an error.

    Args:
        path: one of
            - a `.keras` file, or the folder of a run of
              `seed_tf.pretrain` or `seed_tf.distill`;
            - a PyTorch file (this needs the extra `torch`), see
              docs/checkpoints.md for those that are known;
            - the prefix, or the folder, of a TensorFlow checkpoint of SimCLR.
        source: "auto", "keras", or a name of docs/checkpoints.md, which the
            file must then be: "moco_v1", "moco_v2", "swav", "deepcluster_v2",
            "simclr", "simclr_tf", "torchvision" (a plain state dict, with or
            without classifier), "seed" (the student in a file of the
            authors), "seed_teacher" (the teacher in it, by this name only).

    Returns:
        The `Encoder`; of a `.keras` file whatever keras.Model it holds.

    Raises:
        ValueError: if there is no such file, it is damaged or unsafe, or its
            weights are not those of a known network. Nothing is loaded then.
    """
    check_source(source)
    if source in ("auto", "keras"):
        model = load_keras(path)
        if model is not None:
            return model
    return build(read(path, source=source), path)


def load_student(path, *, head=False):
    """A student that the authors distilled.

    Args:
        path: PyTorch file of the authors' code (this needs the extra
            `torch`): ResNet-18, 34 or 50, MobileNetV3-Large, EfficientNet-B0
            or B1 under `module.student.`.
        head: bool, keep the projection head: embeddings of width 128. Without
            it they are the pooled features, what the paper evaluates.

    Returns:
        `Encoder`.

    Raises:
        ValueError: as `load_encoder`, or if the file holds no student.
    """
    return build(read(path, source="seed", head=head), path)


def check_source(source):
    """Raises ValueError unless `load_encoder` knows the source."""
    if source not in ("auto", "keras", *LAYOUTS):
        raise ValueError(
            f"`source` must be one of auto, keras, {', '.join(LAYOUTS)}. "
            f"Received: source={source!r}."
        )


def load_keras(path):
    """The model of a `.keras` file or run folder, None if it is neither."""
    file = keras_files.find(os.path.expanduser(path))
    return file and keras_files.read(file)


def read(path, *, source="auto", head=True):
    """What a file that is not Keras's holds.

    Args:
        path: str, a PyTorch file or a TensorFlow checkpoint.
        source: "auto" or a key of `LAYOUTS`.
        head: bool, whether to keep the projection head.

    Returns:
        `layouts.Contents`.

    Raises:
        ValueError: if the file cannot be read, or its network is unknown.
    """
    check_source(source)
    path = os.path.expanduser(path)
    prefix = tensorflow_files.find(path)
    if prefix is None and not os.path.isfile(path):
        raise ValueError(
            f"{_EXPECTED} Received: {path!r}, "
            + ("which is none." if os.path.exists(path) else "no such file.")
        )
    if source == "keras":
        raise ValueError(
            "Expected a .keras file, or a run folder with a student.keras. "
            f"Received: {path!r}."
        )
    if (source == "simclr_tf") != (prefix is not None) and source != "auto":
        raise ValueError(
            '"simclr_tf" is the source of TensorFlow checkpoints, and of no '
            f"other files. Received: source={source!r}, path={path!r}."
        )
    if prefix is not None:
        source = "simclr_tf"
        tensors, others = tensorflow_files.read(prefix)
    else:
        tensors, others = torch_files.read(path)
    try:
        return recognise(tensors, source=source, head=head, others=others)
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from error


def build(contents, path):
    """The encoder that a file holds, whole or not at all.

    Args:
        contents: `layouts.Contents`.
        path: str, to be named in errors.

    Returns:
        `Encoder`.

    Raises:
        ValueError: if a weight is missing, unknown, of another shape, NaN or
            infinite.
    """
    with precision.no_16_bits():
        encoder = Encoder(contents.backbone(), **contents.encoder)
    wanted = parameters(encoder)
    problems = misfits(contents, wanted)
    if any(problems.values()):
        raise ValueError(
            f"{path!r} does not fit {contents.description}, "
            + "; ".join(
                f"{len(names)} {_PROBLEMS[kind]}: {', '.join(names[:4])}"
                + (" ..." if len(names) > 4 else "")
                for kind, names in problems.items()
                if names
            )
            + ". Nothing was loaded. The command "
            "seed-tf convert --explain shows more."
        )
    assign(contents, wanted)
    return encoder


_PROBLEMS = {
    "missing": "weights missing",
    "unknown": "keys unknown",
    "shape": "of another shape",
    "values": "damaged",
}
