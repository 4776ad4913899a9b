"""Recommends a temperature and a queue for a teacher and one's own images.

    python -m experiments.advise --teacher=runs/teacher --data_dir=photos \\
        --output=advice

The teacher runs once over a few thousand images, in views as in training.
Prints the curve of its temperature against the neighbours in the target; with
--output also writes it as JSON, picture and page.
"""

import dataclasses
import json
import os

from absl import flags

import seed_tf
from seed_tf import recipes
from seed_tf.cli import common
from seed_tf.evaluation import advice
from seed_tf.images import shorter_side
from seed_tf.reporting import figures, pages, tables

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "teacher",
    None,
    "A .keras file, the folder of a run of pretrain, or a published "
    "checkpoint, see docs/checkpoints.md.",
)
flags.mark_flag_as_required("teacher")
flags.DEFINE_integer("images", 4096, "Images to look at, at most.", 64)
flags.DEFINE_float(
    "teacher_temperature",
    advice.PAPER_TEMPERATURE,
    "To be warned of if it does not suit.",
)
flags.DEFINE_integer(
    "queue_size", advice.PAPER_QUEUE, "To be warned of likewise.", 1
)
flags.DEFINE_string(
    "output", None, "Folder for advice.json, advice.png and report.html."
)
common.define_view_flags()
flags.adopt_module_key_flags(common)


def rows(found):
    both = zip(found.measured, found.expected, strict=True)
    return [
        {
            "teacher temperature": f"{measured.temperature:g}",
            f"queue of {found.sample:,}": advice.about(measured.neighbours),
            f"of {found.queue_size:,}, about": advice.about(
                expected.neighbours
            ),
            "mass on itself": f"{expected.self_mass:.0%}",
            "": "one-hot"
            if expected.one_hot
            else "recommended"
            if expected.temperature == found.temperature
            else "",
        }
        for measured, expected in both
    ]


def words(found):
    return [
        f"Recommended: --teacher_temperature={found.temperature:g} "
        f"--queue_size={found.queue_size}",
        *found.reasons,
        f"Of the numbers for a queue of {found.queue_size:,}, think as of "
        f"right within a factor of {found.doubt:.1f}: so far off is what a "
        f"quarter of the {found.sample:,} embeddings foretells of all. Which "
        "temperature trains best, only training tells.",
        *(f"Warning: {warning}" for warning in found.warnings),
    ]


def write(found):
    os.makedirs(FLAGS.output, exist_ok=True)
    with open(os.path.join(FLAGS.output, "advice.json"), "w") as f:
        json.dump(dataclasses.asdict(found), f, indent=2)
    figure = figures.target_curve(found)
    figure.savefig(os.path.join(FLAGS.output, "advice.png"))
    table = rows(found)
    pages.write_page(
        os.path.join(FLAGS.output, "report.html"),
        f"Advice for {FLAGS.teacher}",
        [
            ("Advice", "\n\n".join(words(found))),
            (
                "Neighbours in the target",
                "exp(entropy) of the target, median of images.",
                figure,
                tables.table(table, list(table[0]), "html"),
            ),
        ],
    )


def main(_):
    teacher = seed_tf.checkpoints.load_encoder(FLAGS.teacher)
    views = recipes.VIEWS[FLAGS.views](FLAGS.image_size, flip=FLAGS.flip)
    batches = seed_tf.datasets.load(
        FLAGS.dataset,
        split=FLAGS.split,
        data_dir=FLAGS.data_dir,
        image_size=shorter_side(FLAGS.image_size),
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        views=views,
        drop_remainder=False,
        download=FLAGS.download,
        corrupt=seed_tf.datasets.CorruptFiles(FLAGS.max_corrupt_fraction),
    )
    images = seed_tf.datasets.load(
        FLAGS.dataset,
        split=FLAGS.split,
        data_dir=FLAGS.data_dir,
        batch_size=1,
    ).cardinality()
    batches = batches.take(-(-FLAGS.images // FLAGS.batch_size))
    embeddings = advice.view_embeddings(
        teacher, batches, views, seed=FLAGS.seed
    )[: FLAGS.images]
    found = advice.advise(
        embeddings,
        images=int(images),
        temperature=FLAGS.teacher_temperature,
        queue_size=FLAGS.queue_size,
    )
    table = rows(found)
    print("Neighbours in the target, exp(entropy), median of images\n")
    print(tables.table(table, list(table[0])))
    print("", *words(found), sep="\n")
    if FLAGS.output:
        write(found)
        print(f"\nReport: {os.path.join(FLAGS.output, 'report.html')}")
