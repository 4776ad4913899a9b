"""Compares runs: tables, figures and a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seed_tf.io.files import write_json
from seed_tf.io.units import readable
from seed_tf.reporting import figures, pages, tables
from seed_tf.training.finished_run import Run
from seed_tf.training.report import CURVES, history_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Settings that do not describe the experiment.
_NO_SETTINGS = {
    *("command", "output", "overwrite", "dry_run", "download", "recipe"),
    *("checkpoint_minutes", "max_corrupt_fraction", "teacher_fingerprint"),
    *("data", "data_changed"),
}
_FINAL = ("loss", "gap", "agreement", "knn")
# Columns on the x axis of accuracy: label of the axis, format of its numbers
# (None for prefixes), text beside the figure.
_AGAINST = {
    "parameters": ("parameters of the backbone", None, ""),
    "FLOPs": (
        "FLOPs of training",
        None,
        "Convolutions and matrix products of all steps and both networks. "
        "The training of the teacher does not count.",
    ),
    "hours": (
        "hours of training",
        "{x:g}",
        "Compare only runs of one machine.",
    ),
}


def compare_runs(runs: Sequence[Run], output: str | None = None) -> str:
    """Compares runs: a table, figures and a page.

    Args:
        runs: runs to compare.
        output: folder for `report.md`, `report.json`, `report.html` and
            figures, or None.

    Returns:
        A table of the runs, and a table of the settings that differ.

    Raises:
        ValueError: if a run is named twice.
    """
    names = _names([run.path for run in runs])
    rows = [_row(name, run) for name, run in zip(names, runs, strict=True)]
    different = _differences(names, runs)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = [{k: _short(k, v) for k, v in row.items()} for row in rows]
    settings = ["setting", *names]
    text = tables.table(shown, columns)
    if different:
        text += "\n\n" + tables.table(different, settings)
    if output is None:
        return text
    os.makedirs(output, exist_ok=True)
    pictures = _pictures(names, runs, rows)
    for name, (_, _, figure) in pictures.items():
        figure.savefig(os.path.join(output, f"{name}.png"))
    write_json(
        os.path.join(output, "report.json"),
        {"runs": rows, "differences": different},
    )
    with open(os.path.join(output, "report.md"), "w") as file:
        for table, heading in ((shown, columns), (different, settings)):
            if table:
                file.write(tables.table(table, heading, "markdown") + "\n\n")
        for name, (title, _, _) in pictures.items():
            file.write(f"![{title}]({name}.png)\n\n")
    sections: list[tuple] = [("Runs", "", tables.table(shown, columns, "html"))]
    if different:
        html_table = tables.table(different, settings, "html")
        sections.append(("What differs", "", html_table))
    sections += pictures.values()
    pages.write_page(
        os.path.join(output, "report.html"), ", ".join(names), sections
    )
    return text


def _names(paths: Sequence[str]) -> list[str]:
    """Shortens paths to their last parts, as long as the names differ."""
    parts = [os.path.abspath(path).split(os.sep) for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = [os.sep.join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"A run is named twice. Received: {', '.join(paths)}.")


def _row(name: str, run: Run) -> dict[str, Any]:
    """Returns the results of a run at its end by column."""
    last = run.lines[-1]
    flops = run.summary.get("flops_per_step")  # absent in old runs
    row: dict[str, Any] = {
        "run": name,
        "network": run.config.get("student") or run.config.get("encoder"),
        "parameters": run.parameters,
        "steps": last["step"],
        "FLOPs": flops and flops * last["step"],
        "hours": last["seconds"] / 3600,
    }
    ended = run.summary.get("ended", "?")
    if ended != "finished":
        row["ended"] = ended
    measured = {metric: run.last(metric) for metric in _FINAL}
    row |= {k: v for k, v in measured.items() if v is not None}
    return row | run.results


def _short(column: str, value: Any) -> Any:
    if column == "parameters" and value:
        return f"{value / 1e6:.2f} M"
    if column == "FLOPs" and value:
        return readable(value)
    if column == "hours":
        return f"{value:.2g}"
    if column == "steps":
        return f"{value:,}"
    if column in _FINAL:
        return f"{value:.3f}"
    return tuple(value) if isinstance(value, list) else value  # from JSON


def _differences(
    names: Sequence[str], runs: Sequence[Run]
) -> list[dict[str, str]]:
    """Returns a row for each setting in which runs differ."""
    absent = "–"
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = []
    for key in keys:
        values = [str(run.config.get(key, absent)) for run in runs]
        if key not in _NO_SETTINGS and len(set(values)) > 1:
            rows.append(
                {"setting": key} | dict(zip(names, values, strict=True))
            )
    return rows


def _pictures(
    names: Sequence[str], runs: Sequence[Run], rows: Sequence[dict[str, Any]]
) -> dict[str, tuple[str, str, Figure]]:
    """Returns sections (title, text, figure) by the names of their files."""
    colours = figures.palette(names)
    accuracy, values = _accuracy(rows)
    pictures = {}
    if accuracy:
        title = f"{accuracy} (%)"
        for x, (label, ticks, text) in _AGAINST.items():
            points = {
                row["run"]: (row[x], value)
                for row, value in zip(rows, values, strict=True)
                if value is not None and row[x]
            }
            if points:
                pictures[x.lower()] = (
                    f"Accuracy against {label}",
                    text,
                    figures.points(
                        points,
                        xlabel=label,
                        ylabel=title,
                        ticks=ticks,
                        colours=colours,
                    ),
                )
    histories = {
        name: history_of(run.lines)
        for name, run in zip(names, runs, strict=True)
    }
    drawn = {
        metric: label
        for metric, label in CURVES.items()
        if any(metric in history for history in histories.values())
    }
    curves = figures.curves(
        histories, drawn, x="step", xlabel="step", colours=colours
    )
    pictures["curves"] = ("Curves", "", curves)
    return pictures


def _accuracy(
    rows: Sequence[dict[str, Any]],
) -> tuple[str | None, list[float | None]]:
    """Returns the name and the values, in percent, of the commonest accuracy.

    Of equally common accuracies, linear probes come first, k-NN during
    training comes last.
    """
    known = {"run", "network", "steps", "ended", *_AGAINST}
    names = dict.fromkeys(
        key for row in rows for key in row if key not in known | set(_FINAL)
    )
    candidates = {
        name: [_number(row.get(name)) for row in rows]
        for name in sorted(names, key=lambda name: "linear" not in name)
    }
    candidates["k-NN top-1 during training"] = [
        None if row.get("knn") is None else 100 * row["knn"] for row in rows
    ]

    def count(name: str) -> int:
        return sum(value is not None for value in candidates[name])

    best = max(candidates, key=count)
    return (best, candidates[best]) if count(best) else (None, [])


def _number(value: Any) -> float | None:
    """Returns a percentage, or the mean of a pair (mean, spread), or None."""
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if isinstance(value, (int, float)) else None
