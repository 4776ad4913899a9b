"""The image files below a folder, with keys that change with a file."""

from __future__ import annotations

import base64
import hashlib
import mmap
import os
import tempfile
from collections import Counter
from typing import IO

import numpy as np

from seed_tf.datasets.walking import found_images, image_files, no_images


class Lines:
    """The lines of a UTF-8 file of any size, which stay on disk.

    Args:
        file: open file with at least one line. Every line must end in a
            newline. The caller may close the file afterwards.
    """

    _block = 1 << 24

    def __init__(self, file: IO[bytes]) -> None:
        self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = np.frombuffer(self._text, np.uint8)
        self._ends = np.concatenate(
            [
                np.flatnonzero(view[start : start + self._block] == 10) + start
                for start in range(0, len(view), self._block)
            ]
        )

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        start = self._ends[row - 1] + 1 if row else 0
        return self._text[start : self._ends[row]].decode()


class ImageFiles:
    """All image files below a folder, in a fixed order.

    Files come folder by folder, sorted by name. The list follows links, except
    into a parent folder, and skips hidden files and folders. A file's key is a
    digest of its path, size and time of modification. Memory holds 32 bytes
    per file.

    Args:
        root: folder.

    Attributes:
        paths: `Lines`, relative to the folder.
        keys: `[N]` array of 16 bytes, the digests.
        refused: dict of unusable paths to the reasons.
        summary: a line about the images and the other files.

    Raises:
        ValueError: if a folder cannot be read, or there are no images.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.refused: dict[str, str] = {}
        left_out: Counter[str] = Counter()
        folders: set[str] = set()
        keys = bytearray()
        with tempfile.TemporaryFile() as names:
            for file in image_files(root, left_out):
                path = file[len(root) :].lstrip(os.sep)
                if problem := _unfit(path):
                    self.refused[repr(path)] = problem
                    continue
                folders.add(os.path.dirname(path))
                names.write(path.encode() + b"\n")
                keys += _key(path, _status(file))
            names.flush()
            if not keys:
                raise no_images(root, left_out)
            self.paths = Lines(names)
        self.keys = np.frombuffer(keys, "S16")
        found = found_images(len(self.keys), len(folders), root, left_out)
        self.summary = f"{found}."
        self._sorted = np.argsort(self.keys)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Returns the numbers of the files with these keys, -1 if missing."""
        places = np.searchsorted(self.keys, keys, sorter=self._sorted)
        numbers = self._sorted[np.minimum(places, len(self.keys) - 1)]
        return np.where(self.keys[numbers] == keys, numbers, -1)


def _status(file: str) -> os.stat_result:
    try:
        return os.stat(file)
    except OSError:  # a broken link, which fails later
        return os.lstat(file)


def _unfit(path):
    """Returns why a path cannot be a line of text, or an empty str."""
    if len(path.splitlines()) != 1:
        return "its name has a line break"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return ""


def _key(path, status):
    text = f"{path}\n{status.st_size}\n{status.st_mtime_ns}"
    digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
    return base64.b64encode(digest)  # NumPy cuts off zeros
