"""Stores fixed views and a teacher's embeddings to train from.

    seed-tf cache --dataset=folder --data_dir=photos --teacher=runs/teacher \\
        --views_per_image=8 --output=caches/photos
    seed-tf distill --dataset=folder --data_dir=photos \\
        --teacher=runs/teacher --view_cache=caches/photos --output=runs/student

The command first prints size and time. You can stop it at any time and repeat
it to go on. See docs/view_cache.md.
"""

from __future__ import annotations

import dataclasses
import functools

import seed_tf
from seed_tf.cli.flags import Call, Command
from seed_tf.config import TEACHER_HELP, ViewsConfig, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ViewsConfig):
    teacher: str = setting(None, TEACHER_HELP, required=True, path="read")
    views_per_image: int = setting(8, "Fixed views of each image.", minimum=1)
    teacher_precision: str | None = setting(
        None,
        "Arithmetic of the teacher. The default is that of training, see "
        "docs/performance.md.",
        choices=("float32", "bfloat16"),
    )
    output: str = setting(
        None, "Folder of the cache.", required=True, path="written"
    )


def run(call: Call[Settings]) -> None:
    from seed_tf import recipes, view_cache
    from seed_tf.images import shorter_side
    from seed_tf.teachers import load_encoder

    settings = call.settings
    view_cache.build(
        settings.output,
        settings.dataset,
        teacher=load_encoder(settings.teacher, image_size=settings.image_size),
        views=recipes.build_views(settings),
        views_per_image=settings.views_per_image,
        seed=settings.seed,
        teacher_precision=settings.teacher_precision,
        batch_size=settings.batch_size,
        log=functools.partial(print, flush=True),
        split=settings.split,
        data_dir=settings.data_dir,
        image_size=shorter_side(settings.image_size),
        download=settings.download,
        corrupt=seed_tf.datasets.CorruptFiles(settings.max_corrupt_fraction),
    )
    print("The view cache is complete.")


COMMAND = Command(Settings, run, resumable=True)
