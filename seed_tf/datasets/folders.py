"""Image files below a folder: an index on disk, for millions of files."""

import mmap
import os
import tempfile
from collections import Counter

import numpy as np

from seed_tf.datasets.walking import (
    found_images,
    list_folder,
    no_images,
    walk,
)

_SPLITS = ("train", "val", "valid", "validation", "test")
_ALL = "all"  # a split without a folder: all images, each folder a class
_SHOWN = 5  # names in a message


class ImageFolder:
    """Paths and labels of image files, in a fixed order.

    Files come folder by folder, sorted by name. Only the C code of
    `os.listdir`, `re` and NumPy loops over files. Names and their offsets are
    mapped from unnamed temporary files, so that the system can page them out.

    Args:
        path: folder. See `load` for splits and classes.
        split: name of the split.

    Attributes:
        size: int, images.
        summary: str, a line about the images and the other files.
        left_out: numbers of the split's other files, by ending, see
            `walking.Files`.

    Raises:
        ValueError: if the folder cannot be read, has no images, or the split
            is unknown.
    """

    def __init__(self, path: str | None, split: str) -> None:
        check_folder(path)
        root, classes = _root_and_classes(path, split)
        numbers = {name: number for number, name in enumerate(classes)}
        self._folders, firsts, labels, self.size = [], [], [], 0
        self.left_out: Counter[str] = Counter()
        with (
            tempfile.TemporaryFile() as names,
            tempfile.TemporaryFile() as ends,
        ):
            for folder, top, files in walk(root):
                self.left_out.update(files.left_out)
                if not (blob := files.images):
                    continue
                in_folder = np.flatnonzero(np.frombuffer(blob, np.uint8) == 0)
                ends.write((in_folder + names.tell()).tobytes())
                names.write(blob)
                self._folders.append(folder)
                firsts.append(self.size)
                labels.append(numbers.get(top, -1))
                self.size += len(in_folder)
            if not self.size:
                raise no_images(root, self.left_out)
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
        found = found_images(self.size, len(firsts), root, self.left_out)
        self.summary = f"Split {split!r}: {found}."

    def __getitem__(self, index: int) -> tuple[str, int]:
        """Returns the path and the label (-1 for none) of an image."""
        folder = np.searchsorted(self._firsts, index, "right") - 1
        start = self._ends[index - 1] + 1 if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]])
        return os.path.join(self._folders[folder], name), self._labels[folder]


def check_folder(path: str | None) -> None:
    """Raises ValueError unless `path` is an existing folder."""
    if path is None or not os.path.isdir(path):
        raise ValueError(
            f"`data_dir` must be an existing folder. Received: {path!r}."
        )


def _root_and_classes(path, split):
    """Returns the folder of a split, and the sorted names of all classes."""
    files = list_folder(path)
    subfolders = files.folders
    if split == _ALL and _ALL not in subfolders:
        return path, subfolders
    splits = [x for x in dict.fromkeys([*_SPLITS, split]) if x in subfolders]
    if split in splits:
        root = os.path.join(path, split)
        if split in _SPLITS:  # not a name that the user must have given
            _check_nothing_beside(path, files, splits, root)
    elif split == "train" and not splits:
        root = path
    else:
        found = f"has {', '.join(splits)}" if splits else "has no splits"
        raise ValueError(
            f"Unknown split {split!r}: {path!r} {found}. A folder without "
            "splits is read as split=\"train\". `split='all'` reads everything."
        )
    # Number the classes of all splits together: a class that one split lacks
    # keeps its number.
    roots = [os.path.join(path, name) for name in splits]
    listed = [list_folder(root).folders for root in roots] or [subfolders]
    return root, sorted(set().union(*listed))


def _check_nothing_beside(path, files, splits, root):
    """Raises ValueError if images lie beside split folders."""
    loose = files.images.count(b"\0")
    others = [
        name
        for name in files.folders
        if name not in splits
        and any(x.images for _, _, x in walk(os.path.join(path, name)))
    ]
    if not loose and not others:
        return
    beside = [f"{loose} in {path!r} itself"] if loose else []
    beside += [repr(name) for name in others[:_SHOWN]]
    if len(others) > _SHOWN:
        beside.append(f"{len(others) - _SHOWN} more folders")
    named = " and ".join(map(repr, splits))
    raise ValueError(
        f"{path!r} has {named}, taken for splits, and images beside: "
        f"{', '.join(beside)}. If all folders are classes, read all images "
        f"with `split='all'`. To read a split alone, give its own folder, "
        f"`data_dir='{root}'`, or move the other images."
    )


def _mapped(file):
    file.flush()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
