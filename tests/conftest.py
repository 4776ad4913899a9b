"""Quiet TensorFlow, and absl's temporary folders under pytest."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags

flags.FLAGS.mark_as_parsed()
