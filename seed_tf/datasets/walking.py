"""Finds the image files below folders, and counts the other files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from seed_tf.datasets.decoding import ENDINGS

# Folders of thumbnails, metadata and deleted files, which Synology, QNAP,
# Windows, macOS, Linux and Python leave behind, in lower case. Names that
# begin with a dot are left out as well: ._x, .ipynb_checkpoints, .Trashes.
_LEFT_BEHIND = frozenset(
    {
        *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@__thumb"),
        *("$recycle.bin", "recycler", "system volume information"),
        *("__macosx", "network trash folder", "temporary items"),
        *("lost+found", "__pycache__"),
    }
)
# Files of the same origin, which are not worth a word.
_FILES_LEFT_BEHIND = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
# The name of a visible image file, among names that each end in a NUL.
_IMAGE = re.compile(
    rb"(?<![^\0])[^\0.][^\0]*(?:%s)\0"
    % b"|".join(re.escape(ending).encode() for ending in ENDINGS),
    re.IGNORECASE,
)


class Files(NamedTuple):
    """What lies in a folder itself.

    Attributes:
        images: sorted names of the image files, bytes, a NUL after each.
        folders: sorted names of the subfolders.
        left_out: numbers of the other files, by ending in lower case. Hidden
            files, and files that systems leave behind, do not count.
    """

    images: bytes
    folders: list[str]
    left_out: Counter[str]


def image_files(
    folder: str, left_out: Counter[str] | None = None
) -> Iterator[str]:
    """Yields the paths of all image files below a folder.

    Files come folder by folder, sorted by name, in the order of `ImageFolder`.
    Hidden files and folders are skipped, and so are the folders that systems
    leave behind, such as @eaDir and __MACOSX. Links are followed, except into
    a folder that contains the link.

    Args:
        folder: existing folder. Yielded paths begin with it.
        left_out: collects the numbers of the other files by ending, see
            `Files`. It is complete after the last path.

    Raises:
        ValueError: if a folder cannot be read.
    """
    for path, _, files in walk(folder):
        if left_out is not None:
            left_out.update(files.left_out)
        for name in files.images.split(b"\0")[:-1]:
            yield os.path.join(path, os.fsdecode(name))


def walk(root: str) -> Iterator[tuple[str, str, Files]]:
    """Yields (folder, name of the top-level folder, `Files`) below a folder.

    Links are followed, except into a folder that contains the link.

    Raises:
        ValueError: if a folder cannot be read.
    """
    stack: list[tuple[str, str, frozenset]] = [(root, "", frozenset())]
    while stack:
        path, top, above = stack.pop()
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        files = list_folder(path)
        yield path, top, files
        stack += [
            (os.path.join(path, name), top or name, above | {identity})
            for name in reversed(files.folders)
        ]


def list_folder(path: str) -> Files:
    """Lists a folder. Only C code loops over the names of images.

    Raises:
        ValueError: if the folder cannot be read.
    """
    try:
        names = sorted(os.listdir(os.fsencode(path)))
    except OSError as error:
        raise ValueError(f"{path!r} cannot be read: {error}.") from error
    images = b"".join([b"\0".join(names), b"\0" if names else b""])
    rest = _IMAGE.sub(b"", images)
    if rest:
        images = b"".join(_IMAGE.findall(images))
    folders, left_out = [], Counter[str]()
    for name in map(os.fsdecode, rest.split(b"\0")[:-1]):
        if name[0] == ".":
            continue
        if os.path.isdir(os.path.join(path, name)):
            if name.lower() not in _LEFT_BEHIND:
                folders.append(name)
        elif name.lower() not in _FILES_LEFT_BEHIND:
            left_out[os.path.splitext(name)[1].lower()] += 1
    return Files(images, folders, left_out)


def listed(left_out: Mapping[str, int]) -> str:
    """Describes files that were left out, the most frequent ending first.

    >>> listed({".txt": 2, ".heic": 3, "": 1})
    '3 .heic, 2 .txt, 1 without ending'
    """
    counts = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{n:,} {ending or 'without ending'}" for ending, n in counts[:8]]
    if counts[8:]:
        shown.append(f"{sum(n for _, n in counts[8:]):,} of other endings")
    return ", ".join(shown)


def found_images(
    images: int, folders: int, root: str, left_out: Mapping[str, int]
) -> str:
    """Describes the images that were found, in one line.

    >>> found_images(7, 1, "photos", {".txt": 2})
    "7 images in 1 folder of 'photos'; left out: 2 .txt"
    """
    text = (
        f"{images:,} image{'s' * (images != 1)} in {folders:,} "
        f"folder{'s' * (folders != 1)} of {root!r}"
    )
    return f"{text}; left out: {listed(left_out)}" if left_out else text


def no_images(folder: str, left_out: Mapping[str, int]) -> ValueError:
    """Returns the error for a folder without images."""
    message = (
        f"No images in {folder!r}. Expected files ending in "
        f"{', '.join(ENDINGS)}, of any case."
    )
    if left_out:
        message += f" Received: {listed(left_out)}."
    if any(ending in left_out for ending in (".heic", ".heif")):
        message += " HEIC needs an extra: pip install 'seed_tf[heif]'."
    return ValueError(message)
