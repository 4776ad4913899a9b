"""Self-contained HTML pages of text, tables and figures."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from seed_tf.io.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_page(
    path: str | os.PathLike[str], title: str, sections: Iterable[tuple]
) -> None:
    """Writes an HTML page that needs no other file and no network.

    Args:
        path: file to write.
        title: title and first heading of the page.
        sections: tuples `(heading, text, *parts)`. Blank lines divide `text`
            into paragraphs. A part is a matplotlib Figure, or HTML as
            `table(..., "html")` returns it.

    Raises:
        OSError: if the file cannot be written.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    for heading, text, *parts in sections:
        body.append(f"<section>\n<h2>{html.escape(heading)}</h2>")
        paragraphs = filter(str.strip, text.split("\n\n"))
        body += [f"<p>{html.escape(p.strip())}</p>" for p in paragraphs]
        body += [
            part if isinstance(part, str) else _image(part, heading)
            for part in parts
        ]
        body.append("</section>")
    page = _PAGE.format(title=html.escape(title), body="\n".join(body))
    with (
        atomic_write(path) as unfinished,
        open(unfinished, "w", encoding="utf-8") as file,
    ):
        file.write(page)


def preformatted(text: str) -> str:
    """Returns text as an HTML part that keeps its lines."""
    return f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>"


def _image(figure: Figure, description: str) -> str:
    """Returns an <img> element that contains the picture."""
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
