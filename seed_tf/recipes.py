"""Every experiment of the paper by name, as plain data.

    python -m experiments.distill --recipe=list
    python -m experiments.distill --recipe=seed_resnet18_from_resnet50_mocov2 \\
        --teacher=moco_v2_200ep_pretrain.pth.tar --data_dir=imagenet \\
        --output=runs/resnet18

What all of them share is said by the defaults of `Recipe`; and by those of
`training.SGD`, which are the paper's too: momentum 0.9. All are evaluated
alike, see `ELSEWHERE`. A recipe of one's own is another one with something
replaced:

    recipe = dataclasses.replace(get("mocov2_resnet18"), epochs=800)

Numbers are the paper's, only where a source confirms them; None elsewhere.
None of these was run here on ImageNet.
"""

import dataclasses
import difflib

import keras

from seed_tf import losses
from seed_tf.encoders import Encoder, backbone
from seed_tf.moco import MoCo
from seed_tf.seed import SEED
from seed_tf.views import (
    moco_v1,
    moco_v2,
    multi_crop,
    simclr,
    small_patches,
    swav,
)


def swav_small_patches(size, *, flip=True):
    """One view and six small ones of each image, 96 pixels where it has 224."""
    return multi_crop(
        swav(size, flip=flip), small_patches(round(size * 96 / 224), flip=flip)
    )


# Functions of the view's size, and of `flip`.
VIEWS = {
    "moco_v1": moco_v1,
    "moco_v2": moco_v2,
    "simclr": simclr,
    "swav": swav,
    "swav_small_patches": swav_small_patches,
}
OBJECTIVES = {
    "similarity_distillation": None,  # SEED's own, with its health metrics
    "l2": losses.l2,
    "binary_contrastive": losses.binary_contrastive,
    "kmeans_clustering": losses.kmeans_clustering,
    "online_clustering": losses.online_clustering,
}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network to distil from.

    Attributes:
        architecture: str, as `seed_tf.backbone` names it.
        method: str, how it was trained, as `checkpoints.load_encoder` names
            it; "torchvision" is with labels.
        checkpoint: str, which published file holds it.
        top1: float, its own ImageNet linear probe in the paper, or None.
    """

    architecture: str
    method: str
    checkpoint: str
    top1: float | None = None


@dataclasses.dataclass(frozen=True)
class Paper:
    """The paper's results on ImageNet in percent, None where unconfirmed.

    Attributes:
        top1: float, linear probe; a pair where sources quote two numbers.
        top5: float, linear probe.
        one_percent, ten_percent: floats, top-1 with that share of the labels.
    """

    top1: float | tuple[float, float] | None = None
    top5: float | None = None
    one_percent: float | None = None
    ten_percent: float | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One training, with the paper's settings as defaults.

    Attributes:
        student: str, the network to train, as `seed_tf.backbone` names it.
        teacher: `Teacher`, or None for MoCo v2 alone.
        views: str, a key of `VIEWS`: those that the teacher was trained with.
        image_size: int, pixels.
        epochs: int.
        batch_size: int.
        learning_rate: float, peak per 256 images; cosine to 0 after it.
        warmup_epochs: float.
        weight_decay: float, coupled, on every weight.
        precision: str, policy of the networks; losses are float32 always.
        queue_size: int, K.
        temperature: float, of the trained network's softmax.
        teacher_temperature: float, of the target's softmax.
        objective: str, a key of `OBJECTIVES`.
        same_view: bool, whether teacher and student see one view of an image.
        hidden_dim: int, width of the student's head; None: the backbone's.
        embedding_dim: int, of MoCo. A student's is its teacher's.
        momentum: float, of MoCo's key encoder.
        paper: `Paper`.
        note: str, what else one should know.
    """

    student: str
    teacher: Teacher | None = None
    views: str = "moco_v2"
    image_size: int = 224
    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 0.03
    warmup_epochs: float = 5.0
    weight_decay: float = 1e-4
    precision: str = "mixed_float16"
    queue_size: int = 65536
    temperature: float = 0.2
    teacher_temperature: float = 0.01
    objective: str = "similarity_distillation"
    same_view: bool = True
    hidden_dim: int | None = None
    embedding_dim: int = 128
    momentum: float = 0.999
    paper: Paper = Paper()
    note: str = ""

    @property
    def launcher(self):
        """The module of `experiments` that runs it."""
        return "distill" if self.teacher else "pretrain"

    def flags(self):
        """Its settings as flags of that launcher: dict of names to values."""
        shared = (
            *("views", "image_size", "epochs", "batch_size", "learning_rate"),
            *("warmup_epochs", "weight_decay", "precision", "queue_size"),
        )
        settings = {name: getattr(self, name) for name in shared}
        if self.teacher is None:
            return settings | {
                "encoder": self.student,
                "temperature": self.temperature,
                "embedding_dim": self.embedding_dim,
                "momentum": self.momentum,
            }
        return settings | {
            "student": self.student,
            "student_temperature": self.temperature,
            "teacher_temperature": self.teacher_temperature,
            "objective": self.objective,
            "same_view": self.same_view,
            "hidden_dim": self.hidden_dim,
        }


def build(recipe, teacher=None, *, views=None, stem="imagenet", seed=0):
    """An untrained model of a recipe.

    Args:
        recipe: `Recipe`.
        teacher: keras.Model, trained, see `checkpoints.load_encoder`; None
            for MoCo v2 alone.
        views: as of `SEED`; by default the recipe's.
        stem: see `seed_tf.backbone`.
        seed: int.

    Returns:
        `SEED` or `MoCo`, to be compiled.

    Raises:
        ValueError: as these two.

    Example:

    >>> recipe = dataclasses.replace(get("mocov2_resnet18"), queue_size=64)
    >>> build(recipe, stem="cifar").queue_size
    64
    """
    if views is None:
        views = VIEWS[recipe.views](recipe.image_size)
    network = backbone(recipe.student, stem=stem)
    shared = {"views": views, "queue_size": recipe.queue_size, "seed": seed}
    if teacher is None:
        encoder = Encoder(network, embedding_dim=recipe.embedding_dim)
        return MoCo(
            encoder,
            temperature=recipe.temperature,
            momentum=recipe.momentum,
            **shared,
        )
    images = keras.Input((recipe.image_size, recipe.image_size, 3))
    student = Encoder(
        network,
        embedding_dim=teacher(images).shape[-1],
        hidden_dim=recipe.hidden_dim,
    )
    return SEED(
        student=student,
        teacher=teacher,
        student_temperature=recipe.temperature,
        teacher_temperature=recipe.teacher_temperature,
        objective=OBJECTIVES[recipe.objective],
        same_view=recipe.same_view,
        **shared,
    )


def difference(teacher, expected):
    """Tells whether a network is not the teacher of a recipe.

    Args:
        teacher: keras.Model.
        expected: `Teacher`.

    Returns:
        str, a sentence to warn with; None if depth, width and head are those
        of the recipe's.
    """
    name = getattr(teacher, "backbone", teacher).name
    layers = getattr(getattr(teacher, "head", None), "layers", ())
    head = tuple(type(layer).__name__ for layer in layers)
    if (name, head) == (expected.architecture, _HEADS[expected.method]):
        return None
    return (
        f"The recipe's teacher is {expected.architecture} by {expected.method} "
        f"({expected.checkpoint}). This one is {name} with a head of "
        f"{', '.join(head) or 'no layers'}: its student does not stand beside "
        "the paper's."
    )


_HEADS = {  # that a method leaves
    "torchvision": (),
    "moco_v1": ("Dense",),
    "moco_v2": ("Dense", "ReLU", "Dense"),
    "simclr": ("Dense", "BatchNormalization", "ReLU", "Dense"),
    "swav": ("Dense", "BatchNormalization", "ReLU", "Dense"),
}


# Teachers. "README" is that of the authors' code, which links the files.

_RESNET50 = Teacher(
    "resnet50", "moco_v2", "README: ResNet-50, MoCo v2, 200 epochs", 67.4
)
_RESNET152 = Teacher(
    "resnet152",
    "moco_v2",
    "README: ResNet-152, MoCo v2; of 200 and 800 epochs, and which of them "
    "the paper's rows used is not confirmed",
    74.1,
)
_RESNET50W2 = Teacher(
    "resnet50w2", "swav", "README: ResNet-50 x2, SwAV, 400 epochs", 77.3
)
_RESNET50W4 = Teacher(
    "resnet50w4", "swav", "README: ResNet-50 x4, SwAV, 400 epochs"
)


def _alone(student, *results, **settings):
    return Recipe(student, paper=Paper(*results), **settings)


def _seed(student, teacher, *results, **settings):
    return Recipe(student, teacher, paper=Paper(*results), **settings)


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

# Ablations. The paper ran these kinds; which student, and which values, it
# ran them with is not confirmed: both are chosen here, hence no numbers.

_BASE = _seed("resnet18", _RESNET50)
_METHODS = {
    # The teacher's method: its checkpoint and its views.
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
    "seed_resnet18_from_resnet50_mocov2_wide_head": dataclasses.replace(
        _BASE,
        hidden_dim=2048,
        note="An unofficial reproduction: 60.3, for 58.0 with hidden_dim=512.",
    ),
    **{
        f"ablation_teacher_temperature_{value}": dataclasses.replace(
            _BASE, teacher_temperature=float(value)
        )
        for value in ("0.0001", "0.001", "0.01", "0.03", "0.1", "0.3")
    },
    **{
        f"ablation_queue_{size}": dataclasses.replace(_BASE, queue_size=size)
        for size in (256, 1024, 4096, 16384, 65536)
    },
    **{
        f"ablation_objective_{name}": dataclasses.replace(_BASE, objective=name)
        for name in (
            *("similarity_distillation", "l2", "binary_contrastive"),
            *("kmeans_clustering", "online_clustering"),
        )
    },
    **{
        f"ablation_learning_rate_{value}": dataclasses.replace(
            _BASE, learning_rate=float(value)
        )
        for value in ("0.01", "0.03", "0.1", "0.3")
    },
    **{
        f"ablation_weight_decay_{value}": dataclasses.replace(
            _BASE, weight_decay=float(value)
        )
        for value in ("0.00001", "0.0001", "0.001")
    },
    "ablation_views_same": _BASE,
    "ablation_views_different": dataclasses.replace(
        _BASE, same_view=False, note="The paper: the same view is better."
    ),
    **{
        f"ablation_teacher_{name}": dataclasses.replace(
            _BASE, teacher=teacher, views=views
        )
        for name, (teacher, views) in _METHODS.items()
    },
}

RECIPES = {
    **_ALONE,
    **_FROM_RESNET50,
    **_FROM_RESNET152,
    **_SMALL_PATCHES,
    **_ABLATIONS,
}

# What is no training without labels: how the recipes are evaluated, and other
# rows of the paper. Each takes an encoder that one of the recipes trained.
_EVALUATE = "experiments.evaluate --encoder=<run> --protocol="
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
        "experiments.detect --encoder=<run> --dataset=voc/2007 (coco/2017); "
        "a RetinaNet for the paper's Faster R-CNN"
    ),
    "segmentation on COCO": "not here",
    "distillation, then supervised distillation": (
        "any recipe, then keras.distillation: docs/recipes.md"
    ),
}


def names():
    """Names of all recipes, in the order of the paper's tables."""
    return list(RECIPES)


def get(name):
    """The recipe of that name.

    Raises:
        ValueError: if there is none, naming the closest.

    Example:

    >>> seed_tf.recipes.get("mocov2_mobilenet_v3_large").paper.top1
    36.3
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=3, cutoff=0.4)
        raise ValueError(
            "`recipe` must be one of those that --recipe=list prints. "
            f"Received: recipe={name!r}."
            + (f" The closest: {', '.join(near)}." if near else "")
        )
    return RECIPES[name]
