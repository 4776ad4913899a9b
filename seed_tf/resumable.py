"""What long work on a folder shares: one process at a time, and progress."""

import contextlib
import fcntl
import os
import time

from absl import logging

from seed_tf.training.callbacks import duration

_EVERY = 10.0  # seconds from one line of progress to the next


@contextlib.contextmanager
def locked(path):
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


class Progress:
    """Writes a line now and then: how many, rate, time left.

    Called with the number done so far, of this call of the program.

    Args:
        total: int, number to be done.
        unit: str, what is counted, e.g. "images".
        write: function of a line.
    """

    def __init__(self, total, unit, write):
        self._total, self._unit, self._write = total, unit, write
        self._start = None

    def __call__(self, done):
        now = time.monotonic()
        if self._start is None:  # the first batch traces and starts threads
            self._start, self._first, self._last = now, done, now
        if now - self._last < _EVERY and done < self._total:
            return
        self._last = now
        line = f"  {done:,}/{self._total:,} {self._unit}"
        if done > self._first:
            rate = (done - self._first) / (now - self._start)
            left = duration((self._total - done) / rate)
            line += f"  {rate:,.0f} {self._unit}/s  {left} left"
        self._write(line)
