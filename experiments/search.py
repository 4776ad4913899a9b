"""Searches a folder of images by image."""

from absl import flags

from seed_tf.cli import common, search

flags.adopt_module_key_flags(search)

if __name__ == "__main__":
    common.run(search.main)
