"""Tells how good encoders are, by their features and few or many labels."""

from absl import flags

from seed_tf.cli import common, evaluate

flags.adopt_module_key_flags(evaluate)

if __name__ == "__main__":
    common.run(evaluate.main)
