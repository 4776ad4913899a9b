"""A student's step from a view cache, against the live teacher.

    python -m benchmarks.view_cache --output=runs/view_cache
    python -m benchmarks.view_cache --accuracy --output=runs/accuracy \\
        --common="--data_dir=photos --teacher=runs/teacher --image_size=32" \\
        --train="--student=resnet18 --epochs=100 --knn_every=100"

The first times `SEED.fit` on the cases of `benchmarks.step`, with random
weights, images and embeddings from memory, both contenders in turns. The second
trains students for the same number of steps from the live teacher and from V
views of each image, by the launchers, and compares them by k-NN accuracy.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys

import numpy as np
from absl import app, flags

from benchmarks import timing
from benchmarks.cases import CASES, Case, fit_in_turns, model, random_images

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("case", list(CASES), list(CASES), "What to time.")
flags.DEFINE_string("student", None, "In place of the cases' own.")
flags.DEFINE_integer("size", None, "Pixels, in place of the cases' own.", 1)
flags.DEFINE_integer("batch", None, "In place of the cases' own.", 1)
flags.DEFINE_string("teacher", "resnet50", "A backbone.")
flags.DEFINE_integer("queue_size", 65536, "K.", 1)
flags.DEFINE_bool("view", False, "Make MoCo v2's views within the step.")
flags.DEFINE_integer("rounds", 9, "Turns of each contender.", 1)
flags.DEFINE_integer("steps", 4, "Steps in a turn.", 1)
flags.DEFINE_integer("warm_up", 4, "Steps before the first round.", 1)
flags.DEFINE_bool("accuracy", False, "Train students instead.")
flags.DEFINE_list("views_per_image", ["1", "4", "16"], "V, for --accuracy.")
flags.DEFINE_list("seeds", ["0"], "Of students, for --accuracy.")
flags.DEFINE_string(
    "common", "", "Flags of both experiments.cache and experiments.distill."
)
flags.DEFINE_string("train", "", "Flags of experiments.distill.")
flags.DEFINE_string("output", None, "A stem of .json and .md; runs lie beside.")
flags.DEFINE_string("worker", None, "Internal: a contender, as JSON.")

LIVE, CACHED = "live teacher", "view cache"


def work(case, cached, view):
    import seed_tf

    case = Case(*case)
    layers = seed_tf.views.moco_v2(case.size).layers if view else []
    seed = model(case, views=seed_tf.views.View(layers))
    images = random_images(case)
    if not cached:
        return fit_in_turns(seed, images)
    rng = np.random.default_rng(1)
    count, batch, dim = *images.shape[:2], seed.queue.dim
    with_keys = {
        "images": images,
        "keys": rng.integers(0, 2**32, (count, batch, 2), np.uint32),
        "embeddings": rng.normal(size=(count, batch, 1, dim)).astype("f2"),
    }
    return fit_in_turns(seed, with_keys)


def time_case(case):
    """Rows of a table, and all times by round."""
    spec = {"case": case, "view": FLAGS.view}
    workers = {}
    try:
        for name in (LIVE, CACHED):
            workers[name] = timing.Worker(
                "benchmarks.view_cache",
                {**spec, "cached": name == CACHED},
                timing.TUNED_MALLOC,
            )
            workers[name].run(FLAGS.warm_up)
        rounds, peaks = timing.take_turns(workers, FLAGS.rounds, FLAGS.steps)
    finally:
        for worker in workers.values():
            worker.close()
    seconds, ratios = timing.medians(rounds), timing.ratios(rounds, LIVE)
    rows = [
        {
            "step": name,
            "ms": f"{1000 * seconds[name]:.0f}",
            "images/s": f"{case.batch / seconds[name]:.1f}",
            "times as fast (quartiles)": "{:.2f} ({:.2f}-{:.2f})".format(
                *ratios[name]
            ),
            "peak memory": f"{peaks[name]:.0f} MB",
        }
        for name in workers
    ]
    return rows, rounds


def launch(name, *arguments):
    """Runs a launcher; ends the process if it fails."""
    command = [sys.executable, "-m", f"experiments.{name}", *arguments]
    print(f"\n{shlex.join(command[1:])}", flush=True)
    subprocess.run(command, check=True)


def train(folder, name, seed, *arguments):
    """Trains a student; returns the last line of its metrics."""
    output = os.path.join(folder, f"{name.replace(' ', '-')}-{seed}")
    launch(
        "distill",
        *arguments,
        *shlex.split(FLAGS.common),
        *shlex.split(FLAGS.train),
        f"--seed={seed}",
        f"--output={output}",
    )
    with open(os.path.join(output, "metrics.jsonl")) as file:
        return json.loads(file.readlines()[-1])


def accuracies(folder):
    """Rows of a table, and the last metrics of every student."""
    sources = {"live teacher": []}
    for count in FLAGS.views_per_image:
        path = os.path.join(folder, f"cache-{count}")
        launch(
            "cache",
            *shlex.split(FLAGS.common),
            f"--views_per_image={count}",
            f"--output={path}",
        )
        sources[f"V = {count}"] = [f"--view_cache={path}"]
    lines = {
        name: [train(folder, name, seed, *flags) for seed in FLAGS.seeds]
        for name, flags in sources.items()
    }
    rows = []
    for name, last in lines.items():
        row = {"targets": name, "steps": last[0]["step"]}
        for measure in ("knn", "agreement", "gap"):
            values = [line[measure] for line in last if measure in line]
            if values:
                row[measure] = f"{statistics.mean(values):.4f}" + (
                    f" ({min(values):.4f}-{max(values):.4f})"
                    if len(values) > 1
                    else ""
                )
        rows.append(row)
    return rows, lines


def main(_):
    if FLAGS.worker:
        work(**json.loads(FLAGS.worker))
        return
    machine = timing.machine("tensorflow", "keras")
    results, text = {"machine": machine}, []
    text.append("; ".join(f"{k}: {v}" for k, v in machine.items()))

    def say(title, rows):
        text.append(f"## {title}\n\n{timing.markdown(rows)}")
        print(f"\n{text[-1]}", flush=True)

    if FLAGS.accuracy:
        if not FLAGS.output:
            raise app.UsageError("--accuracy needs --output, for its runs.")
        rows, results["accuracy"] = accuracies(f"{FLAGS.output}-runs")
        say(f"{FLAGS.common} {FLAGS.train}".strip(), rows)
    else:
        names = ("student", "size", "batch", "teacher", "queue_size")
        changes = {x: FLAGS[x].value for x in names if FLAGS[x].value}
        for name in FLAGS.case:
            case = CASES[name]._replace(**changes)
            rows, results[name] = time_case(case)
            teacher, student = case.teacher, case.student
            say(
                f"{name}: {student}, {case.size} px, batch {case.batch}; "
                f"teacher {teacher}, K {case.queue_size:,}",
                rows,
            )
    if FLAGS.output:
        timing.write(FLAGS.output, results, "\n\n".join(text) + "\n")


if __name__ == "__main__":
    app.run(main)
