"""absl's temporary folders under pytest."""

from absl import flags

flags.FLAGS.mark_as_parsed()
