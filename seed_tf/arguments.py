"""Checks of arguments that many functions take."""

from __future__ import annotations

import operator
import reprlib
from typing import Any


def integer(name: str, value: Any, least: int = 1) -> int:
    """Returns an argument as a Python int, which NumPy's integers become.

    Args:
        name: of the argument, for the message.
        value: the argument.
        least: smallest value allowed.

    Raises:
        ValueError: if `value` is no integer, or smaller than `least`.

    >>> integer("queue_size", np.int64(64))
    64
    """
    if not hasattr(value, "__index__") or operator.index(value) < least:
        expected = (
            "a positive integer"
            if least == 1
            else f"an integer of at least {least}"
        )
        raise ValueError(
            f"`{name}` must be {expected}. "
            f"Received: {name}={reprlib.repr(value)}."
        )
    return operator.index(value)
