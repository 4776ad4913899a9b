"""Reads the folder of a run that has ended."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import h5py

from seed_tf.io.files import read_json
from seed_tf.training.callbacks import read_metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of the folder of a run.

    Attributes:
        path: the folder.
        config: the settings of the run.
        lines: the lines of `metrics.jsonl`.
        summary: `summary.json`, or {} before the run saved it.
        parameters: number of the backbone's weights, None without
            `backbone.keras`.
        results: dict of protocols to accuracies in percent.
    """

    path: str
    config: dict[str, Any]
    lines: list[dict[str, float]]
    summary: dict[str, Any]
    parameters: int | None
    results: dict[str, Any]

    def last(self, metric: str) -> float | None:
        """Returns the newest value of a metric, or None."""
        values = [x[metric] for x in self.lines if x.get(metric) is not None]
        return values[-1] if values else None


def read_run(path: str, results: Iterable[Mapping[str, Any]] = ()) -> Run:
    """Reads the folder of a run.

    Args:
        path: folder of a distillation or a pretraining.
        results: rows of evaluations, from `read_results`. Rows of other
            encoders are ignored. The folder's own `results.json` is added.

    Raises:
        ValueError: if the folder is not of a run, has no metrics, or has a
            damaged file.
    """
    if not os.path.isdir(path):
        raise ValueError(f"{path!r} is no folder of a run: it does not exist.")
    config = read_json(os.path.join(path, "config.json"), {})
    if "launcher" not in config:
        raise ValueError(
            f"{path!r} is no folder of a run: it has no config.json of a "
            "distillation or a pretraining."
        )
    lines = read_metrics(os.path.join(path, "metrics.jsonl"))
    if not lines:
        raise ValueError(
            f"The run in {path!r} has no metrics.jsonl, or nothing in it. A "
            "run writes it during its first epoch."
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
        summary=read_json(os.path.join(path, "summary.json"), {}),
        parameters=_parameters(os.path.join(path, "backbone.keras")),
        results=of_run,
    )


def read_results(path: str) -> list[dict[str, Any]]:
    """Reads the rows of an evaluation's `results.json`; [] without a file.

    Raises:
        ValueError: if the file is not of an evaluation.
    """
    rows = read_json(path, [], list)
    if not all(isinstance(row, dict) and "encoder" in row for row in rows):
        raise ValueError(f"{path!r} is no results.json of an evaluation.")
    return rows


def _encoders(path: str) -> list[str]:
    names = ("", "student.keras", "backbone.keras")
    return [os.path.join(path, name).rstrip(os.sep) for name in names]


def _parameters(path: str) -> int | None:
    """Counts the weights in a `.keras` file without loading the model."""
    if not os.path.exists(path):
        return None
    sizes: list[int] = []

    def count(name: str, item: object) -> None:
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
