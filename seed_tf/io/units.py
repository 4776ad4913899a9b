"""Numbers as a person writes them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Returns seconds as text: "42 s", "7 min 05 s", "3 h 20 min".

    >>> duration(425)
    '7 min 05 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def readable(count: float) -> str:
    """Returns a large number with a prefix.

    >>> readable(1_234_000_000_000)
    '1.23 T'
    """
    for unit in ("", " k", " M", " G", " T", " P"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} E"


def readable_bytes(count: float) -> str:
    """Returns a number of bytes with a unit.

    >>> readable_bytes(33_554_432)
    '33.6 MB'
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
