"""Image files below a folder: an index on disk, for millions of files."""

import mmap
import os
import re
import tempfile
from collections.abc import Iterator

import numpy as np

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_SPLITS = ("train", "val", "valid", "validation", "test")
# The name of a visible image file, among names that each end in a NUL.
_IMAGE = re.compile(
    rb"(?<![^\0])[^\0.][^\0]*(?:%s)\0"
    % re.escape("|".join(EXTENSIONS)).replace(r"\|", "|").encode(),
    re.IGNORECASE,
)


class ImageFolder:
    """Paths and labels of image files, in a fixed order.

    Files come folder by folder, sorted by name. Only the C code of
    `os.listdir`, `re` and NumPy loops over files. Names and their offsets are
    mapped from unnamed temporary files, so that the system can page them out.

    Args:
        path: folder. See `load` for splits and classes.
        split: name of the split.

    Raises:
        ValueError: if the folder cannot be read, has no images, or the split
            is unknown.
    """

    def __init__(self, path: str | None, split: str) -> None:
        check_folder(path)
        root, classes = _root_and_classes(path, split)
        numbers = {name: number for number, name in enumerate(classes)}
        self._folders, firsts, labels, self.size = [], [], [], 0
        with (
            tempfile.TemporaryFile() as names,
            tempfile.TemporaryFile() as ends,
        ):
            for folder, top, blob in _walk(root):
                in_folder = np.flatnonzero(np.frombuffer(blob, np.uint8) == 0)
                ends.write((in_folder + names.tell()).tobytes())
                names.write(blob)
                self._folders.append(folder)
                firsts.append(self.size)
                labels.append(numbers.get(top, -1))
                self.size += len(in_folder)
            if not self.size:
                raise ValueError(
                    f"No images in {root!r}. Expected files ending in "
                    f"{', '.join(EXTENSIONS)}, of any case."
                )
            self._names, ends = map(_mapped, (names, ends))
        self._ends = np.frombuffer(ends, np.int64)
        self._firsts = np.array(firsts)
        self._labels = np.array(labels, np.int64)
        counts = np.diff(firsts, append=self.size)
        loose = counts[self._labels < 0].sum()
        self.unlabelled = (
            f"{loose} of {self.size} images in {root!r} lie in no class folder"
            if loose
            else ""
        )

    def __getitem__(self, index: int) -> tuple[str, int]:
        """Returns the path and the label (-1 for none) of an image."""
        folder = np.searchsorted(self._firsts, index, "right") - 1
        start = self._ends[index - 1] + 1 if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]])
        return os.path.join(self._folders[folder], name), self._labels[folder]


def image_files(folder: str) -> Iterator[str]:
    """Yields the paths of all image files below a folder.

    Files come folder by folder, sorted by name, in the order of `ImageFolder`.
    Hidden files and folders are skipped. Links are followed, except into a
    folder that contains the link.

    Args:
        folder: existing folder. Yielded paths begin with it.

    Raises:
        ValueError: if a folder cannot be read.
    """
    for path, _, names in _walk(folder):
        for name in names.split(b"\0")[:-1]:
            yield os.path.join(path, os.fsdecode(name))


def check_folder(path: str | None) -> None:
    """Raises ValueError unless `path` is an existing folder."""
    if path is None or not os.path.isdir(path):
        raise ValueError(
            f"`data_dir` must be an existing folder. Received: {path!r}."
        )


def _root_and_classes(path, split):
    """Returns the folder of a split, and the sorted names of all classes."""
    _, subfolders = _list(path)
    splits = [x for x in dict.fromkeys([*_SPLITS, split]) if x in subfolders]
    if split in splits:
        root = os.path.join(path, split)
    elif split == "train" and not splits:
        root = path
    else:
        found = f"has {', '.join(splits)}" if splits else "has no splits"
        raise ValueError(
            f"Unknown split {split!r}: {path!r} {found}. A folder without "
            'splits is read as split="train".'
        )
    # Number the classes of all splits together: a class that one split lacks
    # keeps its number.
    roots = [os.path.join(path, name) for name in splits]
    listed = [_list(root)[1] for root in roots] or [subfolders]
    return root, sorted(set().union(*listed))


def _walk(root):
    """Yields (folder, top-level folder's name, image names) where images lie.

    Links are followed, except into a folder that contains the link.
    """
    stack = [(root, "", frozenset())]
    while stack:
        path, top, above = stack.pop()
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        names, subfolders = _list(path)
        if names:
            yield path, top, names
        stack += [
            (os.path.join(path, name), top or name, above | {identity})
            for name in reversed(subfolders)
        ]


def _list(path):
    """Returns sorted names of images, a NUL after each, and of subfolders."""
    try:
        names = sorted(os.listdir(os.fsencode(path)))
    except OSError as error:
        raise ValueError(f"{path!r} cannot be read: {error}.") from error
    images = b"".join([b"\0".join(names), b"\0" if names else b""])
    rest = _IMAGE.sub(b"", images)
    if rest:
        images = b"".join(_IMAGE.findall(images))
    others = [os.fsdecode(name) for name in rest.split(b"\0")[:-1]]
    return images, [
        name
        for name in others
        if name[0] != "." and os.path.isdir(os.path.join(path, name))
    ]


def _mapped(file):
    file.flush()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
