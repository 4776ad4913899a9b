"""An index of images, and search by image."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from seed_tf.datasets.decoding import EncodedImage
from seed_tf.embeddings import l2_normalise
from seed_tf.evaluation import nearest_neighbours
from seed_tf.evaluation.features import embedder
from seed_tf.images import shorter_side
from seed_tf.io.arrays import open_array, read_record, verify
from seed_tf.io.fingerprints import comparable, identity
from seed_tf.search import vectors
from seed_tf.search.image_files import Lines
from seed_tf.teachers import load_encoder

LARGE = 25_000_000  # pixels
# `build` writes the files in this order: with the last, the index is whole.
FILES = (
    "embeddings.npy",
    "paths.txt",
    "keys.npy",
    "index.faiss",
    "index.json",
)
_FIELDS = {
    **dict.fromkeys(("encoder", "fingerprint", "output", "images"), str),
    **dict.fromkeys(("image_size", "resize", "count", "dim"), int),
    **{"corrupt": dict, "search": str},
}


def read_config(path: str) -> dict[str, Any]:
    """Returns the content of an index's `index.json`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged.
    """
    file = os.path.join(path, "index.json")
    config = read_record(file, _FIELDS)
    size = config["image_size"]
    for name, known in (
        ("image_size", [max(size, 1)]),
        ("resize", [shorter_side(size)]),
        ("output", ["features", "embeddings"]),
        ("search", ["exact", "approximate"]),
    ):
        if config[name] not in known:
            raise ValueError(
                f"{file!r} is damaged: expected {name} "
                f"{' or '.join(map(repr, known))}, found {config[name]!r}"
            )
    return config


class Index:
    """An index by `build`, which stays on disk.

    Args:
        path: folder of the index.

    Attributes:
        config: dict, `index.json`.
        embeddings: float32 `[N, D]`, L2-normalised, memory-mapped.
        paths: sequence of N str, below `config["images"]`.
        keys: `[N]` digests of 16 bytes, which change with a file.

    Raises:
        ValueError: if there is no index, or the index is damaged.
    """

    def __init__(self, path: str) -> None:
        vectors.import_faiss()
        self.path = os.path.abspath(os.path.expanduser(path))
        if not os.path.exists(self._file("index.json")):
            unfinished = os.path.isdir(self._file("shards"))
            raise ValueError(
                f"{path!r} holds no index"
                + (" yet: it is unfinished" if unfinished else "")
                + ". Make one with seed_tf.search.build, or the command "
                "seed-tf search index."
            )
        try:
            self.config = read_config(self.path)
            sums = self.config.get("checksums", {})
            for name in ("paths.txt", "index.faiss"):
                verify(self._file(name), sums.get(name))
            count, dim = self.config["count"], self.config["dim"]
            self.embeddings, self.keys = (
                open_array(self._file(name), dtype, shape, sums.get(name))
                for name, dtype, shape in (
                    ("embeddings.npy", np.float32, (count, dim)),
                    ("keys.npy", "S16", (count,)),
                )
            )
            with open(self._file("paths.txt"), "rb") as f:
                self.paths = Lines(f)
            self._vectors = vectors.read(self._file("index.faiss"))
        except (OSError, RuntimeError, ValueError) as error:
            raise self._damaged(error) from error
        sizes = {count, len(self.paths), self._vectors.ntotal}
        if (
            len(sizes) > 1
            or self._vectors.d != dim
            or os.path.isdir(self._file("ready"))
        ):
            raise self._damaged("its files do not belong together")

    def __len__(self) -> int:
        return len(self.embeddings)

    def file(self, row: int) -> str:
        """Returns the path of an image's file."""
        return os.path.join(self.config["images"], self.paths[row])

    def search(
        self, queries: np.ndarray, k: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images most similar to each query, by cosine.

        With more than 100,000 images, search may miss one in a hundred. The
        similarities are always exact.

        Args:
            queries: float `[Q, D]`, not all zeros in a row.
            k: positive int, number of images.

        Returns:
            `(similarities [Q, k] float32, rows [Q, k] int64)`, the most
            similar first, then by row. With N < k images, N columns.

        Raises:
            ValueError: if the width differs or `k` is not positive.
        """
        queries = np.asarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"Expected queries [Q, {self.embeddings.shape[1]}]. "
                f"Received: shape {queries.shape}."
            )
        if k < 1:
            raise ValueError(f"`k` must be positive. Received: k={k}.")
        k = min(k, len(self))
        queries = l2_normalise(queries)
        # faiss rounds similarities, and the order of equal ones may vary.
        _, candidates = self._vectors.search(
            queries, min(max(4 * k, 64), len(self))
        )
        similarities = np.empty([len(queries), k], np.float32)
        rows = np.empty([len(queries), k], np.int64)
        for i, (query, found) in enumerate(
            zip(queries, candidates, strict=True)
        ):
            found = np.sort(found[found >= 0])
            if len(found) < k:  # too few in the searched clusters
                values, found = nearest_neighbours(
                    self.embeddings, query[None], k
                )
                similarities[i], rows[i] = values[0], found[0]
                continue
            values = self.embeddings[found] @ query
            best = np.argsort(-values, kind="stable")[:k]
            similarities[i], rows[i] = values[best], found[best]
        return similarities, rows

    def others(self, row: int, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images most similar to an indexed image, except itself.

        Args:
            row: int in [0, N), number of the image.
            k: positive int, number of images.

        Returns:
            `(similarities [k] float32, rows [k] int64)`.
        """
        (similarities,), (rows,) = self.search(
            self.embeddings[row][None], k + 1
        )
        # The image itself is missing if k + 1 equal images precede it.
        keep = np.flatnonzero(rows != row)[:k]
        return similarities[keep], rows[keep]

    def _file(self, name):
        return os.path.join(self.path, name)

    def _damaged(self, reason):
        return ValueError(
            f"The index {self.path!r} is damaged or being replaced: {reason}. "
            "Build the index again, if necessary after removing its folder."
        )


class ImageSearch:
    """Finds the indexed images that are most similar to a picture.

    Resizes and crops the picture like the indexed images. Threads may share
    an `ImageSearch`. It embeds one picture at a time, and decodes four, or five
    with one of more than 25 million pixels.

    Args:
        index: the images to search.
        encoder: path of the encoder, if the encoder has moved since `build`.

    Raises:
        ValueError: if the encoder cannot be read, or differs from the index's
            encoder.
    """

    def __init__(self, index: Index, encoder: str | None = None) -> None:
        self.index = index
        config = index.config
        try:
            model = load_encoder(encoder or config["encoder"])
        except ValueError as error:
            raise ValueError(
                f"The encoder of {index.path!r} cannot be loaded. If the "
                f"encoder has moved, pass its path as `encoder`. {error}"
            ) from error
        found = comparable(identity(model), config["fingerprint"])
        if found != config["fingerprint"]:
            raise ValueError(
                f"{index.path!r} needs the encoder {config['encoder']!r} with "
                f"fingerprint {config['fingerprint']}. Received: "
                f"{encoder or config['encoder']!r} with fingerprint {found}."
            )
        self._embed = embedder(model, output=config["output"])
        self._lock = threading.Lock()
        # A large picture takes seconds and 0.3 GB. Others pass it by.
        self._decoding = threading.Semaphore(4)
        self._large = threading.Semaphore(1)
        size = config["image_size"]
        blank = np.zeros([1, size, size, 3], np.uint8)
        self.index.search(l2_normalise(self._embed(blank)), 1)  # trace and warm

    def embed(self, data: bytes) -> np.ndarray:
        """Returns the embedding of a picture.

        Args:
            data: bytes of an image file.

        Returns:
            float32 `[D]`, L2-normalised.

        Raises:
            ValueError: if the data are no readable image.
        """
        config = self.index.config
        try:
            image = EncodedImage(data)
            large = image.height * image.width > LARGE
            with self._large if large else self._decoding:
                square = image.square(config["image_size"], config["resize"])
        except Exception as error:  # damaged data cause any kind
            reason = " ".join(str(error).split()).removesuffix(".")
            raise ValueError(f"Not a readable image: {reason}.") from error
        with self._lock:
            return l2_normalise(self._embed(square[None]))[0]

    def search(self, data: bytes, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images most similar to a picture, see `Index.search`.

        Args:
            data: bytes of an image file, see `embed`.
            k: positive int, number of images.

        Returns:
            `(similarities [k] float32, rows [k] int64)`.
        """
        (similarities,), (rows,) = self.index.search(self.embed(data)[None], k)
        return similarities, rows
