"""Version folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from seed_tf.io.files import atomic_folder
from seed_tf.io.locks import folder_lock

_UNFINISHED = ".unfinished"  # no number, so that no server takes it for one


def check_version(path: str, version: int | None = None) -> int:
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
def new_version(
    path: str, version: int | None = None
) -> Iterator[tuple[str, str]]:
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
    with folder_lock(path):
        final = os.path.join(path, str(check_version(path, version)))
        with atomic_folder(final, os.path.join(path, _UNFINISHED)) as folder:
            yield folder, final
