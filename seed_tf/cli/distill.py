"""Distils a small student from a trained teacher with SEED.

    python -m experiments.distill --dataset=folder --data_dir=photos \\
        --teacher=runs/teacher --student=mobilenet_v3_large \\
        --output=runs/student
"""

import functools

from absl import flags, logging

import seed_tf
from seed_tf import recipes
from seed_tf.cli import common
from seed_tf.view_cache import ViewCache

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "teacher",
    None,
    "A .keras file, the folder of a run of pretrain, or a published "
    "checkpoint, see docs/checkpoints.md.",
)
flags.DEFINE_string("student", "mobilenet_v3_large", "Backbone, by name.")
flags.DEFINE_integer(
    "hidden_dim",
    None,
    "Width of the student's head; the backbone's own by default. A wider one "
    "can help: 2048 for resnet18.",
    1,
)
flags.DEFINE_float("student_temperature", 0.2, "Of the student's softmax.")
flags.DEFINE_float(
    "teacher_temperature",
    0.01,
    "Of the teacher's softmax: lower is sharper. Watch teacher_neighbours.",
)
flags.DEFINE_enum(
    "objective",
    "similarity_distillation",
    list(recipes.OBJECTIVES),
    "What the student learns: SEED's own loss, or an alternative of the "
    "paper's.",
)
flags.DEFINE_boolean(
    "same_view",
    True,
    "Whether teacher and student see one view of an image, or each its own.",
)
flags.DEFINE_string(
    "view_cache",
    None,
    "Folder that experiments.cache has made with this teacher, of these images "
    "and views: the step then does without the teacher. See "
    "docs/view_cache.md.",
)
common.define_training_flags()
common.require("teacher")
flags.adopt_module_key_flags(common)


def build(views, view_cache=None):
    teacher = seed_tf.checkpoints.load_encoder(FLAGS.teacher)
    if view_cache:
        view_cache.check_teacher(teacher)
    if FLAGS.recipe:
        # No error: all else of a recipe may be overridden, too.
        other = recipes.difference(teacher, recipes.get(FLAGS.recipe).teacher)
        if other:
            logging.warning("%s", other)
    model = recipes.build(
        common.recipe(temperature=FLAGS.student_temperature),
        teacher,
        views=views,
        stem=FLAGS.stem,
        seed=FLAGS.seed,
    )
    return model, model.student, teacher


def main(_):
    common.use_recipe()
    cache = FLAGS.view_cache and ViewCache(FLAGS.view_cache)
    common.train(
        functools.partial(build, view_cache=cache),
        num_views=1 if FLAGS.same_view else 2,
        view_cache=cache,
    )
