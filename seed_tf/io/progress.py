"""Progress of long work, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from seed_tf.io.units import duration

_EVERY = 10.0  # seconds from one line of progress to the next


class Progress:
    """Logs a line now and then: number done, rate, time left.

    Call it with the number that this process has done so far.

    Args:
        total: number to be done.
        unit: name of the things counted, e.g. "images".
        log: function of one str, a line.
    """

    def __init__(
        self, total: int, unit: str, log: Callable[[str], object]
    ) -> None:
        self._total, self._unit, self._log = total, unit, log
        self._start: float | None = None
        self._first, self._last = 0, 0.0

    def __call__(self, done: int) -> None:
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
        self._log(line)
