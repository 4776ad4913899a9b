"""Version folders of a model, which appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from seed_tf.io.files import atomic_folder
from seed_tf.io.locks import folder_lock

_UNFINISHED = ".unfinished"  # servers read numbers only


def check_version(path: str, version: int | None = None) -> int:
    """Returns the number of a new version of a model.

    Args:
        path: folder of the model's versions, which need not exist.
        version: positive int, or None for the next number.

    Raises:
        ValueError: if the version exists, or is not positive.
    """
    names = os.listdir(path) if os.path.isdir(path) else []
    taken = {int(name) for name in names if name.isdecimal()}
    if version is None:
        return max(taken, default=0) + 1
    if version < 1 or version in taken:
        raise ValueError(
            "`version` must be a new positive integer. "
            f"Received: version={version}; {path!r} has "
            f"{', '.join(map(str, sorted(taken))) or 'none'}."
        )
    return version


@contextlib.contextmanager
def new_version(
    path: str, version: int | None = None
) -> Iterator[tuple[str, str]]:
    """Yields a folder to fill, which then becomes a version of a model.

    The next export removes the remains of a killed export.

    Args:
        path: folder of the model's versions, made if missing.
        version: see `check_version`.

    Yields:
        The folder to fill and its later path.

    Raises:
        ValueError: if `version` is wrong, or another process exports to
            `path`.
        OSError: if the folder cannot be written.
    """
    with folder_lock(path):
        final = os.path.join(path, str(check_version(path, version)))
        with atomic_folder(final, os.path.join(path, _UNFINISHED)) as folder:
            yield folder, final
