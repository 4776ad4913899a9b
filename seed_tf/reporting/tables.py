"""Tables, and one self-contained HTML page of them and of figures."""

import base64
import html
import io

import numpy as np
from matplotlib.figure import Figure


def table(rows, columns, fmt="text"):
    """Renders rows of results.

    Args:
        rows: list of dicts. A value is a str, an int, a float (one decimal),
            a pair of floats (mean, spread), or None.
        columns: list of keys, which are the headings too. The first column is
            set left, the others right.
        fmt: "text", "markdown" or "html".

    Returns:
        str, without a final newline.

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
    if fmt == "html":
        return _html_table(grid)
    if fmt not in ("text", "markdown"):
        raise ValueError(
            '`fmt` must be "text", "markdown" or "html". '
            f"Received: fmt={fmt!r}."
        )
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


def write_report(path, title, sections):
    """Writes one HTML page that needs no other file and no network.

    Args:
        path: file to write.
        title: str.
        sections: list of tuples `(heading, text, *parts)`. Blank lines divide
            `text` into paragraphs. A part is a matplotlib Figure, or HTML as
            `table(..., "html")` gives it.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    for heading, text, *parts in sections:
        body.append(f"<section>\n<h2>{html.escape(heading)}</h2>")
        paragraphs = filter(str.strip, text.split("\n\n"))
        body += [f"<p>{html.escape(p.strip())}</p>" for p in paragraphs]
        body += [
            _image(part, heading) if isinstance(part, Figure) else part
            for part in parts
        ]
        body.append("</section>")
    page = _PAGE.format(title=html.escape(title), body="\n".join(body))
    with open(path, "w", encoding="utf-8") as file:
        file.write(page)


def _cell(value):
    if value is None:
        return "–"
    if isinstance(value, tuple):
        return "{:.1f} ± {:.1f}".format(*value)
    return (
        f"{value:.1f}"
        if isinstance(value, (float, np.floating))
        else str(value)
    )


def _html_table(grid):
    heading, *rows = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        for tag, cells in zip(["th"] + ["td"] * len(grid), grid, strict=False)
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<table>\n<thead><tr>{heading}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )


def _image(figure, description):
    """An <img> with the picture inside."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    data = base64.b64encode(png.getvalue()).decode()
    width = round(figure.get_figwidth() * 96)  # CSS pixels per inch
    return (
        f'<img alt="{html.escape(description)}" width="{width}" '
        f'src="data:image/png;base64,{data}">'
    )


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1f2328; --soft: #59636e;
  --rule: #d5dae0; --page: #ffffff; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e9ed;
  --soft: #a2abb5; --rule: #3a424c; --page: #14181d; }} }}
body {{ margin: 2.5rem auto; padding: 0 1.25rem; max-width: 62rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; }}
h2 {{ font-size: 1.2rem; margin: 2.5rem 0 .5rem; }}
p {{ max-width: 44rem; }}
img {{ display: block; max-width: 100%; height: auto; margin: 1rem 0;
  padding: .5rem; box-sizing: border-box; background: #fff;
  border-radius: 6px; }}
table {{ border-collapse: collapse; margin: 1rem 0;
  font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .9rem; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
th {{ color: var(--soft); font-weight: 600;
  border-bottom: 2px solid var(--rule); }}
td {{ border-bottom: 1px solid var(--rule); }}
@media print {{ body {{ margin: 0; max-width: none; }}
  img, table, h2 {{ break-inside: avoid; break-after: auto; }}
  h2 {{ break-after: avoid; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
