"""Trains an encoder with MoCo v2, as a teacher or a baseline.

    seed-tf pretrain --dataset=folder --data_dir=photos --encoder=resnet50 \\
        --output=runs/teacher
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import seed_tf
from seed_tf.cli.flags import Call, Command
from seed_tf.config import PretrainConfig


def run(call: Call[PretrainConfig]) -> None:
    seed_tf.pretrain(**call.given, log=functools.partial(print, flush=True))


def list_recipes(given: Mapping[str, Any]) -> str | None:
    """Returns the table of recipes for `--recipe=list`, else None."""
    if given.get("recipe") != "list":
        return None
    from seed_tf import recipes

    return recipes.table()


COMMAND = Command(PretrainConfig, run, instead=list_recipes)
