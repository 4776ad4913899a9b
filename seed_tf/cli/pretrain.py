"""Trains an encoder with MoCo v2: a teacher of one's own, or the baseline.

    python -m experiments.pretrain --dataset=folder --data_dir=photos \\
        --encoder=resnet50 --output=runs/teacher
"""

from absl import flags

from seed_tf import recipes
from seed_tf.cli import common

FLAGS = flags.FLAGS
flags.DEFINE_string("encoder", "resnet50", "Backbone to train, by name.")
flags.DEFINE_integer("embedding_dim", 128, "Width of an embedding.", 1)
flags.DEFINE_float("temperature", 0.2, "Of the contrastive softmax.")
flags.DEFINE_float("momentum", 0.999, "Of the momentum encoder's weights.")
common.define_training_flags()
flags.adopt_module_key_flags(common)


def build(views):
    model = recipes.build(
        common.recipe(student=FLAGS.encoder),
        views=views,
        stem=FLAGS.stem,
        seed=FLAGS.seed,
    )
    return model, model.encoder, None


def main(_):
    common.use_recipe()
    common.train(build, num_views=2)
