"""Pictures and their neighbours, as a figure."""

import os

import numpy as np
from matplotlib.figure import Figure

from seed_tf.datasets.decoding import EncodedImage

_SIDE = 160  # pixels


def draw(queries, results, index):
    """A row for each query: the picture, then its neighbours.

    Args:
        queries: list of files.
        results: list of pairs `(similarities [k], rows [k])`.
        index: `Index`.

    Returns:
        matplotlib Figure.
    """
    columns = 1 + max(len(rows) for _, rows in results)
    figure = Figure(
        (1.35 * columns, 1.65 * len(queries)), dpi=130, layout="constrained"
    )
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
            _show(panel, index.file(row), f"{value:.3f}")
    return figure


def _show(axes, file, title, **font):
    try:
        with open(file, "rb") as f:
            pixels = EncodedImage(f.read()).square(_SIDE, _SIDE)
    except Exception:  # gone or damaged since it was embedded
        pixels = np.full([_SIDE, _SIDE, 3], 220, np.uint8)
    axes.imshow(pixels)
    axes.set_title(title, fontsize=8, **font)
