"""The image files below a folder, with keys that change with a file."""

import base64
import hashlib
import mmap
import os
import tempfile

import numpy as np

from seed_tf.datasets.folders import EXTENSIONS, image_files


class Lines:
    """The lines of a UTF-8 file, of any size, none of them held in memory.

    Args:
        file: an open file whose every line, of which there is one at least,
            ends in a newline. It may be closed afterwards.
    """

    _block = 1 << 24

    def __init__(self, file):
        self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = np.frombuffer(self._text, np.uint8)
        self._ends = np.concatenate(
            [
                np.flatnonzero(view[start : start + self._block] == 10) + start
                for start in range(0, len(view), self._block)
            ]
        )

    def __len__(self):
        return len(self._ends)

    def __getitem__(self, row):
        start = self._ends[row - 1] + 1 if row else 0
        return self._text[start : self._ends[row]].decode()


class ImageFiles:
    """All image files below a folder, in a fixed order.

    Files come folder by folder, sorted by name. Links are followed, but not
    into a folder that one is already in; hidden files and folders are left
    out. A file is known again by its key, a digest of its path, size and time
    of modification. Memory holds 32 bytes of each.

    Args:
        root: folder.

    Attributes:
        paths: `Lines`, relative to the folder.
        keys: `[N]` array of 16 bytes, the digests.
        refused: dict of paths to why they cannot be listed.

    Raises:
        ValueError: if a folder cannot be read, or there are no images.
    """

    def __init__(self, root):
        self.root, self.refused = root, {}
        keys = bytearray()
        with tempfile.TemporaryFile() as names:
            for file in image_files(root):
                path = file[len(root) :].lstrip(os.sep)
                if problem := _unfit(path):
                    self.refused[repr(path)] = problem
                    continue
                names.write(path.encode() + b"\n")
                keys += _key(path, _status(file))
            names.flush()
            if not keys:
                raise ValueError(
                    f"No images in {root!r}. Expected files ending in "
                    f"{', '.join(EXTENSIONS)}, of any case."
                )
            self.paths = Lines(names)
        self.keys = np.frombuffer(keys, "S16")
        self._sorted = np.argsort(self.keys)

    def find(self, keys):
        """The numbers of the files with these keys, -1 where there is none."""
        places = np.searchsorted(self.keys, keys, sorter=self._sorted)
        numbers = self._sorted[np.minimum(places, len(self.keys) - 1)]
        return np.where(self.keys[numbers] == keys, numbers, -1)


def _status(file: str) -> os.stat_result:
    try:
        return os.stat(file)
    except OSError:  # a broken link: it will fail to be read
        return os.lstat(file)


def _unfit(path):
    """Why a path cannot be a line of text; empty if it can."""
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
