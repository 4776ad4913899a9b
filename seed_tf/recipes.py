"""Every experiment of the paper by name, as configurations of runs.

    seed-tf distill --recipe=list
    seed-tf distill --recipe=seed_resnet18_from_resnet50_mocov2 \\
        --teacher=moco_v2_200ep_pretrain.pth.tar --data_dir=imagenet \\
        --output=runs/resnet18

All recipes share the defaults of `DistillConfig`, `PretrainConfig` and
`training.SGD`, and the evaluations in `ELSEWHERE`. To change a setting:

    config = dataclasses.replace(get("mocov2_resnet18").config, epochs=800)

Numbers are the paper's; None where no source confirms a number. No recipe was
run here on ImageNet.

Only `build` and `build_views` import TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any, TypeVar

from seed_tf.config import (
    DistillConfig,
    PretrainConfig,
    RunConfig,
    ViewsConfig,
)

if TYPE_CHECKING:
    import keras

    from seed_tf.moco import MoCo
    from seed_tf.seed import SEED
    from seed_tf.views import MultiCrop, View

Settings = TypeVar("Settings", bound=RunConfig)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network to distil from.

    Attributes:
        architecture: a name of `seed_tf.backbone`.
        method: the method of training, a source of `checkpoints.load_encoder`;
            "torchvision" uses labels.
        checkpoint: the published file.
        top1: linear probe on ImageNet in the paper, in percent, or None.
    """

    architecture: str
    method: str
    checkpoint: str
    top1: float | None = None


@dataclasses.dataclass(frozen=True)
class Paper:
    """The paper's results on ImageNet in percent, None where unconfirmed.

    Attributes:
        top1: linear probe; a pair where sources quote two numbers.
        top5: linear probe.
        one_percent: top-1 with 1 % of the labels.
        ten_percent: top-1 with 10 % of the labels.
    """

    top1: float | tuple[float, float] | None = None
    top5: float | None = None
    one_percent: float | None = None
    ten_percent: float | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An experiment of the paper.

    Attributes:
        config: settings; `PretrainConfig` for MoCo v2 alone.
        teacher: the paper's teacher, or None for MoCo v2 alone.
        paper: the paper's results.
        note: a remark for `table`.
    """

    config: DistillConfig | PretrainConfig
    teacher: Teacher | None = None
    paper: Paper = Paper()
    note: str = ""


def configure(
    kind: type[Settings], config: Settings | None = None, **settings: Any
) -> Settings:
    """Makes the configuration of a run.

    Args:
        kind: `DistillConfig` or `PretrainConfig`.
        config: configuration to start from. The default is the recipe in
            `settings`, else the defaults of `kind`.
        **settings: settings that replace those of `config`.

    Raises:
        ValueError: if a setting is out of range, or if the recipe is unknown
            or of another command.
        TypeError: if a setting is unknown.
    """
    name = settings.get("recipe")
    if config is None and name is not None:
        config = get(name).config
    config = config or kind()
    if not isinstance(config, kind):
        raise ValueError(
            f"Expected settings of {kind.command}. Received: "
            f"{config.recipe or config!r}, which {config.command} runs."
        )
    unknown = sorted(
        settings.keys() - {x.name for x in dataclasses.fields(kind)}
    )
    if unknown:
        raise TypeError(
            f"{kind.command} has no argument {', '.join(map(repr, unknown))}."
        )
    return dataclasses.replace(config, **settings)


def build_views(config: ViewsConfig) -> View | MultiCrop:
    """Builds the augmentation of a configuration."""
    from seed_tf import views

    return getattr(views, config.views)(config.view_size, flip=config.flip)


def build(
    config: DistillConfig | PretrainConfig,
    teacher: keras.Model | None = None,
    *,
    views: View | MultiCrop | None = None,
) -> SEED | MoCo:
    """Builds the untrained, uncompiled model of a configuration.

    Args:
        config: the settings.
        teacher: a trained encoder, see `checkpoints.load_encoder`; None for
            MoCo v2 alone.
        views: augmentation; by default the configuration's.

    Raises:
        ValueError: see `SEED` and `MoCo`.

    Example:

    >>> config = get("mocov2_resnet18").config
    >>> config = dataclasses.replace(config, queue_size=64, stem="cifar")
    >>> build(config).queue_size
    64
    """
    import keras

    from seed_tf import losses
    from seed_tf.encoders import Encoder, backbone
    from seed_tf.moco import MoCo
    from seed_tf.seed import SEED
    from seed_tf.teachers import load_network, start_from

    if views is None:
        views = build_views(config)
    shared: dict[str, Any] = {
        "views": views,
        "queue_size": config.queue_size,
        "seed": config.seed,
        "acceleration": _acceleration(config.precision),
    }
    if isinstance(config, PretrainConfig):
        network = backbone(config.encoder, stem=config.stem)
        return MoCo(
            Encoder(
                network,
                embedding_dim=config.embedding_dim,
                image_size=config.image_size,
            ),
            temperature=config.temperature,
            momentum=config.momentum,
            shuffle_groups=config.shuffle_groups,
            **shared,
        )
    network = load_network(
        config.student, image_size=config.image_size, stem=config.stem
    )
    seen = config.teacher_size
    student = network.encoder(
        embedding_dim=teacher(keras.Input((seen, seen, 3))).shape[-1],
        hidden_dim=config.hidden_dim,
        image_size=config.image_size,
    )
    if config.student_weights:
        start_from(student, config.student_weights)
    objective = None  # SEED's own, with its health metrics
    if config.objective != "similarity_distillation":
        objective = getattr(losses, config.objective)
    return SEED(
        student=student,
        teacher=teacher,
        student_temperature=config.student_temperature,
        teacher_temperature=config.teacher_temperature,
        objective=objective,
        same_view=config.same_view,
        student_image_size=_if_resized(config, config.image_size),
        teacher_image_size=_if_resized(config, seen),
        **shared,
    )


def _acceleration(policy):
    """Returns the argument `acceleration` for a setting `precision`."""
    from seed_tf.acceleration import Plan

    if policy == "auto":
        return "auto"
    if policy == "mixed_float16":  # the layers have this policy from Keras
        policy = "float32"
    return Plan(student_policy=policy)


def _if_resized(config, size):
    """Returns a size that differs from that of the views, else None."""
    return None if size == config.view_size else size


def difference(teacher: keras.Model, expected: Teacher) -> str | None:
    """Compares a network with the teacher of a recipe.

    Returns:
        A warning; None if depth, width and head are the same.
    """
    name = getattr(teacher, "backbone", teacher).name
    layers = getattr(getattr(teacher, "head", None), "layers", ())
    head = tuple(type(layer).__name__ for layer in layers)
    if (name, head) == (expected.architecture, _HEADS[expected.method]):
        return None
    return (
        f"The recipe's teacher is {expected.architecture} by {expected.method} "
        f"({expected.checkpoint}). This one is {name} with a head of "
        f"{', '.join(head) or 'no layers'}: do not compare its student "
        "with the paper's."
    )


_HEADS = {  # layers of the projection head by method
    "torchvision": (),
    "moco_v1": ("Dense",),
    "moco_v2": ("Dense", "ReLU", "Dense"),
    "simclr": ("Dense", "BatchNormalization", "ReLU", "Dense"),
    "swav": ("Dense", "BatchNormalization", "ReLU", "Dense"),
}


# Teachers. "README" means the README of the authors' code.

_RESNET50 = Teacher(
    "resnet50", "moco_v2", "README: ResNet-50, MoCo v2, 200 epochs", 67.4
)
_RESNET152 = Teacher(
    "resnet152",
    "moco_v2",
    "README: ResNet-152, MoCo v2, 200 or 800 epochs; no source confirms the "
    "paper's choice",
    74.1,
)
_RESNET50W2 = Teacher(
    "resnet50w2", "swav", "README: ResNet-50 x2, SwAV, 400 epochs", 77.3
)
_RESNET50W4 = Teacher(
    "resnet50w4", "swav", "README: ResNet-50 x4, SwAV, 400 epochs"
)


def _alone(encoder, *results, note="", **settings):
    config = PretrainConfig(
        encoder=encoder, precision="mixed_float16", **settings
    )
    return Recipe(config, paper=Paper(*results), note=note)


def _seed(student, teacher, *results, note="", **settings):
    config = DistillConfig(
        student=student, precision="mixed_float16", **settings
    )
    return Recipe(config, teacher, Paper(*results), note)


def _patches(student, teacher, *results, **settings):
    """Small patches: 800 epochs; some released students had 400."""
    return _seed(
        student,
        teacher,
        *results,
        views="swav_small_patches",
        epochs=800,
        **settings,
    )


# The paper's tables. Numbers: top-1, top-5, with 1 % and 10 % of the labels.

_ALONE = {
    "mocov2_resnet18": _alone("resnet18", 52.5, 77.0, 30.9, 45.8),
    "mocov2_resnet34": _alone("resnet34", 57.4, 81.6),
    "mocov2_efficientnet_b0": _alone("efficientnet_b0", 42.2),
    "mocov2_efficientnet_b1": _alone("efficientnet_b1"),
    "mocov2_mobilenet_v3_large": _alone("mobilenet_v3_large", 36.3),
    "mocov2_resnet50": _alone(
        "resnet50", 67.4, note="The teacher of the rows below."
    ),
}

_FROM_RESNET50 = {
    "seed_resnet18_from_resnet50_mocov2": _seed(
        *("resnet18", _RESNET50, (57.6, 57.9), 81.8, 39.1, 50.2),
        note="An unofficial reproduction: 58.0 (82.4).",
    ),
    "seed_resnet34_from_resnet50_mocov2": _seed(
        "resnet34", _RESNET50, 58.5, 82.6
    ),
    "seed_efficientnet_b0_from_resnet50_mocov2": _seed(
        "efficientnet_b0", _RESNET50, 61.3
    ),
    "seed_efficientnet_b1_from_resnet50_mocov2": _seed(
        "efficientnet_b1", _RESNET50
    ),
    "seed_mobilenet_v3_large_from_resnet50_mocov2": _seed(
        "mobilenet_v3_large", _RESNET50, 55.2
    ),
}

_FROM_RESNET152 = {
    "seed_resnet18_from_resnet152_mocov2": _seed(
        "resnet18", _RESNET152, 59.5, 83.3, 44.3, 54.8
    ),
    "seed_resnet34_from_resnet152_mocov2": _seed(
        "resnet34", _RESNET152, 62.7, 85.8
    ),
    "seed_efficientnet_b0_from_resnet152_mocov2": _seed(
        "efficientnet_b0", _RESNET152
    ),
    "seed_efficientnet_b1_from_resnet152_mocov2": _seed(
        "efficientnet_b1", _RESNET152
    ),
    "seed_mobilenet_v3_large_from_resnet152_mocov2": _seed(
        "mobilenet_v3_large", _RESNET152
    ),
}

_SMALL_PATCHES = {
    "seed_resnet18_from_resnet50w2_swav_small_patches": _patches(
        "resnet18", _RESNET50W2, 63.0, 84.9
    ),
    "seed_resnet34_from_resnet50w2_swav_small_patches": _patches(
        "resnet34", _RESNET50W2, 65.7, 86.8
    ),
    "seed_efficientnet_b0_from_resnet50w2_swav_small_patches": _patches(
        "efficientnet_b0", _RESNET50W2, 67.6
    ),
    "seed_efficientnet_b1_from_resnet50w2_swav_small_patches": _patches(
        *("efficientnet_b1", _RESNET50W2),
        note="The paper: 17.3 points above MoCo v2 alone.",
    ),
    "seed_mobilenet_v3_large_from_resnet50w2_swav_small_patches": _patches(
        "mobilenet_v3_large", _RESNET50W2, 68.2
    ),
    "seed_efficientnet_b0_from_resnet50w4_swav_small_patches": _patches(
        *("efficientnet_b0", _RESNET50W4),
        note="Released by the authors. Small patches are taken to be as in the "
        "other rows of SwAV.",
    ),
    "seed_resnet50_from_resnet50w4_swav_small_patches": _patches(
        "resnet50", _RESNET50W4, 74.3
    ),
}

# Ablations. The paper ran these kinds. No source confirms students and values:
# both are chosen here, without numbers.


def _ablation(teacher=_RESNET50, **settings):
    return _seed("resnet18", teacher, **settings)


_METHODS = {
    # Checkpoint and views of each method.
    "mocov1": (
        Teacher(
            "resnet50", "moco_v1", "README: ResNet-50, MoCo v1, 200 epochs"
        ),
        "moco_v1",
    ),
    "simclr": (
        Teacher("resnet50", "simclr", "README: ResNet-50, SimCLR, 200 epochs"),
        "simclr",
    ),
    "mocov2": (_RESNET50, "moco_v2"),
    "swav": (
        Teacher("resnet50", "swav", "README: ResNet-50, SwAV, 800 epochs"),
        "swav",
    ),
    "supervised": (
        Teacher("resnet50", "torchvision", "torchvision's ResNet-50"),
        "moco_v2",
    ),
}

_ABLATIONS = {
    "seed_resnet18_from_resnet50_mocov2_wide_head": _ablation(
        hidden_dim=2048,
        note="An unofficial reproduction: 60.3, for 58.0 with hidden_dim=512.",
    ),
    **{
        f"ablation_teacher_temperature_{value}": _ablation(
            teacher_temperature=float(value)
        )
        for value in ("0.0001", "0.001", "0.01", "0.03", "0.1", "0.3")
    },
    **{
        f"ablation_queue_{size}": _ablation(queue_size=size)
        for size in (256, 1024, 4096, 16384, 65536)
    },
    **{
        f"ablation_objective_{name}": _ablation(objective=name)
        for name in (
            *("similarity_distillation", "l2", "binary_contrastive"),
            *("kmeans_clustering", "online_clustering"),
        )
    },
    **{
        f"ablation_learning_rate_{value}": _ablation(learning_rate=float(value))
        for value in ("0.01", "0.03", "0.1", "0.3")
    },
    **{
        f"ablation_weight_decay_{value}": _ablation(weight_decay=float(value))
        for value in ("0.00001", "0.0001", "0.001")
    },
    "ablation_views_same": _ablation(),
    "ablation_views_different": _ablation(
        same_view=False, note="The paper: the same view is better."
    ),
    **{
        f"ablation_teacher_{name}": _ablation(teacher, views=views)
        for name, (teacher, views) in _METHODS.items()
    },
}

RECIPES = {
    name: dataclasses.replace(
        recipe, config=dataclasses.replace(recipe.config, recipe=name)
    )
    for rows in (
        *(_ALONE, _FROM_RESNET50, _FROM_RESNET152),
        *(_SMALL_PATCHES, _ABLATIONS),
    )
    for name, recipe in rows.items()
}

# Evaluations of a trained encoder, and the paper's other rows.
_EVALUATE = "seed-tf evaluate --encoder=<run> --protocol="
ELSEWHERE = {
    "linear probe, top-1 and top-5": (
        f"{_EVALUATE}linear_views --data_dir=<imagenet>"
    ),
    "1 % and 10 % of the labels": (
        f"{_EVALUATE}fine_tune --label_fraction=0.01,0.1 --data_dir=<imagenet>"
    ),
    "transfer to CIFAR-10, CIFAR-100, SUN397": (
        f"{_EVALUATE}transfer --dataset=cifar10 (cifar100, "
        "sun397/standard-part1-120k)"
    ),
    "detection on VOC, COCO": (
        "seed-tf detect --encoder=<run> --dataset=voc/2007 (coco/2017); "
        "a RetinaNet for the paper's Faster R-CNN"
    ),
    "segmentation on COCO": "not here",
    "distillation, then supervised distillation": (
        "any recipe, then keras.distillation: docs/recipes.md"
    ),
}


def names() -> list[str]:
    """Returns the names of all recipes, in the order of the paper's tables."""
    return list(RECIPES)


def get(name: str) -> Recipe:
    """Returns a recipe.

    Raises:
        ValueError: if the name is unknown.

    Example:

    >>> seed_tf.recipes.get("mocov2_mobilenet_v3_large").paper.top1
    36.3
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=3, cutoff=0.4)
        raise ValueError(
            "`recipe` must be one of seed_tf.recipes.names(), which a command "
            "prints with `recipe=list`. "
            f"Received: recipe={name!r}."
            + (f" The closest: {', '.join(near)}." if near else "")
        )
    return RECIPES[name]


def table() -> str:
    """Returns a table of all recipes and the paper's numbers."""
    from seed_tf.reporting import tables

    def number(value):
        pair = isinstance(value, tuple)
        return "-".join(map(str, value)) if pair else value

    rows = [
        {
            "recipe": name,
            "views": recipe.config.views,
            "epochs": recipe.config.epochs,
            "top-1": number(recipe.paper.top1),
            "top-5": recipe.paper.top5,
            "1 %": recipe.paper.one_percent,
            "10 %": recipe.paper.ten_percent,
        }
        for name, recipe in RECIPES.items()
    ]
    notes = "\n".join(f"{k}: {v.note}" for k, v in RECIPES.items() if v.note)
    elsewhere = "\n".join(f"{row}: {how}" for row, how in ELSEWHERE.items())
    return (
        f"{tables.table(rows, list(rows[0]))}\n\n{notes}\n\n"
        "The numbers are the paper's, on ImageNet: linear probes (top-1, "
        "top-5), and top-1\nwith 1 % and 10 % of the labels. A dash means that "
        "no source confirms a number.\nNone of the recipes was run here. "
        "pretrain runs mocov2_..., distill all others."
        f"\n\nWith a trained encoder:\n{elsewhere}"
    )
