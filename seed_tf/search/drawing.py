"""Figures of pictures and their neighbours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from seed_tf.datasets.decoding import EncodedImage
from seed_tf.reporting import figures
from seed_tf.search.index import Index

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE = 160  # pixels


@figures.styled
def draw(
    queries: Sequence[str],
    results: Sequence[tuple[np.ndarray, np.ndarray]],
    index: Index,
) -> Figure:
    """Draws a row for each query: the picture, then its neighbours.

    Args:
        queries: image files.
        results: pairs `(similarities [k], rows [k])`.
        index: index of the neighbours.
    """
    from matplotlib.figure import Figure

    columns = 1 + max(len(rows) for _, rows in results)
    figure = Figure((1.35 * columns, 1.65 * len(queries)))
    axes = figure.subplots(len(queries), columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for panels, query, (similarities, rows) in zip(
        axes, queries, results, strict=True
    ):
        _show(panels[0], query, os.path.basename(query)[:18], weight="bold")
        for panel, value, row in zip(
            panels[1:], similarities, rows, strict=False
        ):
            _show(panel, index.file(row), f"{value:.3f}", weight="normal")
    return figure


def _show(axes, file, title, **font):
    try:
        with open(file, "rb") as f:
            pixels = EncodedImage(f.read()).square(_SIDE, _SIDE)
    except Exception:  # removed or damaged since its embedding
        pixels = np.full([_SIDE, _SIDE, 3], 220, np.uint8)
    axes.imshow(pixels)
    axes.set_title(title, fontsize=8, **font)
