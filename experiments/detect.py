"""Tells how good encoders are as the backbones of object detectors."""

from absl import flags

from seed_tf.cli import common, detect

flags.adopt_module_key_flags(detect)

if __name__ == "__main__":
    common.run(detect.main)
