"""Runs the study of the command quickstart."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import seed_tf
from seed_tf.cli.quickstart_settings import Settings
from seed_tf.io.pipelines import BATCHES_AHEAD
from seed_tf.io.units import duration
from seed_tf.reporting import figures, pages, tables
from seed_tf.training import Progress

Features = tuple[np.ndarray, np.ndarray]  # of training and test images
History = dict[str, list[float]]

IMAGE_SIZE = 16
BATCH_SIZE = 128
QUEUE_SIZE = 1024  # below 1,297 images: few meet their own earlier view
RATE_PER_256 = 0.24
LABELS_PER_CLASS = 10
TEACHER_WIDTHS = (32, 64, 128)
STUDENT_WIDTHS = (3, 6, 12)
LOGGED_EVERY = 25  # steps


def small_convnet(widths: Sequence[int]) -> keras.Sequential:
    """Builds a network with one convolution per width."""
    layers = [keras.Input((None, None, 3))]
    for stride, width in zip((1, 2, 2), widths, strict=True):
        layers += [
            keras.layers.Conv2D(
                width, 3, stride, padding="same", use_bias=False
            ),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    return keras.Sequential(layers)


def build_encoder(widths: Sequence[int], seed: int) -> seed_tf.Encoder:
    """Builds an untrained encoder."""
    keras.utils.set_random_seed(seed)
    return seed_tf.Encoder(small_convnet(widths), embedding_dim=64)


def fit(
    model: keras.Model, images: np.ndarray, steps: int, title: str
) -> History:
    """Trains with the paper's schedule; returns means of LOGGED_EVERY steps."""
    print(f"\n{title}", flush=True)
    epochs = -(-steps // LOGGED_EVERY)
    data = (
        tf.data.Dataset.from_tensor_slices(images)
        .shuffle(len(images), seed=model.seed)
        .repeat()
        .batch(BATCH_SIZE, drop_remainder=True)
        .prefetch(BATCHES_AHEAD)
    )
    schedule = seed_tf.training.warmup_cosine(
        batch_size=BATCH_SIZE,
        steps_per_epoch=LOGGED_EVERY,
        epochs=epochs,
        warmup_epochs=epochs / 20,
        rate_per_256=RATE_PER_256,
    )
    model.compile(seed_tf.training.SGD(schedule))
    return model.fit(
        data,
        steps_per_epoch=LOGGED_EVERY,
        epochs=epochs,
        verbose=0,
        callbacks=[Progress(epochs * LOGGED_EVERY, BATCH_SIZE, every=5)],
    ).history


def views() -> seed_tf.views.View:
    """Augments digits. Mirroring or a small crop would change the sign."""
    return seed_tf.views.moco_v2(IMAGE_SIZE, scale=(0.4, 1.0), flip=False)


def train_alone(
    encoder: seed_tf.Encoder,
    images: np.ndarray,
    steps: int,
    seed: int,
    title: str,
) -> History:
    """Trains an encoder with MoCo v2."""
    model = seed_tf.MoCo(
        encoder, views=views(), queue_size=QUEUE_SIZE, momentum=0.99, seed=seed
    )
    return fit(model, images, steps, title)


def distil(
    student: seed_tf.Encoder,
    teacher: seed_tf.Encoder,
    images: np.ndarray,
    steps: int,
    temperature: float,
    seed: int,
    title: str,
) -> History:
    """Distils a student with SEED."""
    model = seed_tf.SEED(
        student=student,
        teacher=teacher,
        views=views(),
        queue_size=QUEUE_SIZE,
        teacher_temperature=temperature,
        seed=seed,
    )
    return fit(model, images, steps, title)


def evaluate(
    features: Features, train_labels: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """Measures top-1 in percent by protocol."""
    train, test = features
    knn = seed_tf.evaluation.knn
    few = []
    for seed in range(5):  # the drawn labels matter: average over five draws
        chosen = seed_tf.evaluation.few_labels(
            train_labels, LABELS_PER_CLASS, seed
        )
        bank = train[chosen], train_labels[chosen]
        few.append(knn(bank, (test, test_labels), k=5))
    probe = seed_tf.evaluation.linear_probe(
        (train, train_labels),
        (test, test_labels),
        learning_rate=10.0,
        standardize=True,
    )
    every = knn((train, train_labels), (test, test_labels))
    return {
        "k-NN": 100 * every,
        f"k-NN, {LABELS_PER_CLASS} labels per class": 100 * float(np.mean(few)),
        "linear probe": 100 * probe.accuracy,
    }


def train_all(
    settings: Settings,
) -> tuple[
    dict[str, dict[str, list[float]]],
    dict[str, History],
    dict[str, Features],
    tuple[np.ndarray, ...],
]:
    """Trains and evaluates; returns results, histories, features and data."""
    images, labels = seed_tf.datasets.digits("train", image_size=IMAGE_SIZE)
    test_images, test_labels = seed_tf.datasets.digits(
        "test", image_size=IMAGE_SIZE
    )
    results: dict[str, dict[str, list[float]]] = {}
    histories: dict[str, History] = {}
    features: dict[str, Features] = {}
    trainings = 1 + settings.seeds * (1 + len(settings.teacher_temperature))
    stages = (f"[{i}/{trainings}] " for i in range(1, trainings + 1))

    def record(name, train, test, history=None):
        scores = evaluate((train, test), labels, test_labels)
        for protocol, value in scores.items():
            results.setdefault(name, {}).setdefault(protocol, []).append(value)
        features.setdefault(name, (train, test))
        if history:
            histories.setdefault(name, history)
        print("  " + ", ".join(f"{k} {v:.1f}" for k, v in scores.items()))

    def record_encoder(name, encoder, history=None):
        embed = seed_tf.evaluation.embed
        record(
            name, embed(encoder, images), embed(encoder, test_images), history
        )

    flat = [
        x.reshape(len(x), -1).astype("float32") for x in (images, test_images)
    ]
    print(f"{len(images)} images to train on, {len(test_images)} to test on")
    print("\nRaw pixels")
    record("raw pixels", *flat)
    teacher = build_encoder(TEACHER_WIDTHS, seed=0)
    steps = settings.teacher_steps
    size = f"{teacher.backbone.count_params():,} parameters"
    title = f"{next(stages)}Teacher: MoCo v2, {size}"
    record_encoder(
        "teacher", teacher, train_alone(teacher, images, steps, 0, title)
    )
    for seed in range(1, settings.seeds + 1):
        student = build_encoder(STUDENT_WIDTHS, seed)
        size = f"{student.backbone.count_params():,} parameters, seed {seed}"
        print(f"\nUntrained student, {size}")
        record_encoder("untrained student", student)
        title = f"{next(stages)}Student alone: MoCo v2, {size}"
        steps = settings.student_steps
        record_encoder(
            "MoCo v2 alone",
            student,
            train_alone(student, images, steps, seed, title),
        )
        for temperature in settings.teacher_temperature:
            student = build_encoder(STUDENT_WIDTHS, seed)
            name = f"SEED, teacher temperature {temperature:g}"
            title = f"{next(stages)}{name}, {size}"
            record_encoder(
                name,
                student,
                distil(
                    *(student, teacher, images, settings.student_steps),
                    *(temperature, seed, title),
                ),
            )
    return (
        results,
        histories,
        features,
        (images, labels, test_images, test_labels),
    )


def show(
    settings: Settings,
    results: Mapping[str, Mapping[str, list[float]]],
    histories: Mapping[str, History],
    features: Mapping[str, Features],
    data: Sequence[np.ndarray],
    seconds: float,
) -> None:
    """Writes summary.json, results.png and report.html; prints the table."""
    images, labels, test_images, test_labels = data
    rows: list[dict[str, Any]] = [
        {"encoder": name}
        | {
            k: (np.mean(v), np.std(v)) if len(v) > 1 else v[0]
            for k, v in r.items()
        }
        for name, r in results.items()
    ]
    columns = list(rows[0])
    alone = "MoCo v2 alone"
    distilled = f"SEED, teacher temperature {settings.teacher_temperature[0]:g}"
    pair = [alone, distilled]
    colours = figures.palette(results)
    bars = figures.bars(results, colours=colours)
    bars.savefig(os.path.join(settings.output, "results.png"))
    seeds = [name for name in histories if name.startswith("SEED")]
    health = {
        "loss": "loss (nats)",
        "gap": "gap: KL to the target (nats)",
        "teacher_neighbours": "neighbours in the target",
        "cosine": "cosine to the teacher",
        "spread": "spread of embeddings",
        "gradient_norm": "gradient norm",
    }
    chosen = np.random.default_rng(0).choice(len(test_images), 8, replace=False)
    nearest = {
        name: (
            images,
            seed_tf.evaluation.nearest_neighbours(
                features[name][0], features[name][1][chosen], 8
            )[1],
        )
        for name in pair
    }
    described = (
        f"Teacher: {settings.teacher_steps} steps. Every student: "
        f"{settings.student_steps} steps of {BATCH_SIZE} images, queue "
        f"{QUEUE_SIZE}, the same views, start and order of images; "
        f"{settings.seeds} seeds, mean and standard deviation. k-NN with few "
        "labels is an average over five draws of labels. "
        f"{duration(seconds)} in all."
    )
    pages.write_page(
        os.path.join(settings.output, "report.html"),
        "A small encoder, alone and distilled",
        [
            (
                "Top-1 accuracy, %",
                "Handwritten digits, 1,297 to train on without labels, 500 "
                f"others to test on. {described}",
                tables.table(rows, columns, fmt="html"),
                bars,
            ),
            (
                "Training the students alone",
                "Contrastive training: the loss must stay below "
                f"log({QUEUE_SIZE + 1}) = {np.log(QUEUE_SIZE + 1):.2f}, where "
                "every image looks alike.",
                figures.curves(
                    {n: histories[n] for n in ("teacher", alone)},
                    ["loss", "accuracy", "spread"],
                    every=LOGGED_EVERY,
                    xlabel="step",
                    colours=colours,
                ),
            ),
            (
                "Distilling",
                "The loss contains the entropy of the target; the gap does "
                "not. The gap levels off above 0: the student's temperature "
                "limits how sharp its distribution can be.",
                figures.curves(
                    {n: histories[n] for n in seeds},
                    health,
                    every=LOGGED_EVERY,
                    xlabel="step",
                    colours=colours,
                ),
            ),
            (
                "The test images as the encoders see them",
                "t-SNE of pooled features. Compare neighbours within a map, "
                "not the distances between clusters.",
                figures.embedding_map(
                    {n: features[n][1] for n in ("teacher", *pair)}, test_labels
                ),
            ),
            (
                "Nearest neighbours",
                "Test images and their most similar training images. "
                "Green: the same digit. Red: another.",
                figures.neighbours(
                    test_images[chosen],
                    nearest,
                    query_labels=test_labels[chosen],
                    bank_labels=labels,
                ),
            ),
        ],
    )
    summary = {
        "seconds": round(seconds),
        "flags": dataclasses.asdict(settings),
        "top1_percent": results,
    }
    with open(os.path.join(settings.output, "summary.json"), "w") as f:
        json.dump(summary, f, indent=2)
    print(f"\nTop-1 accuracy, %, after {duration(seconds)}\n")
    print(tables.table(rows, columns))
    print(f"\nPictures: {os.path.join(settings.output, 'report.html')}")


def run(settings: Settings) -> None:
    """Runs the study, and writes its results to a folder."""
    os.makedirs(settings.output, exist_ok=True)
    start = time.monotonic()
    results, histories, features, data = train_all(settings)
    seconds = time.monotonic() - start
    show(settings, results, histories, features, data, seconds)
