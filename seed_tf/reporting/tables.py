"""Tables as text, Markdown or HTML."""

from __future__ import annotations

import html
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seed_tf.io.text import visible


def table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], fmt: str = "text"
) -> str:
    """Renders rows of results.

    Args:
        rows: dicts by column. A value is a str, an int, a float (one decimal),
            a tuple of two floats (mean, spread), or None.
        columns: keys of the rows, which are also the headings. The first
            column is aligned left, the others right.
        fmt: "text", "markdown" or "html".

    Returns:
        The table, without a final newline.

    Raises:
        ValueError: if `fmt` is none of the three.

    Example:

    >>> rows = [{"encoder": "MoCo v2", "k-NN": (92.48, 0.61)}]
    >>> print(table(rows, ["encoder", "k-NN"]))
    encoder        k-NN
    -------  ----------
    MoCo v2  92.5 ± 0.6
    """
    grid = [list(columns)]
    grid += [[_cell(row.get(column)) for column in columns] for row in rows]
    grid = [[visible(cell) for cell in cells] for cells in grid]
    if fmt == "html":
        return _html_table(grid)
    if fmt not in ("text", "markdown"):
        raise ValueError(
            '`fmt` must be "text", "markdown" or "html". '
            f"Received: fmt={fmt!r}."
        )
    if fmt == "markdown":  # neither another cell nor HTML
        grid = [[re.sub(r"([|<])", r"\\\1", x) for x in row] for row in grid]
    first, *others = [max(map(len, cells)) for cells in zip(*grid, strict=True)]
    lines = [
        [cells[0].ljust(first), *map(str.rjust, cells[1:], others)]
        for cells in grid
    ]
    if fmt == "text":
        lines.insert(1, ["-" * width for width in (first, *others)])
        return "\n".join("  ".join(line).rstrip() for line in lines)
    lines.insert(1, ["-" * first, *("-" * (w - 1) + ":" for w in others)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, tuple):
        return "{:.1f} ± {:.1f}".format(*value)
    real = isinstance(value, numbers.Real)
    whole = isinstance(value, numbers.Integral)
    return f"{value:.1f}" if real and not whole else str(value)


def _html_table(grid: list[list[str]]) -> str:
    heading, *rows = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        for tag, cells in zip(["th"] + ["td"] * len(grid), grid, strict=False)
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<table>\n<thead><tr>{heading}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )
