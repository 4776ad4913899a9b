"""Turns a finished run into what production uses."""

from absl import flags

from seed_tf.cli import common, export

flags.adopt_module_key_flags(export)

if __name__ == "__main__":
    common.run(export.main)
