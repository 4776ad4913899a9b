"""What a step costs against batch, queue, image size and small patches.

    python -m benchmarks.scaling --output=runs/scaling

One dimension at a time, the others as in `BASE`; the points of a dimension
take turns (`benchmarks.timing`). Images pass through as they are, but for
small patches, whose views (`seed_tf.views.multi_crop`) are made in the step.
Cost follows x**e between two points, with the exponent e of the tables: 1 is
linear, less is a fixed part that counts, more is a resource that runs out.
Peak memory is that of the process, TensorFlow itself included.
"""

import contextlib
import json

from absl import app, flags

from benchmarks import timing
from benchmarks.cases import Case, fit_in_turns, model, random_images

BASE = Case("resnet18", size=64, batch=64)
POINTS = {
    "batch": (16, 32, 64, 128, 256),
    "queue_size": (4096, 16384, 65536, 262144, 1048576),
    "size": (32, 64, 96, 128, 192),
    "patches": (0, 1, 2, 4, 6),
}
TITLES = {
    "batch": "images in a batch",
    "queue_size": "embeddings in the queue",
    "size": "pixels of an image",
    "patches": "pixels of all views of an image",
}

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum(
    "dimension", list(POINTS), list(POINTS), "What to vary."
)
flags.DEFINE_string("student", BASE.student, "A backbone.")
flags.DEFINE_string("teacher", BASE.teacher, "A backbone.")
flags.DEFINE_integer("patch", 32, "Pixels of a small patch's side.", 1)
flags.DEFINE_integer("points", 5, "How many of each dimension's, at most.", 2)
flags.DEFINE_integer("rounds", 6, "Turns of each point.", 1)
flags.DEFINE_integer("steps", 3, "Steps in a turn.", 1)
flags.DEFINE_integer("warm_up", 3, "Steps before the first round.", 1)
flags.DEFINE_string("output", None, "Where to write .json, .md and .png.")
flags.DEFINE_string("worker", None, "Internal: a point, as JSON.")


def work(case, patches=None, patch=None):
    from seed_tf import views

    case, see = Case(*case), None
    if patches is not None:
        see = views.swav(case.size)
    if patches:
        small = views.small_patches(patch)
        see = views.multi_crop(see, small, num_small=patches)
    fit_in_turns(
        model(case, "float32", views=see), random_images(case, batches=2)
    )


def measure(dimension):
    """Rows of a dimension, what its points cost; and which failed, by value."""
    workers = {}
    base = BASE._replace(student=FLAGS.student, teacher=FLAGS.teacher)
    for value in POINTS[dimension][: FLAGS.points]:
        if dimension == "patches":
            spec = {"case": base, "patches": value, "patch": FLAGS.patch}
        else:
            spec = {"case": base._replace(**{dimension: value})}
        workers[value] = lambda spec=spec: timing.Worker(
            "benchmarks.scaling", spec
        )
    with contextlib.ExitStack() as stack:
        started, failed = timing.start(stack, workers, FLAGS.warm_up)
        rounds, peaks = timing.take_turns(started, FLAGS.rounds, FLAGS.steps)
    seconds = timing.medians(rounds)
    images = {v: v if dimension == "batch" else base.batch for v in started}
    return [
        {
            "value": value,
            "x": extent(dimension, value, base.size),
            "seconds": seconds[value],
            "images per second": images[value] / seconds[value],
            "peak_mb": peaks[value],
        }
        for value in started
    ], failed


def extent(dimension, value, size):
    """What a linear cost would be proportional to."""
    if dimension == "size":
        return value**2
    if dimension == "patches":
        return size**2 + value * FLAGS.patch**2
    return value


def table(rows):
    slopes = ["-"]
    slopes += [
        f"{e:.2f}"
        for e in timing.exponents(
            [row["x"] for row in rows], [row["seconds"] for row in rows]
        )
    ]
    return [
        {
            "value": f"{row['value']:,}",
            "ms": f"{1000 * row['seconds']:.0f}",
            "images/s": f"{row['images per second']:.1f}",
            "exponent": slope,
            "peak MB": f"{row['peak_mb']:,.0f}",
        }
        for row, slope in zip(rows, slopes, strict=True)
    ]


def draw(results, path):
    """A log-log plot for each dimension, with a line of slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(results), figsize=(3.4 * len(results), 3.4), squeeze=False
    )
    for axis, (dimension, result) in zip(axes[0], results.items(), strict=True):
        xs = [row["x"] for row in result["rows"]]
        ys = [row["seconds"] for row in result["rows"]]
        axis.loglog(xs, ys, "o-", label="seconds per step")
        slope = [ys[-1] * x / xs[-1] for x in xs]
        axis.loglog(xs, slope, "--", color="grey", label="slope 1")
        axis.set_xlabel(TITLES[dimension])
        axis.set_xticks(xs, [_short(row["value"]) for row in result["rows"]])
        axis.minorticks_off()
        axis.set_title(result["verdict"].replace("; ", "\n"), fontsize=8)
    axes[0][0].set_ylabel("seconds per step")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _short(value):
    for unit, name in ((2**20, "Mi"), (2**10, "Ki")):
        if value >= unit and value % unit == 0:
            return f"{value // unit} {name}"
    return str(value)


def main(_):
    if FLAGS.worker:
        work(**json.loads(FLAGS.worker))
        return
    machine = timing.machine("tensorflow", "keras")
    results = {"machine": machine, "dimensions": {}}
    text = ["; ".join(f"{k}: {v}" for k, v in machine.items())]
    for dimension in FLAGS.dimension:
        rows, failed = measure(dimension)
        columns = ([row[k] for row in rows] for k in ("value", "x", "seconds"))
        sentence = timing.linearity(*columns)
        results["dimensions"][dimension] = {
            "rows": rows,
            "verdict": sentence,
            "failed": failed,
        }
        text.append(
            f"## {dimension}: {sentence}\n\n{timing.markdown(table(rows))}"
        )
        print(f"\n{text[-1]}", flush=True)
        if FLAGS.output:
            timing.write(FLAGS.output, results, "\n\n".join(text) + "\n")
            draw(results["dimensions"], f"{FLAGS.output}.png")


if __name__ == "__main__":
    app.run(main)
