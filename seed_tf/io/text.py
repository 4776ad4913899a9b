"""Text of others, such as names and messages, made fit to print."""

from __future__ import annotations

_MOST = 300  # characters of a message of another library


def visible(text: str) -> str:
    r"""Returns text with escapes in place of what cannot be printed.

    Control characters could change a terminal or forge a line; surrogates
    stand for bytes of a file name that is not UTF-8.

    >>> print(visible("a\x1b[2J\nb"))
    a\x1b[2J\nb
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(text: str, most: int = _MOST) -> str:
    """Returns text of at most `most` characters, cut in the middle.

    >>> shortened("0123456789", 5)
    '01…89'
    """
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def reason(error: BaseException) -> str:
    """Returns the first line of an error's message, without the file's name."""
    text = str(getattr(error, "strerror", None) or error)
    first = next(filter(None, map(str.strip, text.splitlines())), "")
    return shortened(visible(first)) or type(error).__name__


def shown(value: object) -> str:
    """Returns the `repr` of a value, shortened for a message."""
    return shortened(repr(value))
