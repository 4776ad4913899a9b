"""Computes a teacher's embeddings of fixed views, for students to train from.

    python -m experiments.cache --dataset=folder --data_dir=photos \\
        --teacher=runs/teacher --views_per_image=8 --output=caches/photos
    python -m experiments.distill --dataset=folder --data_dir=photos \\
        --teacher=runs/teacher --view_cache=caches/photos --output=runs/student

It tells size and time, and can be stopped at any moment: the same command goes
on. See docs/view_cache.md.
"""

import functools
import sys

from absl import flags

import seed_tf
from seed_tf import recipes, view_cache
from seed_tf.cli import common, data

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "teacher",
    None,
    "A .keras file, the folder of a run of pretrain, or a published "
    "checkpoint, see docs/checkpoints.md.",
    required=True,
)
flags.DEFINE_integer("views_per_image", 8, "Views fixed of each image.", 1)
flags.DEFINE_enum(
    "teacher_precision",
    None,
    ["float32", "bfloat16"],
    "Arithmetic of the teacher; by default that of a training's, "
    "see docs/performance.md.",
)
flags.DEFINE_string("output", None, "Folder of the cache.", required=True)
common.define_view_flags()
flags.adopt_module_key_flags(common)


def main(_):
    try:
        view_cache.build(
            FLAGS.output,
            FLAGS.dataset,
            teacher=seed_tf.checkpoints.load_encoder(FLAGS.teacher),
            views=recipes.VIEWS[FLAGS.views](FLAGS.image_size, flip=FLAGS.flip),
            views_per_image=FLAGS.views_per_image,
            seed=FLAGS.seed,
            teacher_precision=FLAGS.teacher_precision,
            batch_size=FLAGS.batch_size,
            log=functools.partial(print, flush=True),
            split=FLAGS.split,
            data_dir=FLAGS.data_dir,
            image_size=data.whole_size(),
            download=FLAGS.download,
            corrupt=seed_tf.datasets.CorruptFiles(FLAGS.max_corrupt_fraction),
        )
    except KeyboardInterrupt:
        sys.exit(f"Stopped. The same command goes on:\n  {common.command()}")
    print("The view cache is whole.")
