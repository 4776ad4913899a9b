"""What a teacher is worth to a small network, on CIFAR-10.

    python -m benchmarks.cifar10 --data_dir=cifar10 --output=runs/cifar10

`--data_dir` holds `train/` and `test/`, each with a folder per class. A
ResNet-18 is trained by MoCo v2, without labels. Three students are then trained
for the same number of steps alone (MoCo v2) and with that teacher (SEED), and
one of them, for fewer steps, with other temperatures, queues and objectives.
All are judged by 10-NN and a linear probe on pooled features of test images.

Each training is a run of `experiments.pretrain` or `experiments.distill`, and
goes on where it was when the command is given again. At the end: a table
(results.md, results.json), pictures (results.png, ablations.png), and the
pages of `experiments.evaluate` on all encoders and of `experiments.report` on
all runs but the ablations beside them.
"""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys

from absl import app, flags

from seed_tf.reporting import (
    figures,
    tables,
)

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Holds train/ and test/.", required=True)
flags.DEFINE_string("output", None, "Folder of all runs.", required=True)
flags.DEFINE_integer("teacher_epochs", 25, "Of the teacher.", 1)
flags.DEFINE_integer("epochs", 4, "Of each student.", 1)
flags.DEFINE_integer("ablation_epochs", 1, "Of each row of the ablations.", 1)

SIZE = 32
STUDENTS = ("mobilenet_v3_large", "resnet18", "efficientnet_b0")
ABLATED = STUDENTS[0]
SHARED = {
    "image_size": SIZE,
    "batch_size": 256,
    "queue_size": 4096,
    "warmup_epochs": 0.5,
    "learning_rate": 0.06,
    "checkpoint_minutes": 2,
}
# What MoCo's authors chose for CIFAR-10: a key encoder that follows over 100
# steps instead of 1,000, of which there are few here, and a sharper softmax.
ALONE = {"momentum": 0.99, "temperature": 0.1}
# What `experiments.advise` recommends for the teacher.
DISTILLED = {"teacher_temperature": 0.07}
ABLATIONS = {
    "teacher temperature 0.07, queue 4,096": {},
    "teacher temperature 0.1": {"teacher_temperature": 0.1},
    "teacher temperature 0.01": {"teacher_temperature": 0.01},
    "teacher temperature 0.0001": {"teacher_temperature": 1e-4},
    "queue 256": {"queue_size": 256},
    "queue 65,536": {"queue_size": 65536},
    "objective l2": {"objective": "l2"},
    "objective binary contrastive": {"objective": "binary_contrastive"},
    "objective k-means": {"objective": "kmeans_clustering"},
    "objective online clustering": {"objective": "online_clustering"},
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: str, of its folder.
        label: str, of its row.
        student: str, the registry's name.
        launcher: "pretrain", "distill" or None, untrained.
        flags: dict.
    """

    name: str
    label: str
    student: str
    launcher: str | None
    flags: dict = dataclasses.field(default_factory=dict)


def runs():
    """All runs, the teacher first."""
    alone = SHARED | ALONE | {"epochs": FLAGS.epochs}
    distilled = SHARED | DISTILLED | {"epochs": FLAGS.epochs}
    long = alone | {"epochs": FLAGS.teacher_epochs, "knn_every": 5}
    yield Run("teacher", "teacher", "resnet18", "pretrain", long)
    for student in STUDENTS:
        yield Run(f"{student}_untrained", "untrained", student, None)
        yield Run(
            f"{student}_moco", "MoCo v2 alone", student, "pretrain", alone
        )
        yield Run(f"{student}_seed", "SEED", student, "distill", distilled)
    distilled = distilled | {"epochs": FLAGS.ablation_epochs}
    for label, changed in ABLATIONS.items():
        name = label.replace(" ", "_").replace(",", "")
        yield Run(
            f"ablation_{name}",
            f"SEED, {label}",
            ABLATED,
            "distill",
            distilled | changed,
        )


def folder(name):
    return os.path.join(FLAGS.output, name)


def read(path):
    try:
        with open(path) as f:
            return json.load(f)
    except OSError:
        return {}


def minutes(run):
    """Of training, None for what is not trained."""
    try:
        with open(os.path.join(folder(run.name), "metrics.jsonl")) as f:
            *_, last = f
    except FileNotFoundError:
        return None
    return json.loads(last)["seconds"] / 60


def command(run):
    given = run.flags | {
        "data_dir": FLAGS.data_dir,
        "output": folder(run.name),
    }
    if run.launcher == "pretrain":
        given["encoder"] = run.student
    else:
        given |= {"student": run.student, "teacher": folder("teacher")}
    return [
        *("-m", f"experiments.{run.launcher}"),
        *(f"--{name}={value}" for name, value in given.items()),
    ]


def train(run):
    """Trains, or goes on where it was."""
    state = read(os.path.join(folder(run.name), "summary.json"))
    if run.launcher is None or state.get("ended") == "finished":
        return
    execute(*command(run))


def execute(*arguments):
    print("\n$", shlex.join(["python", *arguments]), flush=True)
    process = subprocess.Popen([sys.executable, *arguments])
    # A run saves when it is told to stop, and this waits for it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: process.send_signal(n))
    code = process.wait()
    if code:
        sys.exit(code)


def encoder(run):
    """What `experiments.evaluate` calls the encoder of a run."""
    return folder(run.name) if run.launcher else f"untrained:{run.student}"


def evaluate(every):
    """Runs `experiments.evaluate` on all of them; rows by encoder."""
    results = folder("results")
    arguments = [
        *("-m", "experiments.evaluate", f"--data_dir={FLAGS.data_dir}"),
        *(f"--image_size={SIZE}", "--batch_size=256", f"--output={results}"),
        *(f"--encoder={encoder(run)}" for run in every),
    ]
    execute(*arguments)
    rows = read(os.path.join(results, "results.json"))
    return {row["encoder"]: row for row in rows}


def summarise(every, scores):
    """One row for each run: who, trained how, how good."""
    rows = []
    for run in every:
        found = scores[encoder(run)]
        rows.append(
            {
                "network": run.student,
                "trained": run.label,
                "10-NN": found["10-NN, features"],
                "linear probe": found["linear probe"],
                "minutes": minutes(run),
            }
        )
    return rows


def _is_ablation(label):
    return label.startswith("SEED, ")


def conclude(every):
    """Evaluates all runs; writes the table and the pictures."""
    rows = summarise(every, evaluate(every))
    shown = [
        {k: f"{v:.0f}" if k == "minutes" and v else v for k, v in row.items()}
        for row in rows
    ]
    total = sum(row["minutes"] or 0 for row in rows)
    sentence = f"Trained for {total:.0f} minutes in all."
    columns = list(rows[0])
    print(f"\n{tables.table(shown, columns)}\n\n{sentence}")
    with open(os.path.join(FLAGS.output, "results.md"), "w") as f:
        table = tables.table(shown, columns, fmt="markdown")
        f.write(f"{table}\n\n{sentence}\n")
    with open(os.path.join(FLAGS.output, "results.json"), "w") as f:
        json.dump(rows, f, indent=2)
    for name, ablations in (("results", False), ("ablations", True)):
        chosen = [x for x in rows if _is_ablation(x["trained"]) == ablations]
        if chosen:
            path = os.path.join(FLAGS.output, f"{name}.png")
            _bars(chosen, network=not ablations).savefig(path)


def _bars(rows, network):
    """A figure of them, named with or without their network."""
    measures = ("10-NN", "linear probe")
    return figures.bars(
        {
            f"{row['network']}, {row['trained']}"
            if network
            else row["trained"].removeprefix("SEED, "): {
                measure: [row[measure]] for measure in measures
            }
            for row in rows
        }
    )


def main(_):
    every = list(runs())
    for run in every:
        train(run)
    conclude(every)
    compared = [
        folder(run.name)
        for run in every
        if run.launcher and not _is_ablation(run.label)
    ]
    execute(
        *("-m", "experiments.report", *compared),
        f"--results={folder('results')}/results.json",
        f"--output={folder('comparison')}",
    )


if __name__ == "__main__":
    app.run(main)
