"""Trains an encoder with MoCo v2: a teacher of one's own, or the baseline."""

from absl import flags

from seed_tf.cli import common, pretrain

flags.adopt_module_key_flags(pretrain)

if __name__ == "__main__":
    common.run(pretrain.main)
