"""Computes a teacher's embeddings of fixed views, to train students from."""

from absl import flags

from seed_tf.cli import cache, common

flags.adopt_module_key_flags(cache)

if __name__ == "__main__":
    common.run(cache.main)
