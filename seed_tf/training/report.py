"""Writes the page of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from seed_tf.io.units import duration
from seed_tf.reporting import figures, pages, tables
from seed_tf.training.callbacks import read_metrics
from seed_tf.training.run_folder import RunFolder

CURVES = {  # labels by metric, in the order of the panels
    "loss": "loss (nats)",
    "gap": "gap: KL to the target (nats)",
    "accuracy": "contrastive accuracy",
    "agreement": "neighbours shared with teacher",
    "knn": "k-NN top-1",
    "cosine": "cosine to the target",
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


def write_run_report(
    folder: RunFolder,
    title: str,
    *,
    views: np.ndarray | None = None,
    neighbours: Sequence[Any] | None = None,
) -> None:
    """Writes `report.html` and `report.png` of a run.

    Without a line in `metrics.jsonl`, nothing is written.

    Args:
        folder: folder of the run.
        title: title of the page.
        views: `[N, S, S, 3]` uint8, augmented images, or None.
        neighbours: positional arguments of `figures.neighbours`, or None.

    Raises:
        OSError: if the page cannot be written.
    """
    lines = read_metrics(folder.file("metrics.jsonl"))
    if not lines:
        return
    history = history_of(lines)
    drawn = {name: label for name, label in CURVES.items() if name in history}
    curves = figures.curves({title: history}, drawn, x="step", xlabel="step")
    curves.savefig(folder.file("report.png"))
    last, config = lines[-1], folder.read("config.json")
    sections: list[tuple] = [
        (
            "State",
            f"Step {last['step']:,}, epoch {last.get('epoch', 0):.2f}, after "
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
                "Augmented images, as the network sees them.",
                figures.mosaic(views),
            )
        )
    if neighbours is not None:
        sections.append(
            (
                "Nearest neighbours",
                "Images held out of training, and the most similar images.",
                figures.neighbours(*neighbours),
            )
        )
    settings = "\n".join(f"{name} = {value}" for name, value in config.items())
    sections.append(("Settings", "", pages.preformatted(settings)))
    pages.write_page(folder.file("report.html"), title, sections)


def history_of(
    lines: Iterable[Mapping[str, float]],
) -> dict[str, list[float | None]]:
    """Returns the values of each metric, None where a line has none."""
    lines = list(lines)
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: [line.get(name) for line in lines] for name in names}


def _latest(values: Sequence[float | None]) -> float:
    return next(x for x in reversed(values) if x is not None)
