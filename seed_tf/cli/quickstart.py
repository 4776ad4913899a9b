"""Distils a tiny encoder of handwritten digits in minutes.

    seed-tf quickstart

Trains a teacher with MoCo v2, then the same small student twice for the same
number of steps, batch and views: alone with MoCo v2 (the baseline), and
distilled from the teacher with SEED. No label is used before the evaluation.
Prints a table, and writes pictures and one self-contained report.html.
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
        "Students trained of each kind, each from its own start.",
        minimum=1,
    )
    teacher_steps: int = setting(1000, "Steps of the teacher.", minimum=1)
    student_steps: int = setting(
        300, "Steps of every student, alone or distilled.", minimum=1
    )
    teacher_temperature: tuple[float, ...] = repeated(
        (0.1, 0.05, 0.01),
        "Temperatures of the teacher to distil with. The first is the one "
        "compared in the figures.",
    )


def run(call: Call[Settings]) -> None:
    from seed_tf.cli import quickstart_study

    quickstart_study.run(call.settings)


COMMAND = Command(Settings, run)
