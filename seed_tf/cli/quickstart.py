"""Distils a tiny encoder of handwritten digits in minutes.

    seed-tf quickstart

The command trains a teacher with MoCo v2, then a small student twice: alone
with MoCo v2 (the baseline), and distilled from the teacher with SEED. Both have
the same number of steps, batch and views. Only the evaluation uses labels. The
command prints a table, and writes pictures and one report.html.
"""

from __future__ import annotations

import dataclasses

from seed_tf.cli.flags import Call, Command, repeated
from seed_tf.config import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    output: str = setting("runs/quickstart", "Folder for the results.")
    seeds: int = setting(
        3,
        "Students of each kind. Each starts from its own seed.",
        minimum=1,
    )
    teacher_steps: int = setting(1000, "Steps of the teacher.", minimum=1)
    student_steps: int = setting(
        300, "Steps of every student, alone or distilled.", minimum=1
    )
    teacher_temperature: tuple[float, ...] = repeated(
        (0.1, 0.05, 0.01),
        "Temperatures of the teacher. The figures compare the first.",
    )


def run(call: Call[Settings]) -> None:
    from seed_tf.cli import quickstart_study

    quickstart_study.run(call.settings)


COMMAND = Command(Settings, run)
