"""The page of a run, and that of several runs side by side."""

import dataclasses
import html
import io
import json
import math
import os
import zipfile

import h5py

from seed_tf.io.files import read_json_lines
from seed_tf.io.units import duration, readable
from seed_tf.reporting import (
    figures,
    tables,
)

_CURVES = {
    "loss": "loss (nats)",
    "gap": "gap: KL to the target (nats)",
    "accuracy": "contrastive accuracy",
    "agreement": "neighbours shared with teacher",
    "knn": "k-NN top-1",
    "cosine": "cosine between the towers",
    "spread": "spread of embeddings",
    "teacher_neighbours": "neighbours in the target",
    "student_neighbours": "neighbours in student's softmax",
    "self_mass": "target's mass on the image",
    "queue_filled": "share of the queue filled",
    "gradient_norm": "gradient norm",
    "learning_rate": "learning rate",
    "images_per_second": "images per second",
    "waiting": "share of time waiting for data",
}


def write_run_report(folder, title, *, views=None, neighbours=None):
    """Writes `report.html` and `report.png` of a run, from what it logged.

    Args:
        folder: `RunFolder` with a `metrics.jsonl`.
        title: str.
        views: `[N, S, S, 3]` uint8, views as the network sees them, or None.
        neighbours: arguments of `figures.neighbours`, or None.
    """
    lines = read_json_lines(folder.file("metrics.jsonl"))
    if not lines:
        return
    names = dict.fromkeys(name for line in lines for name in line)
    history = {name: [line.get(name) for line in lines] for name in names}
    drawn = {name: label for name, label in _CURVES.items() if name in history}
    curves = figures.curves({title: history}, drawn, x="step", xlabel="step")
    curves.savefig(folder.file("report.png"))
    last, config = lines[-1], folder.read("config.json")
    sections = [
        (
            "State",
            f"Step {last['step']:,}, epoch {last['epoch']:.2f}, after "
            f"{duration(last['seconds'])} of training.",
            tables.table(
                [
                    {"": label, "last": f"{_latest(history[name]):.4g}"}
                    for name, label in drawn.items()
                ],
                ["", "last"],
                fmt="html",
            ),
        ),
        ("Curves", "", curves),
    ]
    if views is not None:
        sections.append(
            (
                "Views",
                "Images as the network sees them, augmented.",
                figures.mosaic(views),
            )
        )
    if neighbours is not None:
        sections.append(
            (
                "Nearest neighbours",
                "Images held out of training, and those most similar to them.",
                figures.neighbours(*neighbours),
            )
        )
    settings = "\n".join(f"{name} = {value}" for name, value in config.items())
    sections.append(
        (
            "Settings",
            "",
            f"<pre style='white-space: pre-wrap'>{html.escape(settings)}</pre>",
        )
    )
    tables.write_report(folder.file("report.html"), title, sections)


def _latest(values):
    return next(x for x in reversed(values) if x is not None)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder tells.

    Attributes:
        path: str.
        config: dict, the flags.
        lines: list of dicts, of `metrics.jsonl`.
        summary: dict, {} of a run that has not saved yet.
        parameters: int, of the trained backbone, or None without a file of it.
        results: dict of protocols to percent, of `experiments.evaluate`.
    """

    path: str
    config: dict
    lines: list
    summary: dict
    parameters: int | None
    results: dict

    def last(self, metric):
        """The newest value of a metric, None if it was never measured."""
        values = [x[metric] for x in self.lines if x.get(metric) is not None]
        return values[-1] if values else None


def read_run(path, results=()):
    """Reads the folder that a run left.

    Args:
        path: folder of `experiments.distill` or `experiments.pretrain`.
        results: rows of `experiments.evaluate`, from wherever they lie; those
            whose encoder is of this run count. A `results.json` in the folder
            is read as well.

    Returns:
        `Run`.

    Raises:
        ValueError: if the folder is none of a run, nothing was logged in it,
            or a file of it is damaged.
    """
    if not os.path.isdir(path):
        raise ValueError(f"{path!r} is no folder of a run: there is none.")
    config = _json(os.path.join(path, "config.json"), {})
    if not isinstance(config, dict) or "launcher" not in config:
        raise ValueError(
            f"{path!r} is no folder of a run: it has no config.json of "
            "experiments.distill or experiments.pretrain."
        )
    lines = read_json_lines(os.path.join(path, "metrics.jsonl"))
    if not lines or not all("step" in line for line in lines):
        raise ValueError(
            f"The run in {path!r} has no metrics.jsonl, or nothing in it: it "
            "ended, or was copied, before a first epoch's end."
        )
    rows = [*results, *read_results(os.path.join(path, "results.json"))]
    whole = os.path.realpath(path)
    of_run = {
        protocol: value
        for row in rows
        if os.path.realpath(row["encoder"]) in _encoders(whole)
        for protocol, value in row.items()
        if protocol != "encoder"
    }
    return Run(
        path=path,
        config=config,
        lines=lines,
        summary=_json(os.path.join(path, "summary.json"), {}),
        parameters=_parameters(os.path.join(path, "backbone.keras")),
        results=of_run,
    )


def read_results(path):
    """Rows of `experiments.evaluate`, none if there is no such file.

    Raises:
        ValueError: if it holds something else.
    """
    rows = _json(path, [])
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and "encoder" in row for row in rows
    ):
        raise ValueError(
            f"{path!r} is no results.json of experiments.evaluate."
        )
    return rows


def _encoders(path):
    names = ("", "student.keras", "backbone.keras")
    return [os.path.join(path, name).rstrip(os.sep) for name in names]


def _json(path, default):
    try:
        with open(path) as f:
            return json.load(f)
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise ValueError(f"{path!r} is damaged: {error}") from error


def _parameters(path):
    """Weights in a `.keras` file, counted without TensorFlow."""
    if not os.path.exists(path):
        return None
    sizes = []

    def count(name, item):
        # Integers are the states of dropout's generators.
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            sizes.append(math.prod(item.shape))

    try:
        with zipfile.ZipFile(path) as archive:
            weights = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(weights) as file:
            file.visititems(count)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path!r} is damaged: {error}") from error
    return sum(sizes)


# Flags in which runs differ without being different experiments, and what
# `compare_runs` shows elsewhere.
_NO_SETTINGS = {
    *("command", "output", "overwrite", "dry_run", "download", "recipe"),
    *("checkpoint_minutes", "max_corrupt_fraction", "teacher_fingerprint"),
}
_FINAL = ("loss", "gap", "agreement", "knn")
# Columns that accuracy is drawn against: axis, how numbers are written (None
# for prefixes), what to know of it.
_AGAINST = {
    "parameters": ("parameters of the backbone", None, ""),
    "FLOPs": (
        "FLOPs of training",
        None,
        "Convolutions and matrix products of all steps, both networks, on any "
        "machine. What trained a teacher before is not in it.",
    ),
    "hours": (
        "hours of training",
        "{x:g}",
        "Comparable between runs of one machine only.",
    ),
}


def compare_runs(runs, output=None):
    """Several runs side by side: table, figures, page.

    Args:
        runs: list of `Run`.
        output: folder for `report.md`, `report.json`, `report.html` and
            figures, or None.

    Returns:
        str, the table and what differs between the runs, to print.
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
    for file, (_, _, figure) in pictures.items():
        figure.savefig(os.path.join(output, f"{file}.png"))
    with open(os.path.join(output, "report.json"), "w") as f:
        json.dump({"runs": rows, "differences": different}, f, indent=2)
    with open(os.path.join(output, "report.md"), "w") as f:
        for table, heading in ((shown, columns), (different, settings)):
            if table:
                f.write(tables.table(table, heading, "markdown") + "\n\n")
        for file, (title, _, _) in pictures.items():
            f.write(f"![{title}]({file}.png)\n\n")
    sections = [("Runs", "", tables.table(shown, columns, "html"))]
    if different:
        html_table = tables.table(different, settings, "html")
        sections.append(("What differs", "", html_table))
    sections += pictures.values()
    tables.write_report(
        os.path.join(output, "report.html"), ", ".join(names), sections
    )
    return text


def _names(paths):
    """The last parts of paths, as many as tell them apart."""
    parts = [os.path.abspath(path).split(os.sep) for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = [os.sep.join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"A run is named twice. Received: {', '.join(paths)}.")


def _row(name, run):
    """What is known of a run at its end, by column."""
    last = run.lines[-1]
    flops = run.summary.get("flops_per_step")  # none of an older run
    row = {
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


def _short(column, value):
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


def _differences(names, runs):
    """Rows of the settings in which runs differ, by run."""
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


def _pictures(names, runs, rows):
    """Sections (title, text, figure) by the names of their files."""
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
    histories = {}
    for name, run in zip(names, runs, strict=True):
        keys = dict.fromkeys(key for line in run.lines for key in line)
        histories[name] = {
            key: [line.get(key) for line in run.lines] for key in keys
        }
    drawn = {
        metric: label
        for metric, label in _CURVES.items()
        if any(metric in history for history in histories.values())
    }
    curves = figures.curves(
        histories, drawn, x="step", xlabel="step", colours=colours
    )
    pictures["curves"] = ("Curves", "", curves)
    return pictures


def _accuracy(rows):
    """The accuracy that most runs have, in percent: its name, its values.

    Of those that equally many have, a linear probe, then whatever was
    evaluated, then k-NN during training.
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

    def count(name):
        return sum(value is not None for value in candidates[name])

    best = max(candidates, key=count)
    return (best, candidates[best]) if count(best) else (None, [])


def _number(value):
    """A percentage, or of a pair (mean, spread) the mean; else None."""
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if isinstance(value, (int, float)) else None
