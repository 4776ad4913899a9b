"""Text of others, such as names and messages, made fit to print."""

from __future__ import annotations

import re

_MOST = 300  # characters of a message of another library
_LINES, _PRINTED = 8, 2500  # lines and characters of a printed message
# TensorFlow's frames around a message, and Keras's.
_ASSERTED = re.compile(
    r"assertion failed: \[(.*?)\]\s*(?:\[\[\{\{|\[Op:|$)", re.DOTALL
)
_RAISED = re.compile(r"\n {4}[\w.]*(?:Error|Exception): ")
_CALLED = re.compile(
    r"^Exception encountered when calling [^\n]*\n\s*"
    r"|\n\s*Arguments received by .*",
    re.DOTALL,
)


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
    """Returns the first line of an error's message, to stand in a sentence.

    It is without the file's name and without the last full stop.
    """
    text = str(getattr(error, "strerror", None) or error)
    first = next(filter(None, map(str.strip, text.splitlines())), "")
    return shortened(visible(first)).removesuffix(".") or type(error).__name__


def shown(value: object) -> str:
    """Returns the `repr` of a value, shortened for a message."""
    return shortened(repr(value))


def plain(error: BaseException) -> str:
    """Returns an error's message without the frames of TensorFlow and Keras.

    Of a failed assertion and an error in a traced function the message inside
    remains; of TensorFlow's other errors the kind and the first line.
    """
    text = str(error)
    if type(error).__module__.startswith("tensorflow"):
        if found := _ASSERTED.search(text):
            return re.sub(r"\\([\"'])", r"\1", found[1])
        first = re.sub(r"^\{\{function_node .*?\}\} *", "", reason(error))
        return f"{type(error).__name__}: {first}"
    if text.startswith("in user code:"):
        text = _RAISED.split(text)[-1]
    text = re.sub(r"\x1b\[[\d;]*m", "", _CALLED.sub("", text))
    return text.strip() or type(error).__name__


def printable(message: str) -> str:
    """Returns a message of a few lines at most, without control characters."""
    lines = [visible(line) for line in message.strip().split("\n")]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], "…"]
    return shortened("\n".join(lines), _PRINTED)
