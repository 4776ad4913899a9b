"""Distils a small student from a trained teacher with SEED.

    seed-tf distill --dataset=folder --data_dir=photos \\
        --teacher=runs/teacher --student=mobilenet_v3_large \\
        --output=runs/student
"""

from absl import logging

import seed_tf
from seed_tf.cli.flags import Call, Command
from seed_tf.cli.pretrain import list_recipes
from seed_tf.config import DistillConfig


def run(call: Call[DistillConfig]) -> None:
    from seed_tf import recipes
    from seed_tf.cli import common
    from seed_tf.view_cache import ViewCache

    settings = common.with_recipe(call)
    cache = ViewCache(settings.view_cache) if settings.view_cache else None

    def build(views):
        teacher = seed_tf.checkpoints.load_encoder(settings.teacher)
        if cache:
            cache.check_teacher(teacher)
        if settings.recipe:
            # No error: all else of a recipe may be overridden, too.
            other = recipes.difference(
                teacher, recipes.get(settings.recipe).teacher
            )
            if other:
                logging.warning("%s", other)
        model = recipes.build(
            common.recipe(settings, temperature=settings.student_temperature),
            teacher,
            views=views,
            stem=settings.stem,
            seed=settings.seed,
        )
        return model, model.student, teacher

    common.train(
        call,
        settings,
        build,
        num_views=1 if settings.same_view else 2,
        view_cache=cache,
    )


COMMAND = Command(DistillConfig, run, instead=list_recipes)
