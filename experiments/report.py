"""Lays runs side by side: differences, curves, accuracy and cost."""

from absl import flags

from seed_tf.cli import common, report

flags.adopt_module_key_flags(report)

if __name__ == "__main__":
    common.run(report.main)
