"""Compares runs: what differs, how they ended, accuracy against size and cost.

    python -m experiments.report runs/alone runs/seed --output=comparison

Prints a table; with --output also writes it as Markdown, JSON and page, with
accuracy against the network's size and against the training's FLOPs and hours,
and the curves of all runs laid over each other.
"""

import os

from absl import flags

from seed_tf.training import comparison, finished_run

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "results",
    [],
    "A results.json of experiments.evaluate, whose rows go to the runs that "
    "they name; repeat it for several. One in a run's own folder is found.",
)
flags.DEFINE_string(
    "output", None, "Folder for report.html, .md, .json and the figures."
)


def main(arguments):
    paths = arguments[1:]
    if not paths:
        raise ValueError("Name the folders of one or more runs.")
    rows = []
    for path in FLAGS.results:
        if not os.path.isfile(path):
            raise ValueError(f"--results={path}: no such file.")
        rows += finished_run.read_results(path)
    runs = [finished_run.read_run(path, rows) for path in paths]
    print(comparison.compare_runs(runs, FLAGS.output))
    if FLAGS.output:
        print(f"\nReport: {os.path.join(FLAGS.output, 'report.html')}")
