"""Compares runs: settings, curves, accuracy and cost.

    seed-tf report runs/alone runs/seed --output=comparison

The command prints a table. With --output it also writes the table as Markdown,
JSON and page. The page shows accuracy against the size of the network, the
FLOPs and the hours of training, and the curves of all runs.
"""

from __future__ import annotations

import dataclasses
import os

from seed_tf.cli.flags import Call, Command, repeated
from seed_tf.config import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    results: tuple[str, ...] = repeated(
        (),
        "A results.json of seed-tf evaluate, for the runs that it names. The "
        "results.json in a run's own folder is always read.",
        path="read",
    )
    output: str | None = setting(
        None,
        "Folder for report.html, .md, .json and the figures.",
        path="written",
    )


def run(call: Call[Settings]) -> None:
    from seed_tf.training import comparison, finished_run

    settings = call.settings
    if not call.arguments:
        raise ValueError("Name the folders of one or more runs.")
    rows = []
    for path in settings.results:
        if not os.path.isfile(path):
            raise ValueError(f"--results={path}: no such file.")
        rows += finished_run.read_results(path)
    runs = [finished_run.read_run(path, rows) for path in call.arguments]
    print(comparison.compare_runs(runs, settings.output))
    if settings.output:
        print(f"\nReport: {os.path.join(settings.output, 'report.html')}")


COMMAND = Command(Settings, run, arguments="RUN...")
