"""What a teacher in bfloat16 does to the student's targets.

    python -m benchmarks.teacher_precision --teacher=runs/teacher \\
        --data_dir=photos --image_size=32

The same views of images go to the teacher's copy in float32 and to the one in
bfloat16 (`FoldedTeacher`); the last of the images are queries, the
others a queue. Printed are the error of cosines, how often the nearest point of
the queue is the same, and for each temperature the KL divergence of the target
in bfloat16 from that in float32; beside it, to judge it by, the divergence of
the target of the same crop, flipped and coloured anew.
"""

import numpy as np
from absl import app, flags

from benchmarks import timing
from seed_tf import checkpoints, config, datasets, recipes
from seed_tf.acceleration.folded_teacher import FoldedTeacher
from seed_tf.evaluation.advice import view_embeddings

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "teacher", None, "As of experiments.distill.", required=True
)
flags.DEFINE_string("data_dir", None, "Folder of images.", required=True)
flags.DEFINE_string("views", "moco_v2", "As of experiments.distill.")
flags.DEFINE_integer("image_size", 224, "Pixels of a view.", 1)
flags.DEFINE_integer("batch_size", 64, "Images at a time.", 1)
flags.DEFINE_integer("queue_size", 8192, "Images of the queue, at most.", 1)
flags.DEFINE_integer("queries", 1024, "Other images, to compare.", 1)
flags.DEFINE_multi_float(
    "teacher_temperature", [1e-4, 0.01, 0.02, 0.05, 0.1], "To compare at."
)


def embeddings(teacher, dtype, seed=0):
    """Of views of all images, float64 `[N, D]`."""
    views = recipes.build_views(
        config.ViewsConfig(views=FLAGS.views, image_size=FLAGS.image_size)
    )
    count = FLAGS.queue_size + FLAGS.queries
    options = {"data_dir": FLAGS.data_dir, "views": views, "seed": 0}
    options["batch_size"] = FLAGS.batch_size
    batches = datasets.load("folder", **options)
    batches = batches.take(-(-count // FLAGS.batch_size))
    frozen = FoldedTeacher(teacher, dtype)
    found = view_embeddings(
        lambda images, training: frozen(images), batches, views, seed=seed
    )
    return found[:count].astype(np.float64), frozen.dtype


def similarities(embedded):
    """Of queries to the queue, and to themselves, `[Q, 1 + K]`."""
    queue, queries = np.split(embedded, [len(embedded) - FLAGS.queries])
    return np.hstack([np.ones((len(queries), 1)), queries @ queue.T])


def log_softmax(logits):
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def divergence(expected, actual, temperature):
    """KL of targets from those expected, by similarities; nats `[Q]`."""
    expected, actual = (
        log_softmax(x / temperature) for x in (expected, actual)
    )
    return (np.exp(expected) * (expected - actual)).sum(1)


def main(_):
    teacher = checkpoints.load_encoder(FLAGS.teacher)
    exact, _ = embeddings(teacher, "float32")
    short, dtype = embeddings(teacher, "bfloat16")
    # The same crops, but all else anew; of the queries alone.
    other, _ = embeddings(teacher, "float32", seed=1)
    other[: -FLAGS.queries] = exact[: -FLAGS.queries]
    if dtype != "bfloat16":
        raise SystemExit("This teacher is left in its own precision.")
    exact, short, other = map(similarities, (exact, short, other))
    error = np.abs(short - exact)[:, 1:]
    same = (short[:, 1:].argmax(1) == exact[:, 1:].argmax(1)).mean()
    print(
        f"{len(exact):,} queries, queue of {exact.shape[1] - 1:,}. Cosines "
        f"differ by {error.mean():.1e} in the mean, {error.max():.1e} at most; "
        f"the nearest point is the same for {100 * same:.1f} %.\n"
    )
    rows = []
    for temperature in FLAGS.teacher_temperature:
        target = log_softmax(exact / temperature)
        entropy = -(np.exp(target) * target).sum(1)
        row = {
            "teacher temperature": f"{temperature:g}",
            "entropy, nats": f"{entropy.mean():.3f}",
        }
        for name, actual in (("bfloat16", short), ("another colouring", other)):
            found = divergence(exact, actual, temperature)
            row[f"KL of {name}"] = f"{found.mean():.2g}"
        rows.append(row)
    print(timing.markdown(rows))


if __name__ == "__main__":
    app.run(main)
