"""The index of images behind a server's signature `nearest`."""

from __future__ import annotations

import dataclasses
import os

import keras
import numpy as np

from seed_tf.io.arrays import open_array, read_record, verify
from seed_tf.io.files import differences
from seed_tf.io.fingerprints import comparable, identity


@dataclasses.dataclass(frozen=True)
class StoredIndex:
    """The part of a `seed_tf.search` index that a server needs.

    Attributes:
        embeddings: float32 `[N, D]`, L2-normalised, memory-mapped.
        ids: path of a text file with a line for each row.
        output: "embedding" or "features", the indexed output.
    """

    embeddings: np.ndarray
    ids: str
    output: str


def read_index(
    folder: str, encoder: keras.Model, *, image_size: int, resize: int
) -> StoredIndex:
    """Reads an index of this encoder.

    Args:
        folder: see `seed_tf.search.build`.
        encoder: the exported encoder.
        image_size: side of the server's crops.
        resize: length of the shorter side before the server's crop.

    Raises:
        ValueError: if there is no index, the index is damaged, or its encoder
            or its size of images differs.
    """
    try:
        sizes = ("count", "dim", "image_size", "resize")
        config = read_record(
            os.path.join(folder, "index.json"), dict.fromkeys(sizes, int)
        )
        sums = config.get("checksums", {})
        embeddings = open_array(
            os.path.join(folder, "embeddings.npy"),
            np.float32,
            (config["count"], config["dim"]),
            sums.get("embeddings.npy"),
        )
        ids = os.path.join(folder, "paths.txt")
        verify(ids, sums.get("paths.txt"))
        with open(ids, "rb") as file:
            count = sum(1 for _ in file)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder!r} holds no index, or a damaged index: {error}. Build "
            "it with seed_tf.search.build, or the command seed-tf search index."
        ) from error
    if count != len(embeddings):
        raise ValueError(
            f"The index {folder!r} is damaged: {len(embeddings)} embeddings, "
            f"but {count} paths."
        )
    here = {
        "fingerprint": comparable(identity(encoder), config.get("fingerprint")),
        "image_size": image_size,
        "resize": resize,
    }
    there = {name: config.get(name) for name in here}
    if different := differences(there, here):
        raise ValueError(
            f"The index {folder!r} does not fit the export: "
            f"{'; '.join(different)}. Index the images with the exported "
            "encoder and the same sizes."
        )
    output = "features" if config.get("output") == "features" else "embedding"
    return StoredIndex(embeddings, ids, output)
