"""Every setting of a run, in one place.

`DistillConfig` and `PretrainConfig` define the settings of `seed_tf.distill`,
`seed_tf.pretrain`, the commands, the recipes, and `config.json` of a run.

The module imports neither TensorFlow nor Keras nor NumPy: a command prints its
help at once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shlex
import types
import typing
from collections.abc import Sequence
from typing import Any

VIEWS = ("moco_v1", "moco_v2", "simclr", "swav", "swav_small_patches")
OBJECTIVES = (
    "similarity_distillation",
    "l2",
    "binary_contrastive",
    "kmeans_clustering",
    "online_clustering",
)
# The most images of a split that k-NN during training reads.
KNN_IMAGES = 20_000


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    required: bool = False,
    may_differ: bool = False,
    path: str | None = None,
) -> Any:
    """A field of a configuration, for `dataclasses`.

    Args:
        default: value of the field by default.
        help: description of the setting, for flags and docs.
        choices: allowed strings, or None for any.
        minimum: lower bound of a number, inclusive.
        maximum: upper bound of a number, inclusive.
        required: whether a run needs a value other than None.
        may_differ: whether a resumed run may change the value.
        path: "read" or "written" for a path, see `normal_path`.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": choices and tuple(choices),
            "minimum": minimum,
            "maximum": maximum,
            "required": required,
            "may_differ": may_differ,
            "path": path,
        },
    )


def normal_path(name: str, path: str, use: str = "read") -> str:
    """Returns a path with `~` replaced and without superfluous slashes.

    Args:
        name: the argument, for messages.
        path: str. A URL stays as it is.
        use: "read" or "written".

    Raises:
        ValueError: if a URL is to be written.

    >>> normal_path("data_dir", "./d//photos/")
    'd/photos'
    """
    if "://" in path:
        if use == "written":
            raise ValueError(
                f"`{name}` must be on a disk of this machine, or mounted. "
                f"Received: {name}={path!r}. Copy the files there afterwards."
            )
        return path
    return path and str(pathlib.PurePath(os.path.expanduser(path)))


def normal_value(field: dataclasses.Field, value: Any) -> Any:
    """Returns the value of a setting; a path, or several, by `normal_path`."""
    use = field.metadata.get("path")
    if use and isinstance(value, tuple):
        return tuple(normal_path(field.name, x, use) for x in value)
    if use and isinstance(value, str):
        return normal_path(field.name, value, use)
    return value


TEACHER_HELP = (
    "A .keras file, the folder of a run of pretrain, or a published "
    "checkpoint, see docs/checkpoints.md; keras_hub: and a preset or a local "
    "folder, also in Hugging Face's format; keras_applications: and a name; "
    "or package.module:function, see docs/teachers.md."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Checked settings.

    A number out of range, an unknown choice or a wrong type raises a
    `ValueError` that names the argument. `check` requires the required
    settings: a recipe need not name a folder.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = normal_value(field, _converted(self, field))
            object.__setattr__(self, field.name, value)
            _check_range(field, value)

    def check(self) -> None:
        """Raises ValueError if a required setting is missing."""
        for field in dataclasses.fields(self):
            required = field.metadata.get("required")
            if required and getattr(self, field.name) is None:
                raise ValueError(f"`{field.name}` must be given.")

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewsConfig(Config):
    """Settings of unlabelled images and their augmentation."""

    dataset: str = setting(
        "folder",
        "Images to train on, without labels: 'folder', 'tsv', 'digits' "
        "(embedded, to try things out) or a TensorFlow Datasets name.",
    )
    data_dir: str | None = setting(
        None,
        "The folder, the TSV file, or where TFDS data lies.",
        path="read",
    )
    split: str = setting("train", "Split of the dataset to train on.")
    download: bool = setting(
        False, "Download and prepare a TensorFlow Dataset.", may_differ=True
    )
    max_corrupt_fraction: float = setting(
        0.01,
        "Share of unreadable images above which the run stops.",
        minimum=0.0,
        maximum=1.0,
        may_differ=True,
    )
    image_size: int = setting(224, "Pixels of a view.", minimum=1)
    views: str = setting(
        "moco_v2", "Augmentation; match the teacher's.", choices=VIEWS
    )
    flip: bool = setting(True, "Whether views may be mirrored.")
    batch_size: int = setting(256, "Images per step.", minimum=1)
    seed: int = setting(0, "Start, order of images and views.")

    @property
    def view_size(self) -> int:
        """Pixels at which views are made: the most that a network sees."""
        return max(self.image_size, getattr(self, "teacher_image_size", 0) or 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(ViewsConfig):
    """Settings of all runs. The defaults are the paper's."""

    recipe: str | None = setting(
        None,
        "An experiment of the paper. Other settings override its settings. "
        "'list' prints all recipes and the paper's numbers. See "
        "docs/recipes.md.",
        may_differ=True,  # a resumed run compares all other settings
    )
    held_out: int | None = setting(
        None,
        "Images kept from training, to compare their neighbours. The default "
        "is 1,000, but at most a twentieth of all.",
        minimum=0,
    )
    stem: str = setting(
        "imagenet",
        "'cifar' keeps the first layers at full size, for images of 64 pixels "
        "and less.",
        choices=("imagenet", "cifar"),
    )
    epochs: int = setting(200, "Passes over the data.", minimum=1)
    queue_size: int = setting(65536, "Embeddings in the queue.", minimum=1)
    learning_rate: float = setting(
        0.03, "Peak rate per 256 images; scaled linearly.", minimum=0.0
    )
    warmup_epochs: float = setting(
        5.0, "Epochs of linear warm-up.", minimum=0.0
    )
    weight_decay: float = setting(
        1e-4, "Coupled, on every weight.", minimum=0.0
    )
    precision: str = setting(
        "auto",
        "Arithmetic of the trained network. 'auto' is the fastest on this "
        "machine; a resumed run keeps its first choice. Weights and losses are "
        "always float32.",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    output: str | None = setting(
        None,
        "Folder for all files of the run.",
        required=True,
        may_differ=True,
        path="written",
    )
    overwrite: bool = setting(
        False,
        "Remove the run in the output folder and start anew.",
        may_differ=True,
    )
    data_changed: str = setting(
        "refuse",
        "What to do if images have come, gone or changed since the run began. "
        "'continue' keeps the number of steps, and the held-out images out.",
        choices=("refuse", "continue"),
        may_differ=True,
    )
    dry_run: bool = setting(
        False,
        "Count operations and memory, run five steps if they fit, print the "
        "cost of the whole run, and write nothing.",
        may_differ=True,
    )
    checkpoint_minutes: float = setting(
        10.0,
        "Minutes between checkpoints.",
        minimum=0.0,
        may_differ=True,
    )
    knn_every: int = setting(
        0,
        "Epochs between k-NN evaluations on labelled images; 0 for none.",
        minimum=0,
    )
    knn_data_dir: str | None = setting(
        None,
        "Labelled images for k-NN. The default is `data_dir`.",
        path="read",
    )
    knn_splits: tuple[str, ...] = setting(
        ("train", "test"),
        "Labelled splits: the first votes on the class of the second. k-NN "
        f"reads at most {KNN_IMAGES:,} images of each.",
    )
    patience: int = setting(
        0,
        "Evaluations (k-NN, else agreement with the teacher) without a new "
        "best before training stops; 0 for never.",
        minimum=0,
    )
    strategy: str = setting(
        "auto",
        "Devices: 'one', all GPUs of this host, several hosts by TF_CONFIG, "
        "or a TPU; 'auto' takes the available devices.",
        choices=("auto", "one", "mirrored", "multiworker", "tpu"),
    )
    tpu: str | None = setting(None, "Name or address of a TPU.")
    sync_batch_norm: bool = setting(
        False,
        "BatchNorm with statistics of all replicas; the paper's are of each.",
    )
    jit: bool | None = setting(
        None,
        "Compile the step with XLA. The default is a single GPU and TPUs only: "
        "XLA is slower on CPUs.",
    )

    command: typing.ClassVar[str]  # runs these settings

    def __post_init__(self):
        super().__post_init__()
        if len(self.knn_splits) != 2:
            raise ValueError(
                "`knn_splits` must be two splits. "
                f"Received: knn_splits={self.knn_splits!r}."
            )

    @classmethod
    def paths(cls) -> list[str]:
        """Returns the names of settings that are paths."""
        fields = dataclasses.fields(cls)
        return [field.name for field in fields if field.metadata["path"]]

    @classmethod
    def may_differ(cls) -> list[str]:
        """Returns the names of settings that a resumed run may change."""
        fields = dataclasses.fields(cls)
        return [field.name for field in fields if field.metadata["may_differ"]]

    def command_line(self) -> str:
        """Returns a command to paste into a shell.

        The command names all settings that differ from the defaults. It does
        not overwrite the run.
        """
        words = ["seed-tf", self.command]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default or field.name in ("recipe", "overwrite"):
                continue
            if isinstance(value, bool):
                words.append(f"--{'' if value else 'no'}{field.name}")
            else:
                text = ",".join(value) if isinstance(value, tuple) else value
                words.append(f"--{field.name}={text}")
        return shlex.join(words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(RunConfig):
    """Settings of `seed_tf.distill`: a student learns from a teacher."""

    command: typing.ClassVar[str] = "distill"

    teacher: str | None = setting(
        None, TEACHER_HELP, required=True, path="read"
    )
    teacher_image_size: int | None = setting(
        None,
        "Pixels of the teacher's view. The default is `image_size`. Views are "
        "made at the larger size, and resized for the other network.",
        minimum=1,
    )
    student: str = setting(
        "mobilenet_v3_large",
        "Backbone, by name, with random weights; or a network as of `teacher`. "
        "A file and a function keep their weights.",
    )
    student_weights: str | None = setting(
        None,
        "An encoder as of `teacher`, whose weights the student starts from.",
        path="read",
    )
    hidden_dim: int | None = setting(
        None,
        "Width of the student's head. The default is the backbone's width. A "
        "wider head can help: 2048 for resnet18.",
        minimum=1,
    )
    student_temperature: float = setting(0.2, "Of the student's softmax.")
    teacher_temperature: float = setting(
        0.01,
        "Of the teacher's softmax: lower is sharper. Watch teacher_neighbours.",
    )
    objective: str = setting(
        "similarity_distillation",
        "Loss of the student: SEED's own, or one of the paper's alternatives.",
        choices=OBJECTIVES,
    )
    same_view: bool = setting(
        True,
        "Whether teacher and student see the same view of an image.",
    )
    view_cache: str | None = setting(
        None,
        "Folder of a cache that `seed-tf cache` made with this teacher, images "
        "and views. Training then skips the teacher. See docs/view_cache.md.",
        path="read",
    )

    @property
    def teacher_size(self) -> int:
        """Pixels of the views that the teacher sees."""
        return self.teacher_image_size or self.image_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Settings of `seed_tf.pretrain`: MoCo v2, without a teacher."""

    command: typing.ClassVar[str] = "pretrain"

    encoder: str = setting("resnet50", "Backbone to train, by name.")
    embedding_dim: int = setting(128, "Width of an embedding.", minimum=1)
    shuffle_groups: int = setting(
        8,
        "Groups of a batch that normalise the keys apart; each has two images "
        "or more.",
        minimum=1,
    )
    temperature: float = setting(0.2, "Of the contrastive softmax.")
    momentum: float = setting(
        0.999,
        "Of the momentum encoder's weights.",
        minimum=0.0,
        maximum=1.0,
    )


@functools.cache
def types_of(config: type[Config]) -> dict[str, tuple[type, ...]]:
    """Returns the allowed types by setting, such as `(int, NoneType)`."""
    hints = typing.get_type_hints(config)
    found = {}
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        union = isinstance(hint, types.UnionType)
        parts = typing.get_args(hint) if union else (hint,)
        found[field.name] = tuple(typing.get_origin(x) or x for x in parts)
    return found


def _converted(config, field):
    """Returns the value of a field in the declared type, or raises."""
    value = getattr(config, field.name)
    allowed = types_of(type(config))[field.name]  # type: ignore[arg-type]
    if isinstance(value, os.PathLike) and str in allowed:
        value = os.fspath(value)
    number = isinstance(value, int) and not isinstance(value, bool)
    if float in allowed and number:
        value = float(value)
    if tuple in allowed and isinstance(value, list):
        value = tuple(value)
    is_bool = isinstance(value, bool)
    if not isinstance(value, allowed) or (is_bool and bool not in allowed):
        names = ["None" if x is types.NoneType else x.__name__ for x in allowed]
        raise ValueError(
            f"`{field.name}` must be of type {' or '.join(names)}. "
            f"Received: {field.name}={value!r}."
        )
    return value


def _check_range(field, value):
    if value is None:
        return
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise ValueError(
            f"`{field.name}` must be one of {', '.join(choices)}. "
            f"Received: {field.name}={value!r}."
        )
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    bounds = []
    if low is not None and not value >= low:
        bounds.append(f"at least {low}")
    if high is not None and not value <= high:
        bounds.append(f"at most {high}")
    if field.name.endswith("temperature") and not value > 0:
        bounds.append("positive")
    if bounds:
        raise ValueError(
            f"`{field.name}` must be {' and '.join(bounds)}. "
            f"Received: {field.name}={value!r}."
        )
