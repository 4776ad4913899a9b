"""Distils a tiny encoder of handwritten digits in minutes.

    seed-tf quickstart

The command trains a teacher with MoCo v2, then a small student twice: alone
with MoCo v2 (the baseline), and distilled from the teacher with SEED. Both have
the same number of steps, batch and views. Only the evaluation uses labels. The
command prints a table, and writes pictures and one report.html.
"""

from __future__ import annotations

from seed_tf.cli.flags import Call, Command
from seed_tf.cli.quickstart_settings import Settings


def run(call: Call[Settings]) -> None:
    from seed_tf.cli import quickstart_study

    quickstart_study.run(call.settings)


COMMAND = Command(Settings, run)
