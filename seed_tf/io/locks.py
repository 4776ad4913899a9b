"""One process at a time in a folder."""

import contextlib
import fcntl
import os

from absl import logging


@contextlib.contextmanager
def folder_lock(path):
    """Makes a folder, and keeps other processes from building in it.

    Args:
        path: str.

    Raises:
        OSError: if it cannot be written.
        ValueError: if another process has locked it.
    """
    try:
        os.makedirs(path, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise OSError(
            f"The folder {path!r} cannot be written: {error.strerror}."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"Another process is building {path!r}. Wait for it, or choose "
            "another folder."
        ) from None
    except OSError as error:  # some network file systems
        logging.warning("%r cannot be locked: %s.", path, error)
    try:
        yield
    finally:
        os.close(descriptor)
