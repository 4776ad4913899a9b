"""Trains an encoder with MoCo v2, as a teacher or a baseline.

    seed-tf pretrain --dataset=folder --data_dir=photos --encoder=resnet50 \\
        --output=runs/teacher
"""

from seed_tf.cli.flags import Call, Command
from seed_tf.config import PretrainConfig


def run(call: Call[PretrainConfig]) -> None:
    from seed_tf import recipes
    from seed_tf.cli import common

    settings = common.with_recipe(call)

    def build(views):
        model = recipes.build(
            common.recipe(settings, student=settings.encoder),
            views=views,
            stem=settings.stem,
            seed=settings.seed,
        )
        return model, model.encoder, None

    common.train(call, settings, build, num_views=2)


def list_recipes(given):
    if given.get("recipe") != "list":
        return None
    from seed_tf.cli import common

    return common.list_recipes()


COMMAND = Command(PretrainConfig, run, instead=list_recipes)
