"""Progress of long work, a line now and then."""

import time

from seed_tf.io.units import duration

_EVERY = 10.0  # seconds from one line of progress to the next


class Progress:
    """Writes a line now and then: how many, rate, time left.

    Called with the number done so far, of this call of the program.

    Args:
        total: int, number to be done.
        unit: str, what is counted, e.g. "images".
        log: function of a line.
    """

    def __init__(self, total, unit, log):
        self._total, self._unit, self._log = total, unit, log
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
        self._log(line)
