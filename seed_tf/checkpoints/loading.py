"""Loads encoders from files of any known kind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras

from seed_tf.acceleration import precision
from seed_tf.checkpoints import (
    formats,
    keras_files,
    safetensors_files,
    tensorflow_files,
    torch_files,
)
from seed_tf.checkpoints.layouts import LAYOUTS, Contents, recognise
from seed_tf.checkpoints.weights import assign, misfits, parameters
from seed_tf.encoders import Encoder

_EXPECTED = (
    "Expected a .keras file, a run folder with a student.keras, a PyTorch or "
    "safetensors file or the prefix of a TensorFlow checkpoint."
)
# Names of networks with the keys of a ResNet that pool before each stride.
_LOOK_ALIKE = re.compile(r"blur|anti.?alias|resnet\w*aa\d")


def load_encoder(
    path: str | os.PathLike[str],
    *,
    source: str = "auto",
    branch: str | None = None,
    stem: str = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    log: Callable[[str], object] = print,
) -> keras.Model:
    """Loads a trained encoder, e.g. as a teacher.

    Published checkpoints are recognised by their keys and shapes: method,
    depth, width and projection head, below any prefix. Parts that do not
    belong to the encoder (prototypes, queue, classifier) are left out. Of a
    network and its moving average the average is taken, which `log` gets to
    know. Any other key that is unknown, missing or of another shape is an
    error.

    Args:
        path: one of
            - a `.keras` file, or the folder of a run of
              `seed_tf.pretrain` or `seed_tf.distill`;
            - a PyTorch file (this needs the extra `torch`) or a safetensors
              file, see docs/checkpoints.md for those that are known;
            - the prefix, or the folder, of a TensorFlow checkpoint of SimCLR.
        source: "auto", "keras", or one of the sources in docs/checkpoints.md,
            which the file must then be from: "moco_v1", "moco_v2", "swav",
            "deepcluster_v2", "simclr", "simclr_tf", "torchvision" (a plain
            state dict, with or without classifier), "seed" (the student in a
            file of the authors), "seed_teacher" (the teacher in such a file;
            "auto" takes the student).
        branch: part of the prefix of the wanted network, such as "teacher",
            for a file that has several.
        stem: "auto", or a key of `seed_tf.encoders.resnet.STEMS`, which a
            ResNet with a 3x3 convolution at its start needs: a state dict
            does not record stride and padding.
        mean: three floats, as of `Encoder`, which a state dict does not record
            either. Defaults to ImageNet's.
        std: three positive floats, as `mean`. Images in [0, 1] are mean 0 and
            std 1.
        log: function of one str, for choices that a user should know of.

    Returns:
        The `Encoder`, or any other keras.Model of a `.keras` file.

    Raises:
        ValueError: if the file is missing, damaged or unsafe, or its weights
            are not those of a known network. Nothing is loaded then.
    """
    path = os.fspath(path)
    model, contents = open_file(
        path, source=source, branch=branch, stem=stem, mean=mean, std=std
    )
    if contents is None:
        return model
    for note in contents.notes:
        log(f"{path}: {note}.")
    return build(contents, path)


def load_student(
    path: str | os.PathLike[str], *, head: bool = False
) -> Encoder:
    """Loads a student that the authors distilled.

    Args:
        path: PyTorch file of the authors' code (this needs the extra
            `torch`): ResNet-18, 34 or 50, MobileNetV3-Large, EfficientNet-B0
            or B1 under `module.student.`.
        head: whether to keep the projection head, whose embeddings are 128
            wide. Without a head the embeddings are the pooled features, which
            the paper evaluates.

    Returns:
        `Encoder`.

    Raises:
        ValueError: as `load_encoder`, or if the file holds no student.
    """
    path = os.fspath(path)
    return build(read(path, source="seed", head=head), path)


def open_file(
    path: str, *, source: str = "auto", head: bool = True, **choices: Any
) -> tuple[Any, Contents | None]:
    """Opens a file of any known kind.

    Args:
        path, source: as of `load_encoder`.
        head: whether to keep the projection head of a published checkpoint.
        **choices: `branch`, `stem`, `mean` and `std` of `load_encoder`.

    Returns:
        The model in a file of Keras, or the contents of any other file. The
        other one is None.

    Raises:
        ValueError: as `load_encoder`.
    """
    check_source(source)
    if source in ("auto", "keras"):
        file = keras_files.find(os.path.expanduser(path))
        if file is not None:
            given = [k for k, v in choices.items() if v not in (None, "auto")]
            if given:
                raise ValueError(
                    f"A .keras file has its own {', '.join(given)}. "
                    f"Received: {file!r}. Leave them out."
                )
            return keras_files.read(file), None
    return None, read(path, source=source, head=head, **choices)


def check_source(source: str) -> None:
    """Raises ValueError unless `load_encoder` knows the source."""
    if source not in ("auto", "keras", *LAYOUTS):
        raise ValueError(
            f"`source` must be one of auto, keras, {', '.join(LAYOUTS)}. "
            f"Received: source={source!r}."
        )


def read(
    path: str,
    *,
    source: str = "auto",
    head: bool = True,
    branch: str | None = None,
    stem: str = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Contents:
    """Reads a PyTorch file, a safetensors file or a TensorFlow checkpoint.

    Args:
        path: str, the file, or the prefix of a TensorFlow checkpoint.
        source: "auto" or a key of `LAYOUTS`.
        head: bool, whether to keep the projection head.
        branch, stem, mean, std: as of `load_encoder`.

    Returns:
        `layouts.Contents`.

    Raises:
        ValueError: if the file cannot be read, or its network is unknown.
    """
    check_source(source)
    path = os.path.expanduser(path)
    formats.refuse_others(path)
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
    elif safetensors_files.is_one(path):
        tensors, others = safetensors_files.read(path)
    else:
        tensors, others = torch_files.read(path)
    name = f"{os.path.basename(path)} {others.get('arch', '')}"
    if stem == "auto" and _LOOK_ALIKE.search(name.lower()):
        raise ValueError(
            f"{path!r} seems to be an anti-aliased ResNet, which has the keys "
            f"of a plain one and gives other features. Received: {name!r}. If "
            'it is a plain ResNet, pass `stem="imagenet"`.'
        )
    try:
        contents = recognise(
            tensors,
            source=source,
            head=head,
            branch=branch,
            stem=stem,
            others=others,
        )
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from error
    given = {"mean": mean, "std": std}
    contents.encoder.update({k: v for k, v in given.items() if v is not None})
    return contents


def build(contents: Contents, path: str) -> Encoder:
    """Builds the encoder of a file, with all of its weights.

    Args:
        contents: the contents of the file.
        path: the file, which errors name.

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
