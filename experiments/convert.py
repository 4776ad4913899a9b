"""Turns published checkpoints into .keras files, and back into PyTorch's."""

from absl import flags

from seed_tf.cli import common, convert

flags.adopt_module_key_flags(convert)

if __name__ == "__main__":
    common.run(convert.main)
