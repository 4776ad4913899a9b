"""Distils a small student from a trained teacher with SEED.

    python -m experiments.distill --dataset=folder --data_dir=photos \\
        --teacher=runs/teacher --student=mobilenet_v3_large \\
        --output=runs/student
"""

import keras
from absl import flags

import seed_tf
from experiments import common

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "teacher",
    None,
    "A .keras file, the folder of a run of pretrain, or a published "
    "checkpoint, see docs/checkpoints.md.",
)
flags.mark_flag_as_required("teacher")
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
common.define_training_flags()
flags.adopt_module_key_flags(common)


def build(views):
    teacher = seed_tf.checkpoints.load_teacher(FLAGS.teacher)
    images = keras.Input((FLAGS.image_size, FLAGS.image_size, 3))
    student = seed_tf.Encoder(
        seed_tf.backbone(FLAGS.student, stem=FLAGS.stem),
        embedding_dim=teacher(images).shape[-1],
        hidden_dim=FLAGS.hidden_dim,
    )
    model = seed_tf.SEED(
        student,
        teacher,
        views=views,
        queue_size=FLAGS.queue_size,
        student_temperature=FLAGS.student_temperature,
        teacher_temperature=FLAGS.teacher_temperature,
        seed=FLAGS.seed,
    )
    return model, student, teacher


def main(_):
    common.train(build)


if __name__ == "__main__":
    common.run(main)
