"""Version folders that appear whole or not at all."""

import contextlib
import fcntl
import os
import shutil

from absl import logging

_UNFINISHED = ".unfinished"  # no number, so that no server takes it for one


def check_version(path, version=None):
    """The number that a new version of a model gets.

    Args:
        path: str, folder of the model's versions, or where one is to be.
        version: positive int, or None for the next one.

    Raises:
        ValueError: if there is that version, or it is not positive.
    """
    names = os.listdir(path) if os.path.isdir(path) else []
    taken = {int(name) for name in names if name.isdecimal()}
    if version is None:
        return max(taken, default=0) + 1
    if version < 1 or version in taken:
        raise ValueError(
            "`version` must be a positive integer that is not taken. "
            f"Received: version={version}; {path!r} has "
            f"{', '.join(map(str, sorted(taken))) or 'none'}."
        )
    return version


@contextlib.contextmanager
def new_version(path, version=None):
    """Gives a folder to fill, which then becomes a version of a model.

    What an export that was killed has left is removed by the next one.

    Args:
        path: str, folder of the model's versions, made if missing.
        version: as of `check_version`.

    Yields:
        The folder, and the path that it will have.

    Raises:
        ValueError: as `check_version`, or if another process is exporting
            to `path`.
        OSError: if it cannot be written.
    """
    os.makedirs(path, exist_ok=True)
    parent = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Another process is exporting to {path!r}. Wait for it, or "
                "choose another folder."
            ) from None
        except OSError as error:  # some network file systems
            logging.warning("%r cannot be locked: %s.", path, error)
        version = os.path.join(path, str(check_version(path, version)))
        unfinished = os.path.join(path, _UNFINISHED)
        shutil.rmtree(unfinished, ignore_errors=True)
        os.mkdir(unfinished)
        try:
            yield unfinished, version
            _flush(unfinished)
            os.rename(unfinished, version)
            os.fsync(parent)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    finally:
        os.close(parent)


def _flush(folder):
    """Waits until all files of a folder are on the disk."""
    for root, _, names in os.walk(folder):
        for name in [*names, ""]:
            file = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
