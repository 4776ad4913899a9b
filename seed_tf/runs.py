"""Whole training runs: `seed_tf.distill` and `seed_tf.pretrain`."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from seed_tf import checkpoints, recipes, teachers, training
from seed_tf.acceleration.precision import default_student_policy
from seed_tf.config import DistillConfig, PretrainConfig
from seed_tf.evaluation.monitor import HeldOut, LabelledKNN
from seed_tf.reporting import tables
from seed_tf.training import devices
from seed_tf.training.images import RunImages
from seed_tf.view_cache import ViewCache

# "cifar10", "imagenet2012_subset/1pct:5.0.0"
_TFDS_NAME = re.compile(r"[a-z]\w*(/[\w.-]+)?(:[\d.*]+)?")
_SHOWN = ("loss", "gap", "accuracy", "cosine", "agreement", "knn")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        path: the folder of the run, with `report.html`.
        metrics: metrics of the last step, such as "step" and "loss", and of
            the last evaluation, "agreement" and "knn". {} after a dry run.
        summary: the content of `summary.json`. {} after a dry run.
    """

    path: str
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def encoder(self) -> keras.Model:
        """The trained encoder of the best evaluation, float32.

        The first use loads the encoder from the folder.
        """
        return checkpoints.load_encoder(self.path)


def distill(
    *,
    data: str | os.PathLike[str] | None = None,
    config: DistillConfig | None = None,
    log: Callable[[str], Any] = print,
    **settings,
) -> RunResult:
    """Distils a student from a teacher: the whole run, as `seed-tf distill`.

    The same call resumes a stopped or killed run. SIGTERM and SIGINT (Ctrl-C,
    or "interrupt" in a notebook) save and end the run after the step in
    progress.

    Args:
        data: images to train on, without labels: a folder, a `.tsv` file,
            "digits" or a name of TensorFlow Datasets. Replaces the settings
            `dataset` and `data_dir`.
        config: settings to start from. The default is the recipe in
            `settings`, else the paper's settings.
        log: function of one str, for progress.
        **settings: fields of `seed_tf.config.DistillConfig`. `teacher` and
            `output` are required.

    Raises:
        ValueError: if a setting is missing or out of range, the output folder
            holds a run with other settings, or the data or the teacher cannot
            be used.
        seed_tf.training.Stopped: at a signal, after the run is saved.
        FloatingPointError: at the first step whose loss is not finite.
        OSError: if the output folder cannot be written or the disk is full.

    Example:

        result = seed_tf.distill(
            data="photos",
            teacher="runs/teacher",
            student="mobilenet_v3_large",
            output="runs/student",
            epochs=100,
        )
        features = result.encoder.features(images)
    """
    settings |= _data_settings(data, settings)
    return _run(recipes.configure(DistillConfig, config, **settings), log)


def pretrain(
    *,
    data: str | os.PathLike[str] | None = None,
    config: PretrainConfig | None = None,
    log: Callable[[str], Any] = print,
    **settings,
) -> RunResult:
    """Trains an encoder with MoCo v2: the whole run, as `seed-tf pretrain`.

    Arguments, result and errors are those of `distill`. The settings are the
    fields of `seed_tf.config.PretrainConfig`; `output` is required.
    """
    settings |= _data_settings(data, settings)
    return _run(recipes.configure(PretrainConfig, config, **settings), log)


def _data_settings(data, settings):
    """Returns the settings that `data` replaces."""
    if data is None:
        return {}
    if "dataset" in settings:
        raise ValueError("Expected `data` or `dataset`. Received both.")
    path = os.path.expanduser(os.fspath(data))
    if path == "digits":
        return {"dataset": path}
    if path.endswith(".tsv") or os.path.isdir(path):
        if "data_dir" in settings:
            raise ValueError(
                "Expected a folder or a file in `data` or in `data_dir`. "
                "Received both."
            )
        dataset = "tsv" if path.endswith(".tsv") else "folder"
        return {"dataset": dataset, "data_dir": path}
    if not _TFDS_NAME.fullmatch(path):
        raise ValueError(
            "`data` must be a folder of images, a .tsv file or the name of a "
            f"data set. Received: data={data!r}, and no folder is there."
        )
    return {"dataset": path}


def _run(config, log):
    """Runs a configuration, and restores Keras's global dtype policy."""
    config.check()
    command = config.command_line()
    if config.precision == "auto":
        precision = _earlier_precision(config) or default_student_policy()
        config = dataclasses.replace(config, precision=precision)
    folder = training.RunFolder(
        config.output,
        {
            "launcher": config.command,
            "command": command,
            **config.as_dict(),
        },
        defaults=type(config)().as_dict(),
        overwrite=config.overwrite,
        # `RunImages` compares the data.
        ignore=("command", "data", "teacher_license", *config.may_differ()),
        paths=config.paths(),
        chief=devices.is_chief(),
    )
    strategy = devices.make_strategy(config.strategy, config.tpu)
    policy = keras.config.dtype_policy()
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    try:
        return _run_in(folder, config, strategy, log)
    finally:
        keras.config.set_dtype_policy(policy)


def _earlier_precision(config):
    """Returns the precision of the run in the output folder, or None."""
    if config.overwrite:
        return None
    return training.earlier_config(config.output).get("precision")


def _run_in(folder, config, strategy, log):
    distils = isinstance(config, DistillConfig)
    cache = distils and config.view_cache and ViewCache(config.view_cache)
    if cache and config.view_size > config.teacher_size:
        raise ValueError(
            "A view cache holds the teacher's embeddings of whole views. "
            "Expected `teacher_image_size` to be at least `image_size`. "
            f"Received: teacher_image_size={config.teacher_image_size}, "
            f"image_size={config.image_size}."
        )
    views = recipes.build_views(config)
    num_views = 1 if distils and config.same_view else 2
    images = RunImages(
        config,
        views,
        num_views,
        cache or None,
        begun=folder.earlier.get("data"),
        held_out_names=folder.read("held_out.json", list),
    )
    if folder.chief:
        log(images.summary)
    teacher = None
    with strategy.scope():
        if distils:
            teacher = _teacher(config, cache)
        model = recipes.build(config, teacher, views=views)
        encoder = model.student if distils else model.encoder
        if config.sync_batch_norm:
            devices.synchronise_batch_norm(encoder)
        schedule = training.warmup_cosine(
            batch_size=config.batch_size,
            steps_per_epoch=images.steps_per_epoch,
            epochs=config.epochs,
            warmup_epochs=min(config.warmup_epochs, config.epochs / 2),
            rate_per_256=config.learning_rate,
        )
        model.compile(
            training.SGD(schedule, weight_decay=config.weight_decay),
            jit_compile="auto" if config.jit is None else config.jit,
        )
    plan = {
        "load": lambda step: devices.distribute(
            strategy, functools.partial(images.training, step)
        ),
        "encoder": encoder,
        "epochs": config.epochs,
        "steps_per_epoch": images.steps_per_epoch,
        "batch_size": config.batch_size,
        "targets_cached": bool(cache),
    }
    if config.dry_run:
        log(training.dry_run(model, teacher=teacher, **plan))
        return RunResult(folder.path)
    facts = {
        "teacher_fingerprint": teacher and training.fingerprint(teacher),
        "data": images.identity,
    }
    license = distils and teachers.license_of(config.teacher)
    if license:
        log(
            f"The teacher's license is {license}. Read whether it covers "
            "models that learn from the teacher."
        )
        facts["teacher_license"] = license
    folder.claim(**facts)
    if folder.chief and images.held_out_names:
        folder.write("held_out.json", images.held_out_names)
    devices.barrier(strategy)
    try:
        summary = _train(folder, config, model, teacher, images, plan, log)
    except tf.errors.OpError:
        images.check()  # raises a clearer error, if unreadable images caused it
        raise
    finally:
        folder.close()
    if folder.chief:
        log(_outcome(folder, summary))
    return RunResult(folder.path, summary["last"], summary)


def _teacher(config, cache):
    teacher = teachers.load_encoder(
        config.teacher, image_size=config.teacher_size
    )
    if cache:
        cache.check_teacher(teacher)
    if config.recipe:
        # A warning: a run may replace any setting of a recipe.
        expected = recipes.get(config.recipe).teacher
        difference = recipes.difference(teacher, expected)
        if difference:
            logging.warning("%s", difference)
    return teacher


def _train(folder, config, model, teacher, images, plan, log):
    """Trains to the end, evaluates and reports; returns the summary."""
    encoder = plan["encoder"]
    measures, unseen = {}, None
    if images.held_out > 10:
        unseen = HeldOut(
            encoder,
            images.unseen(),
            teacher,
            image_size=config.image_size,
            teacher_image_size=getattr(config, "teacher_size", None),
        )
        if teacher is not None:
            measures["agreement"] = unseen.agreement, 1
    if images.labelled:
        labelled = LabelledKNN(encoder, *images.labelled)
        measures["knn"] = labelled.accuracy, config.knn_every
    earlier = folder.read("summary.json").get("corrupt_files", {})

    def summary():
        return {"corrupt_files": {**earlier, **images.corrupt_files}}

    def write_report():
        training.write_run_report(
            folder,
            f"{config.command}: {folder.path}",
            views=_some_views(model, images),
            neighbours=unseen.neighbours() if unseen else None,
        )

    return training.train(
        model,
        folder=folder,
        measures=measures,
        # k-NN where there are labels, else agreement.
        monitor=list(measures)[-1] if measures else None,
        patience=config.patience,
        checkpoint_minutes=config.checkpoint_minutes,
        summary=summary,
        on_evaluated=write_report,
        log=log,
        **plan,
    )


def _some_views(model, images):
    """Returns the first 32 views of the run, uint8 `[32, S, S, 3]`."""
    batch = next(iter(images.training()))
    views = model.augment(batch, 0)[0][:32]
    return np.clip(np.round(views), 0, 255).astype(np.uint8)


def _outcome(folder, summary):
    """Returns the outcome of a run as text to print."""
    last = summary["last"]
    shown = {name: f"{last[name]:.3f}" for name in _SHOWN if name in last}
    row = {"step": f"{summary['step']:,}", **shown}
    parts = [
        f"\n{summary['ended'].capitalize()}.\n",
        tables.table([row], list(row)),
    ]
    unreadable = summary["corrupt_files"]
    if unreadable:
        images = "image was" if len(unreadable) == 1 else "images were"
        parts.append(
            f"\n{len(unreadable)} unreadable {images} left out: "
            f"{folder.file('summary.json')}"
        )
    parts.append(
        f"\nTrained encoder: {folder.file('student.keras')} "
        f"(of step {summary['encoder_of_step']:,})\n"
        f"Report: {folder.file('report.html')}"
    )
    return "\n".join(parts)
