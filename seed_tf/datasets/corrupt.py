"""Counts unreadable files, and limits their number."""

from __future__ import annotations

import threading

from absl import logging

from seed_tf.io.text import shortened, visible


class CorruptFiles:
    """Collects unreadable files, and stops a run that meets too many.

    `load` skips files that it cannot decode and reports them to this object,
    from several threads. Each file is logged once. When more than
    `max_fraction` of the data set are unreadable, the pipeline fails with the
    message of `check`.

    Args:
        max_fraction: float in [0, 1], the share of the data set's images that
            may be unreadable.

    Attributes:
        size: int, number of images in the data set; `load` sets it.

    Raises:
        ValueError: if `max_fraction` is out of range.

    Example:

    >>> corrupt = seed_tf.datasets.CorruptFiles(max_fraction=0.05)
    >>> dataset = seed_tf.datasets.load("digits", corrupt=corrupt)
    >>> corrupt.files
    {}
    """

    shown = 20  # files that the message of `check` names

    def __init__(self, max_fraction: float = 0.01) -> None:
        if not 0 <= max_fraction <= 1:
            raise ValueError(
                "`max_fraction` must be in [0, 1]. "
                f"Received: max_fraction={max_fraction}."
            )
        self.max_fraction = max_fraction
        self.size = 0
        self._files: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def files(self) -> dict[str, str]:
        """The unreadable files: a dict of names to reasons."""
        with self._lock:
            return dict(self._files)

    def add(self, name: str, reason: str) -> None:
        """Records an unreadable file, and logs a new one."""
        with self._lock:
            known = name in self._files
            self._files[name] = reason
        if not known:
            logging.warning("Skipped %s: %s.", *_shown(name, reason))

    def verdict(self) -> str:
        """Returns the error message, or "" while the number is allowed."""
        files = self.files
        if not files or len(files) <= self.max_fraction * self.size:
            return ""
        listed = ["{} ({})".format(*_shown(*file)) for file in files.items()]
        more = len(listed) - self.shown
        rest = f" and {more} more" if more > 0 else ""
        return (
            f"{len(files)} of {self.size} images cannot be read, more than "
            f"the {self.max_fraction:.3%} allowed: "
            f"{', '.join(listed[: self.shown])}{rest}. Repair or remove these "
            "files, or raise `max_corrupt_fraction`."
        )

    def check(self) -> None:
        """Raises ValueError, with the files, if too many are unreadable."""
        if verdict := self.verdict():
            raise ValueError(verdict)


def _shown(*texts):
    return [shortened(visible(text)) for text in texts]
