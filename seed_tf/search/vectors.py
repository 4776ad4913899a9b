"""faiss: the nearest rows of a matrix, exact or approximate."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from seed_tf.io.extras import extra

# Comparing so many rows takes milliseconds.
EXACT = 100_000
_BLOCK = 65536  # rows to add at a time


def import_faiss() -> Any:
    """Returns the module faiss; ValueError if it is not installed."""
    # faiss logs every attempt to load one of its builds.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    with extra("search", "Indexes"):
        import faiss
    return faiss


def method(count: int) -> str:
    """Returns the search method for a number of rows, as in `index.json`."""
    return "exact" if count <= EXACT else "approximate"


def write(
    rows: np.ndarray, path: str, log: Callable[[str], object] = print
) -> None:
    """Writes faiss's index of unit vectors.

    With up to 100,000 rows, faiss compares all. With more, it groups the rows
    in about 4 sqrt(N) clusters, and compares rows of the nearest 1/64 of the
    clusters, rounded to a byte per number. `Index` computes the similarities of
    these candidates again.

    Args:
        rows: float32 `[N, D]`, may be memory-mapped.
        path: file to write.
        log: function of one str.

    Raises:
        OSError: if the file cannot be written.
    """
    faiss = import_faiss()
    count, dim = rows.shape
    if method(count) == "exact":
        index = faiss.IndexFlatIP(dim)
    else:
        lists = round(4 * math.sqrt(count))
        log(f"Grouping {count:,} images in {lists:,} clusters ...")
        index = faiss.index_factory(
            dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT
        )
        index.nprobe = max(16, lists // 64)
        some = np.random.default_rng(0).choice(
            count, min(count, 64 * lists), replace=False
        )
        index.train(rows[np.sort(some)])
    for start in range(0, count, _BLOCK):
        index.add(np.ascontiguousarray(rows[start : start + _BLOCK]))
    try:
        faiss.write_index(index, path)
    except RuntimeError as error:
        raise OSError(f"{path!r} cannot be written: {error}") from error


def read(path: str) -> Any:
    """Opens faiss's index. The vectors stay on disk."""
    faiss = import_faiss()
    return faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
