"""The results of an evaluation: one table in several forms, and a figure."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging

from seed_tf.io.files import atomic_write, differences, read_json
from seed_tf.io.text import visible
from seed_tf.reporting import (
    figures,
    tables,
)


class Results:
    """Scores of encoders: one table in several forms, and figures.

    Args:
        scores: dict of encoders to dicts of columns to lists, of one value per
            seed: percent, or str.
        pictures: dict of names to figures.
        fingerprints: dict of encoders to fingerprints of their weights.
        data: JSON dict that describes the data of the evaluation.
    """

    def __init__(
        self,
        scores: Mapping[str, dict[str, list]],
        pictures: Mapping[str, Any] | Iterable = (),
        fingerprints: Mapping[str, str] | Iterable = (),
        data: Mapping[str, Any] | Iterable = (),
    ):
        self.scores, self.pictures = scores, dict(pictures)
        self.fingerprints, self.data = dict(fingerprints), dict(data)

    @classmethod
    def read(cls, folder: str, data: Mapping[str, Any]) -> Results:
        """Reads the results that `write` left in a folder, without pictures.

        Args:
            folder: str. Without results in it, the new ones are empty.
            data: description of the data, which must match.

        Raises:
            ValueError: if the results are of other data or of another kind,
                or damaged.
        """
        path = os.path.join(folder, "scores.json")
        remedy = "Choose another `output`, or remove them."
        try:
            earlier = read_json(path)
        except FileNotFoundError:
            if os.path.exists(os.path.join(folder, "results.json")):
                raise ValueError(
                    f"{folder!r} holds results without a scores.json, which "
                    f"names their data. {remedy}"
                ) from None
            return cls({}, data=data)
        scores, fingerprints, there = (
            earlier.get(key) for key in ("scores", "fingerprints", "data")
        )
        if not all(isinstance(x, dict) for x in (scores, fingerprints, there)):
            raise ValueError(f"{path!r} is damaged: a part of it is missing.")
        if different := differences(there, data):
            raise ValueError(
                f"{folder!r} holds results on other data. "
                f"{'; '.join(different)}. {remedy}"
            )
        return cls(scores, (), fingerprints, data)

    def beside(self, earlier: Results) -> Results:
        """Joins these results with earlier ones on the same data.

        These replace earlier values in the same column of an encoder. If the
        encoder's weights have changed, all of its earlier values are left
        out, with a warning.
        """
        kept = dict(earlier.scores)
        for name in set(self.scores) & set(kept):
            if self.fingerprints.get(name) != earlier.fingerprints.get(name):
                logging.warning(
                    "The weights of %s have changed since its last evaluation. "
                    "Its earlier results are left out: %s.",
                    *(name, ", ".join(kept.pop(name))),
                )
        scores = {
            name: kept.get(name, {}) | self.scores.get(name, {})
            for name in [*earlier.scores, *self.scores]
        }
        fingerprints = earlier.fingerprints | self.fingerprints
        return Results(scores, self.pictures, fingerprints, self.data)

    @property
    def columns(self) -> list[str]:
        """Headings of all encoders."""
        return list(
            dict.fromkeys(c for found in self.scores.values() for c in found)
        )

    def table(self, fmt: str = "text") -> str:
        """The table as "text", "markdown" or "html"; mean ± spread of seeds.

        The spread is the standard deviation over the seeds. A row is an
        encoder or, where these would be too long to read, a column's heading.
        """
        cells = {
            name: {column: _cell(values) for column, values in found.items()}
            for name, found in self.scores.items()
        }
        if len(self.columns) <= 6:
            rows = [{"encoder": name} | found for name, found in cells.items()]
            return tables.table(rows, ["encoder", *self.columns], fmt)
        rows = [
            {"": column}
            | {name: found.get(column) for name, found in cells.items()}
            for column in self.columns
        ]
        return tables.table(rows, ["", *cells], fmt)

    def rows(self) -> list[dict[str, Any]]:
        """Flat rows for JSON and CSV, with spreads in columns of their own."""
        rows = []
        for name, found in self.scores.items():
            row = {"encoder": name}
            for column, values in found.items():
                cell = _cell(values)
                mean, *spread = cell if isinstance(cell, tuple) else (cell,)
                row[column] = mean if isinstance(mean, str) else round(mean, 2)
                if spread:
                    row[f"{column}, spread"] = round(spread[0], 2)
            rows.append(row)
        return rows

    @figures.styled
    def figure(self) -> Any:
        """Draws all scores: a line per column, a dot per encoder."""
        from matplotlib.figure import Figure

        colours = figures.palette(self.scores)
        columns = [
            column
            for column in self.columns
            if not any(
                isinstance(value, str)
                for found in self.scores.values()
                for value in found.get(column, ())
            )
        ]
        figure = Figure((7, 1.4 + 0.3 * len(columns)))
        axes, handles = figure.subplots(), list[Any]()
        for name, found in self.scores.items():
            places = [i for i, x in enumerate(columns) if x in found]
            values = [found[columns[i]] for i in places]
            handles.append(
                axes.errorbar(
                    [np.mean(x) for x in values],
                    places,
                    xerr=[np.std(x) for x in values],
                    fmt="o",
                    capsize=3,
                    alpha=0.85,
                    color=colours[name],
                )
            )
        axes.set_yticks(range(len(columns)), columns)
        axes.invert_yaxis()
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("%")
        names = list(self.scores)
        style = {"loc": "outside upper left", "frameon": False}
        figure.legend(handles, names, **style)
        return figure

    def write(self, folder: str) -> None:
        """Writes results.json, .csv, .md and .png, and the pictures.

        scores.json has the values of all seeds, for `read`.

        Raises:
            OSError: if a file cannot be written.
        """
        os.makedirs(folder, exist_ok=True)
        rows = self.rows()
        columns = list(dict.fromkeys(c for row in rows for c in row))

        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: _in_sheet(value) for key, value in row.items()}
            for row in rows
        )
        everything = {
            "data": self.data,
            "fingerprints": self.fingerprints,
            "scores": self.scores,
        }
        for name, text in {
            "scores.json": json.dumps(everything, indent=2),
            "results.json": json.dumps(rows, indent=2),
            "results.csv": sheet.getvalue(),
            "results.md": self.table("markdown") + "\n",
        }.items():
            with (
                atomic_write(os.path.join(folder, name)) as path,
                open(path, "w", encoding="utf-8") as file,
            ):
                file.write(text)
        for name, figure in {"results": self.figure(), **self.pictures}.items():
            with atomic_write(os.path.join(folder, f"{name}.png")) as path:
                figure.savefig(path, dpi=130)


def _in_sheet(value):
    """Returns a cell of a CSV file; no text is a spreadsheet's formula."""
    if not isinstance(value, str):
        return value
    return ("'" if value.startswith(tuple("=+-@")) else "") + visible(value)


def _cell(values):
    """One number, or (mean, standard deviation), or all words that occur."""
    if isinstance(values[0], str):
        return ", ".join(dict.fromkeys(values))
    if len(values) == 1:
        return float(values[0])
    return float(np.mean(values)), float(np.std(values))
