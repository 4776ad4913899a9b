"""Distils a very small encoder on handwritten digits, and shows the effect."""

from absl import flags

from seed_tf.cli import common, quickstart

flags.adopt_module_key_flags(quickstart)

if __name__ == "__main__":
    common.run(quickstart.main)
