"""Converts encoders from one kind of file to another."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np

from seed_tf import teachers
from seed_tf.checkpoints import loading
from seed_tf.checkpoints.exporting import save_torch
from seed_tf.conversion import explaining
from seed_tf.encoders import Encoder
from seed_tf.io.files import atomic_write


def convert(
    path: str,
    output: str,
    *,
    to: str = "keras",
    source: str = "auto",
    head: bool = True,
    **choices: Any,
) -> str:
    """Loads an encoder, and writes it to another file.

    Args:
        path: as of `teachers.load_encoder`.
        output: file to write, which must not exist.
        to: "keras", a `.keras` file, or "torch", see `save_torch`.
        source: as of `load_encoder`.
        head: bool, keep the projection head.
        **choices: `branch`, `stem`, `mean` and `std` of `load_encoder`.

    Returns:
        `explaining.summary` of the written encoder.

    Raises:
        ValueError: as `load_encoder` and `save_torch`, or if the output
            exists or has the wrong ending.
        OSError: if the file cannot be written. There is no half of it then.
    """
    if os.path.exists(output):
        raise ValueError(f"{output!r} exists already.")
    if to == "keras" and not output.endswith(".keras"):
        raise ValueError(
            "A file of Keras must end in .keras; PyTorch's are written with "
            f'to="torch". Received: {output!r}.'
        )
    contents = None
    if teachers.is_path(path):
        encoder, contents = loading.open_file(
            path, source=source, head=head, **choices
        )
    else:
        encoder = teachers.load_encoder(path)
    if contents is not None:
        encoder = loading.build(contents, path)
    elif not head:
        encoder = _without_head(encoder)
    size = sum(4 * int(np.prod(w.shape)) for w in encoder.weights)
    with atomic_write(output, size) as unfinished:
        if to == "torch":
            save_torch(encoder, unfinished)
        else:
            encoder.save(unfinished)
    return explaining.summary(encoder, contents)


def _without_head(encoder: keras.Model) -> Encoder:
    if not isinstance(encoder, Encoder):
        raise ValueError(
            "Only an Encoder has a projection head to leave out. Received: "
            f"{type(encoder).__name__} {encoder.name!r}."
        )
    config = encoder.get_config()
    kept = {key: config[key] for key in ("mean", "std", "image_size")}
    return Encoder(encoder.backbone, head=None, **kept)
