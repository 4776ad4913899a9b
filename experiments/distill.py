"""Distils a small student from a trained teacher with SEED."""

from absl import flags

from seed_tf.cli import common, distill

flags.adopt_module_key_flags(distill)

if __name__ == "__main__":
    common.run(distill.main)
