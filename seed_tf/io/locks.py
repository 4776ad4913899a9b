"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from absl import logging

from seed_tf.io.files import reason


@contextlib.contextmanager
def folder_lock(path: str) -> Iterator[None]:
    """Makes a folder, and keeps other processes from writing to it.

    The operating system ends the lock with the process. On file systems
    without locks a warning is logged.

    Args:
        path: folder, made if missing.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if another process has locked it.
    """
    try:
        os.makedirs(path, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise OSError(
            f"The folder {path!r} cannot be written: {reason(error)}."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Another process is writing to {path!r}. Wait for it or stop "
                "it first, or choose another folder."
            ) from None
        except OSError as error:  # some network file systems
            logging.warning("%r cannot be locked: %s.", path, error)
        yield
    finally:
        os.close(descriptor)
