"""Recommends a temperature and a queue for a teacher and one's own images."""

from absl import flags

from seed_tf.cli import advise, common

flags.adopt_module_key_flags(advise)

if __name__ == "__main__":
    common.run(advise.main)
