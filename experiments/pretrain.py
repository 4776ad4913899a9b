"""Trains an encoder with MoCo v2: a teacher of one's own, or the baseline.

    python -m experiments.pretrain --dataset=folder --data_dir=photos \\
        --encoder=resnet50 --output=runs/teacher
"""

from absl import flags

import seed_tf
from experiments import common

FLAGS = flags.FLAGS
flags.DEFINE_string("encoder", "resnet50", "Backbone to train, by name.")
flags.DEFINE_integer("embedding_dim", 128, "Width of an embedding.", 1)
flags.DEFINE_float("temperature", 0.2, "Of the contrastive softmax.")
flags.DEFINE_float("momentum", 0.999, "Of the momentum encoder's weights.")
common.define_training_flags()
flags.adopt_module_key_flags(common)


def build(views):
    encoder = seed_tf.Encoder(
        seed_tf.backbone(FLAGS.encoder, stem=FLAGS.stem),
        embedding_dim=FLAGS.embedding_dim,
    )
    model = seed_tf.MoCo(
        encoder,
        views=views,
        queue_size=FLAGS.queue_size,
        temperature=FLAGS.temperature,
        momentum=FLAGS.momentum,
        seed=FLAGS.seed,
    )
    return model, encoder, None


def main(_):
    common.train(build, num_views=2)


if __name__ == "__main__":
    common.run(main)
