"""Damaged copies of files, for tests of what is read back."""

from collections.abc import Iterator

import numpy as np


def flips(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yields copies of a file with one bit flipped, half in its first part."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        end = len(data) if i % 2 else min(len(data), 96)
        flipped = bytearray(data)
        flipped[rng.integers(end)] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)
