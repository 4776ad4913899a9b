"""Distils a small student from a trained teacher with SEED.

    seed-tf distill --dataset=folder --data_dir=photos \\
        --teacher=runs/teacher --student=mobilenet_v3_large \\
        --output=runs/student
"""

import functools

import seed_tf
from seed_tf.cli.flags import Call, Command
from seed_tf.cli.pretrain import list_recipes
from seed_tf.config import DistillConfig


def run(call: Call[DistillConfig]) -> None:
    seed_tf.distill(**call.given, log=functools.partial(print, flush=True))


COMMAND = Command(DistillConfig, run, instead=list_recipes)
