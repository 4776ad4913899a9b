"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

import filelock
from absl import logging

from seed_tf.io.text import reason

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems


@contextlib.contextmanager
def folder_lock(path: str) -> Iterator[None]:
    """Makes a folder, and keeps other processes from writing to it.

    The operating system ends the lock with the process. On file systems
    without locks a warning is logged. The folder holds a file `.lock`
    meanwhile; a file that a killed process left locks nothing.

    Args:
        path: folder, made if missing.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if another process has locked it.
    """
    lock = filelock.FileLock(os.path.join(path, ".lock"), thread_local=False)
    try:
        os.makedirs(path, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ValueError(
            f"Another process is writing to {path!r}. Wait for it or stop "
            "it first, or choose another folder."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OSError(
                f"The folder {path!r} cannot be written: {reason(error)}."
            ) from error
        logging.warning("%r cannot be locked: %s.", path, error)
    try:
        yield
    finally:
        # A process that has opened the removed file cannot lock it.
        if lock.is_locked:
            with contextlib.suppress(OSError):
                os.remove(lock.lock_file)
        lock.release()
