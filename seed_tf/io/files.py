"""Files and folders that appear whole or not at all, and JSON documents."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

from absl import logging

from seed_tf.io.text import reason, shown
from seed_tf.io.units import readable_bytes


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], size: int | None = None
) -> Iterator[str]:
    """Yields the path of a file to write, which then replaces `path`.

    Readers of `path` see the old file or the whole new one, also after a
    crash. The yielded path has the same ending, because Keras requires it.

    Args:
        path: file to write.
        size: bytes that the file will have, if known. The free space is
            checked first.

    Raises:
        OSError: if the file cannot be written. `path` stays as it was. A full
            disk is named with the path and a remedy, whichever library met it.
    """
    stem, ending = os.path.splitext(path)
    unfinished = f"{stem}.unfinished{ending}"
    if size is not None:
        check_space(path, size)
    try:
        with _named(path):
            yield unfinished
            flush(unfinished)
            os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        raise


@contextlib.contextmanager
def atomic_folder(path: str, unfinished: str | None = None) -> Iterator[str]:
    """Yields an empty folder to fill, which then becomes `path`.

    A process killed at any moment leaves no half of `path`. The next call
    removes what that process left.

    Args:
        path: folder that does not exist yet.
        unfinished: path of the folder to fill, on the same disk; by default
            `path` with ".unfinished" appended.

    Raises:
        OSError: if the folder cannot be written. There is no `path` then.
    """
    unfinished = unfinished or f"{path}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    os.makedirs(unfinished)
    try:
        with _named(path):
            yield unfinished
            for root, _, names in os.walk(unfinished):
                for name in [*names, ""]:
                    flush(os.path.join(root, name))
            os.rename(unfinished, path)
            flush(os.path.dirname(path) or ".")
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


# What TensorFlow, HDF5, PyTorch and the operating system say of a full disk.
_FULL = re.compile(
    "no space left|file too large|quota|write failed|failed writing"
    "|unexpected pos",  # of PyTorch
    re.I,
)


@contextlib.contextmanager
def _named(path):
    """Turns what libraries raise on a full disk into one line with a remedy."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) or not _FULL.search(str(error)):
            raise
        raise OSError(
            f"{str(path)!r} cannot be written: the disk or a quota is full. "
            "Nothing was left there. Make room, or choose another disk."
        ) from error


def check_space(path: str | os.PathLike[str], needed: int) -> None:
    """Raises OSError if a path's disk has fewer free bytes than `needed`."""
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"No space left: the disk of {str(path)!r} has "
            f"{readable_bytes(free)} free, and {readable_bytes(needed)} are "
            "needed. Make room, or choose another disk."
        )


def flush(path: str) -> None:
    """Waits until a file, or the list of a folder's entries, is on disk."""
    if os.name == "nt":  # Windows cannot open a folder, or flush to read
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON document, whole or not at all.

    Args:
        path: file.
        content: what `json.dump` takes.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_write(path) as unfinished, open(unfinished, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


_REQUIRED = object()


def read_json(
    path: str | os.PathLike[str],
    default: Any = _REQUIRED,
    kind: type = dict,
) -> Any:
    """Reads a JSON document.

    Args:
        path: file.
        default: what to return if there is no such file.
        kind: type of the document, dict or list.

    Raises:
        FileNotFoundError: if there is no such file and no `default`.
        ValueError: if the file is damaged or holds another type. The message
            names the file.
    """
    try:
        with open(path, "rb") as file:
            return _parsed(file.read(), kind)
    except (FileNotFoundError, NotADirectoryError):
        if default is _REQUIRED:
            raise
        return default
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error


def read_json_lines(
    path: str | os.PathLike[str], numbers: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Reads a file with one JSON object a line; no file has no lines.

    A damaged line is left out with a warning. A last line that a killed
    process left unfinished is left out.

    Args:
        path: file.
        numbers: keys that every line must have, with a number.
    """
    lines: list[dict[str, Any]] = []
    if not os.path.exists(path):
        return lines
    with open(path, "rb") as file:
        for row, text in enumerate(file, 1):
            try:
                line = _parsed(text, dict)
                for name in numbers:
                    if not isinstance(line.get(name), (int, float)):
                        raise ValueError(f"{name!r} is no number")
                lines.append(line)
            except ValueError as error:
                if text.endswith(b"\n"):
                    logging.warning(
                        "Line %d of %r is damaged and left out: %s.",
                        *(row, str(path), reason(error)),
                    )
    return lines


def _parsed(text, kind):
    """Parses a JSON document of a type, or raises ValueError."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, kind):
        names = {dict: "an object", list: "a list"}
        raise ValueError(f"expected {names[kind]}, received {shown(content)}")
    return content


def as_json(content: Any) -> Any:
    """Returns `content` as it comes back from a JSON file."""
    return json.loads(json.dumps(content))


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Compares two nested JSON documents.

    Args:
        there: the document that was stored.
        here: the document that was expected.
        name: name of both in the result.

    Returns:
        A line for each entry in which they differ, "name: 1 there, 2 here".
    """
    if not (isinstance(there, dict) and isinstance(here, dict)):
        same = there == here
        return (
            []
            if same
            else [f"{name}: {shown(there)} there, {shown(here)} here"]
        )
    absent = "(absent)"
    return [
        difference
        for key in dict.fromkeys([*there, *here])
        for difference in differences(
            there.get(key, absent),
            here.get(key, absent),
            f"{name}, {key}" if name else str(key),
        )
    ]
