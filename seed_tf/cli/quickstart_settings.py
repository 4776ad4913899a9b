"""The settings of the command quickstart."""

from __future__ import annotations

import dataclasses

from seed_tf.cli.flags import repeated
from seed_tf.config import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    output: str = setting(
        "runs/quickstart", "Folder for the results.", path="written"
    )
    seeds: int = setting(
        3,
        "Students of each kind. Each starts from its own seed.",
        minimum=1,
    )
    teacher_steps: int = setting(600, "Steps of the teacher.", minimum=1)
    student_steps: int = setting(
        300, "Steps of every student, alone or distilled.", minimum=1
    )
    teacher_temperature: tuple[float, ...] = repeated(
        (0.1, 0.05, 0.01),
        "Temperatures of the teacher. The figures compare the first.",
    )
