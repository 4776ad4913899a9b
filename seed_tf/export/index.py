"""The index of images that a server answers `nearest` from."""

import dataclasses
import os

import numpy as np

from seed_tf.io.files import differences, read_json
from seed_tf.io.fingerprints import fingerprint


@dataclasses.dataclass(frozen=True)
class StoredIndex:
    """What `seed_tf.search.build` has written, as far as a server needs it.

    Attributes:
        embeddings: float32 `[N, D]`, L2-normalised, memory-mapped.
        ids: str, path of a text file with a line for each row.
        output: "embedding" or "features", which output they are.
    """

    embeddings: np.ndarray
    ids: str
    output: str


def read_index(folder, encoder, *, image_size, resize):
    """An index, if it is this encoder's.

    Args:
        folder: str, see `seed_tf.search.build`.
        encoder: keras.Model.
        image_size, resize: ints, what a server does to images.

    Returns:
        `StoredIndex`.

    Raises:
        ValueError: if there is no index, it is not whole, or images were
            embedded by another encoder or in another size.
    """
    try:
        config = read_json(os.path.join(folder, "index.json"))
        embeddings = np.load(os.path.join(folder, "embeddings.npy"), "r")
        ids = os.path.join(folder, "paths.txt")
        with open(ids, "rb") as file:
            count = sum(1 for _ in file)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder!r} holds no index that can be read: {error}. Make one "
            "with seed_tf.search.build, or the command seed-tf search index."
        ) from error
    if count != len(embeddings):
        raise ValueError(
            f"The index {folder!r} is damaged: {len(embeddings)} embeddings, "
            f"but {count} paths."
        )
    here = {
        "fingerprint": fingerprint(encoder),
        "image_size": image_size,
        "resize": resize,
    }
    there = {name: config.get(name) for name in here}
    if different := differences(there, here):
        raise ValueError(
            f"The index {folder!r} was made otherwise: "
            f"{'; '.join(different)}. Its neighbours would be wrong: index "
            "the images with the encoder that is exported."
        )
    output = "features" if config.get("output") == "features" else "embedding"
    return StoredIndex(embeddings, ids, output)
