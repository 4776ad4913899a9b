"""What the commands of trainings share."""

import dataclasses
import functools
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf

import seed_tf
from seed_tf import recipes
from seed_tf.cli.data import Data
from seed_tf.cli.flags import Call
from seed_tf.config import RunConfig
from seed_tf.evaluation.monitor import HeldOut, LabelledKNN
from seed_tf.reporting import tables
from seed_tf.training import devices

Run = TypeVar("Run", bound=RunConfig)


def with_recipe(call: Call[Run]) -> Run:
    """The settings, where the recipe fills in those that were not given.

    Raises:
        ValueError: if there is no such recipe, or it is another command's.
    """
    settings = call.settings
    if settings.recipe is None:
        return settings
    named = recipes.get(settings.recipe)
    if named.launcher != settings.command:
        raise ValueError(
            f"{settings.recipe} is run by seed-tf {named.launcher}, this is "
            f"seed-tf {settings.command}."
        )
    of_recipe = {k: v for k, v in named.flags().items() if k not in call.given}
    return dataclasses.replace(settings, **of_recipe)


def recipe(settings: RunConfig, **renamed):
    """The `Recipe` that all settings together make.

    Args:
        settings: of the run.
        **renamed: values of fields whose settings have other names.
    """
    names = {field.name for field in dataclasses.fields(recipes.Recipe)}
    names &= {field.name for field in dataclasses.fields(settings)}
    values = {name: getattr(settings, name) for name in names - {"teacher"}}
    return recipes.Recipe(**{**values, **renamed})


def list_recipes():
    """A table of all recipes, beside the paper's numbers."""

    def number(value):
        pair = isinstance(value, tuple)
        return "-".join(map(str, value)) if pair else value

    rows = []
    for name in recipes.names():
        each = recipes.get(name)
        paper = each.paper
        rows.append(
            {
                "recipe": name,
                "views": each.views,
                "epochs": each.epochs,
                "top-1": number(paper.top1),
                "top-5": paper.top5,
                "1 %": paper.one_percent,
                "10 %": paper.ten_percent,
            }
        )
    notes = "\n".join(
        f"{name}: {recipes.get(name).note}"
        for name in recipes.names()
        if recipes.get(name).note
    )
    elsewhere = "\n".join(
        f"{row}: {how}" for row, how in recipes.ELSEWHERE.items()
    )
    return (
        f"{tables.table(rows, list(rows[0]))}\n\n{notes}\n\n"
        "The paper's linear probes on ImageNet (top-1, top-5), and its top-1 "
        "with 1 % and 10 %\nof the labels; – where no source confirms a "
        "number. None of them was run here.\nmocov2_... are run by "
        "pretrain, all others by distill."
        f"\n\nRun with a trained encoder:\n{elsewhere}"
    )


def train(
    call: Call, settings: RunConfig, build, *, num_views=1, view_cache=None
):
    """Does what the launchers share: data, devices, model, run, report.

    Args:
        call: the command line.
        settings: of the run.
        build: function of views to (model, the encoder that it trains, its
            teacher or None), called where its variables belong.
        num_views: int, views of each image in a step.
        view_cache: `seed_tf.view_cache.ViewCache` to train from, or None.
    """
    if settings.precision == "auto":
        # Resolved before it is noted: a run goes on as it began.
        settings = dataclasses.replace(
            settings,
            precision=seed_tf.acceleration.precision.default_student_policy(),
        )
    config = {
        "launcher": settings.command,
        "command": call.line(),
        **settings.as_dict(),
    }
    may_differ = [
        field.name
        for field in dataclasses.fields(settings)
        if field.metadata["may_differ"]
    ]
    folder = seed_tf.training.RunFolder(
        settings.output,
        config,
        overwrite=settings.overwrite,
        ignore=["command", *may_differ],
        chief=devices.is_chief(),
    )
    strategy = devices.make_strategy(settings.strategy, settings.tpu)
    keras.utils.set_random_seed(settings.seed)
    keras.mixed_precision.set_global_policy(settings.precision)
    views = recipes.VIEWS[settings.views](
        settings.image_size, flip=settings.flip
    )
    data = Data(settings, views, num_views, view_cache)
    with strategy.scope():
        model, encoder, teacher = build(views)
        if settings.sync_batch_norm:
            devices.synchronise_batch_norm(encoder)
        schedule = seed_tf.training.warmup_cosine(
            batch_size=settings.batch_size,
            steps_per_epoch=data.steps_per_epoch,
            epochs=settings.epochs,
            warmup_epochs=min(settings.warmup_epochs, settings.epochs / 2),
            rate_per_256=settings.learning_rate,
        )
        model.compile(
            seed_tf.training.SGD(schedule, weight_decay=settings.weight_decay),
            jit_compile="auto" if settings.jit is None else settings.jit,
        )
    plan = {
        "load": lambda step: devices.distribute(
            strategy, functools.partial(data.training, step)
        ),
        "encoder": encoder,
        "epochs": settings.epochs,
        "steps_per_epoch": data.steps_per_epoch,
        "batch_size": settings.batch_size,
        "targets_cached": view_cache is not None,
    }
    if settings.dry_run:
        print(seed_tf.training.dry_run(model, teacher=teacher, **plan))
        return
    fingerprint = teacher and seed_tf.training.fingerprint(teacher)
    folder.claim(teacher_fingerprint=fingerprint)
    devices.barrier(strategy)
    try:
        _train(settings, folder, model, teacher, data, plan)
    except tf.errors.OpError:
        data.check()  # a better word for it, if that was the cause
        raise
    finally:
        folder.close()


def _train(settings, folder, model, teacher, data, plan):
    encoder = plan["encoder"]
    measures, unseen = {}, None
    if data.held_out > 10:
        unseen = HeldOut(encoder, data.unseen(), teacher)
        if teacher is not None:
            measures["agreement"] = unseen.agreement, 1
    if data.labelled:
        labelled = LabelledKNN(encoder, *data.labelled)
        measures["knn"] = labelled.accuracy, settings.knn_every
    earlier = folder.read("summary.json").get("corrupt_files", {})

    def summary():
        return {"corrupt_files": {**earlier, **data.corrupt_files}}

    def write_report():
        seed_tf.training.write_run_report(
            folder,
            f"{settings.command}: {folder.path}",
            views=_some_views(model, data),
            neighbours=unseen and unseen.neighbours(),
        )

    result = seed_tf.training.train(
        model,
        folder=folder,
        measures=measures,
        # k-NN where there are labels, else agreement.
        monitor=list(measures)[-1] if measures else None,
        patience=settings.patience,
        checkpoint_minutes=settings.checkpoint_minutes,
        summary=summary,
        on_evaluated=write_report,
        **plan,
    )
    if folder.chief:
        _tell(folder, result)


def _some_views(model, data):
    """The first 32 views of the run, uint8."""
    images = next(iter(data.training()))
    views = model.augment(images, 0)[0][:32]
    return np.clip(np.round(views), 0, 255).astype(np.uint8)


def _tell(folder, result):
    last = result["last"]
    shown = {
        name: f"{last[name]:.3f}"
        for name in ("loss", "gap", "accuracy", "cosine", "agreement", "knn")
        if name in last
    }
    row = {"step": f"{result['step']:,}", **shown}
    print(f"\n{result['ended'].capitalize()}.\n")
    print(tables.table([row], list(row)))
    if result["corrupt_files"]:
        print(
            f"\n{len(result['corrupt_files'])} unreadable images were left "
            f"out: {folder.file('summary.json')}"
        )
    print(
        f"\nTrained encoder: {folder.file('student.keras')} "
        f"(of step {result['encoder_of_step']:,})\n"
        f"Report: {folder.file('report.html')}"
    )
