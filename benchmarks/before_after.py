"""A training step of this checkout against that of another one.

    git worktree add ../before <commit>
    python -m benchmarks.before_after --before=../before

Both sides are `SEED.fit` of the cases of `benchmarks.step`, each in a process
of its own checkout, in turns within one run. The table gives the time of the
other checkout divided by the time of this one: above 1, this one is faster.
"""

import contextlib
import json
import os
import pathlib

from absl import app, flags

from benchmarks import step, timing
from benchmarks.cases import CASES

FLAGS = flags.FLAGS
flags.DEFINE_string("before", None, "Folder of the other checkout.")


def compare(case, precision, before):
    """A table row: medians of both, and their ratio within the rounds."""
    here = pathlib.Path(__file__).resolve().parents[1]
    workers = {
        name: lambda folder=folder: timing.Worker(
            "benchmarks.step",
            {"case": case, "precision": precision},
            {"PYTHONPATH": str(folder)},
            folder=folder,
        )
        for name, folder in {"before": before, "now": here}.items()
    }
    with contextlib.ExitStack() as stack:
        started, failed = timing.start(stack, workers, FLAGS.warm_up)
        if failed:
            raise timing.ContenderError("; ".join(failed.values()))
        rounds, _ = timing.take_turns(started, FLAGS.rounds, FLAGS.steps)
    seconds = timing.medians(rounds)
    middle, low, high = timing.ratios(rounds, "before")["now"]
    return {
        "step": step.describe(case),
        "student": precision,
        "before, ms": f"{1000 * seconds['before']:.0f}",
        "now, ms": f"{1000 * seconds['now']:.0f}",
        "before / now": f"{middle:.3f} ({low:.3f}-{high:.3f})",
    }


def main(_):
    if FLAGS.before is None or not os.path.isdir(FLAGS.before):
        raise app.UsageError(
            "--before must be the folder of another checkout. "
            f"Received: {FLAGS.before!r}."
        )
    before = pathlib.Path(FLAGS.before).resolve()
    machine = timing.machine("tensorflow", "keras")
    print("; ".join(f"{k}: {v}" for k, v in machine.items()), flush=True)
    rows = []
    for name in FLAGS.case:
        for precision in FLAGS.precision:
            rows.append(compare(CASES[name], precision, before))
            print(json.dumps(rows[-1]), flush=True)
    text = timing.markdown(rows)
    print(f"\n{text}")
    if FLAGS.output:
        timing.write(FLAGS.output, {"machine": machine, "rows": rows}, text)


if __name__ == "__main__":
    app.run(main)
