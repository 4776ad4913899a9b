"""Packages that only some features need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Turns a missing package into an error that names the extra.

    Args:
        name: the extra in setup.cfg that has the package.
        purpose: what needs it, the subject of a sentence in the plural.

    Raises:
        ValueError: if an import in the `with` block fails.

    >>> with extra("search", "Indexes"):
    ...     import faiss  # doctest: +SKIP
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{purpose} need optional packages: pip install "
            f"'seed_tf[{name}]'. Received: {error}."
        ) from error
