"""The nearest rows of a matrix, exactly or nearly, with faiss."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from seed_tf.io.extras import extra

# Up to here all rows are compared, which takes milliseconds.
EXACT = 100_000
_BLOCK = 65536  # rows added at a time


def import_faiss() -> Any:
    """Returns the module faiss; ValueError if it is not installed."""
    # faiss logs which of its builds it tries to load.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    with extra("search", "Indexes"):
        import faiss
    return faiss


def method(count: int) -> str:
    """Returns how to search that many rows: "exact" or "approximate"."""
    return "exact" if count <= EXACT else "approximate"


def write(
    rows: np.ndarray, path: str, log: Callable[[str], object] = print
) -> None:
    """Writes faiss's index of unit vectors.

    Up to 100,000 rows it compares all. Above it compares those of the nearest
    64th of some 4 sqrt(N) clusters, at a byte per number: candidates, of which
    `Index` computes the similarities anew.

    Args:
        rows: float32 `[N, D]`, may be memory-mapped.
        path: file.
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
        log(f"Grouping {count:,} images around {lists:,} centres ...")
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
    """Opens faiss's index; its vectors stay on disk."""
    faiss = import_faiss()
    return faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
