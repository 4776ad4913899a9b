"""The count of files that cannot be read, and the limit to it."""

import threading

from absl import logging


class CorruptFiles:
    """Names the bad files of a data set, and stops a run that has too many.

    `load` skips what it cannot decode and reports it here, from all of its
    threads. Every file is logged once. Once there are more than
    `max_fraction` of the data set, the pipeline fails with the message that
    `check` raises.

    Args:
        max_fraction: float in [0, 1], share of the data set's images that may
            be bad.

    Raises:
        ValueError: if `max_fraction` is out of its range.

    Example:

    >>> corrupt = seed_tf.datasets.CorruptFiles(max_fraction=0.05)
    >>> dataset = seed_tf.datasets.load("digits", corrupt=corrupt)
    >>> corrupt.files
    {}
    """

    shown = 20

    def __init__(self, max_fraction=0.01):
        if not 0 <= max_fraction <= 1:
            raise ValueError(
                "`max_fraction` must be in [0, 1]. "
                f"Received: max_fraction={max_fraction}."
            )
        self.max_fraction = max_fraction
        self.size = None  # images in the data set, which `load` sets
        self._files = {}
        self._lock = threading.Lock()

    @property
    def files(self):
        """dict of the bad files' names to what is wrong with each."""
        with self._lock:
            return dict(self._files)

    def add(self, name, reason):
        """Notes a bad file, in the log when it is seen first."""
        with self._lock:
            known = name in self._files
            self._files[name] = reason
        if not known:
            logging.warning("Skipped %s: %s.", name, reason)

    def verdict(self):
        """str, why there are too many bad files; empty if there are not."""
        files = self.files
        if not files or len(files) <= self.max_fraction * self.size:
            return ""
        listed = [f"{name} ({why})" for name, why in files.items()]
        if more := len(listed) - self.shown:
            more = f" and {more} more" if more > 0 else ""
        return (
            f"{len(files)} of {self.size} images cannot be read, more than "
            f"the {self.max_fraction:.3%} allowed: "
            f"{', '.join(listed[: self.shown])}{more or ''}. Mend or remove "
            "them, or raise `max_corrupt_fraction`."
        )

    def check(self):
        """Raises ValueError, with the list, if there are too many."""
        if verdict := self.verdict():
            raise ValueError(verdict)
