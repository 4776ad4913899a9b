"""Runs the study of the command quickstart."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

import seed_tf
from seed_tf.cli.quickstart_settings import Settings
from seed_tf.io.units import duration
from seed_tf.reporting import figures, pages, tables
from seed_tf.training import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, Mapping[str, list[float]]]
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
ALONE = "MoCo v2 alone"


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


def fit(model: keras.Model, steps: int, title: str) -> History:
    """Trains with the paper's schedule; returns means of LOGGED_EVERY steps."""
    print(f"\n{title}", flush=True)
    stage = title.split()[0]
    epochs = -(-steps // LOGGED_EVERY)
    data = seed_tf.datasets.load(
        "digits",
        image_size=IMAGE_SIZE,
        batch_size=BATCH_SIZE,
        seed=model.seed,
        epochs=epochs * LOGGED_EVERY,  # more than are read
    )
    schedule = seed_tf.training.warmup_cosine(
        batch_size=BATCH_SIZE,
        steps_per_epoch=LOGGED_EVERY,
        epochs=epochs,
        warmup_epochs=epochs / 20,
        rate_per_256=RATE_PER_256,
    )
    model.compile(seed_tf.training.SGD(schedule))
    progress = Progress(
        epochs * LOGGED_EVERY,
        BATCH_SIZE,
        every=5,
        log=lambda line: print(f"{stage}{line}", flush=True),
    )
    return model.fit(
        data,
        steps_per_epoch=LOGGED_EVERY,
        epochs=epochs,
        verbose=0,
        callbacks=[progress],
    ).history


def fit_all(
    models: Sequence[keras.Model], steps: int, titles: Sequence[str]
) -> Generator[History, None, None]:
    """Trains models, two at a time; yields their histories in order.

    The operations of a model this small keep one core busy.
    """
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        try:
            yield from pool.map(
                lambda model, title: fit(model, steps, title), models, titles
            )
        except BaseException:  # e.g. Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            for model in models:
                model.stop_training = True
            raise


def views() -> seed_tf.views.View:
    """Augments digits. Mirroring or a small crop would change the sign."""
    return seed_tf.views.moco_v2(IMAGE_SIZE, scale=(0.4, 1.0), flip=False)


def alone(encoder: seed_tf.Encoder, seed: int) -> seed_tf.MoCo:
    """The model that trains an encoder with MoCo v2."""
    return seed_tf.MoCo(
        encoder, views=views(), queue_size=QUEUE_SIZE, momentum=0.99, seed=seed
    )


def distilled(
    student: seed_tf.Encoder,
    teacher: seed_tf.Encoder,
    temperature: float,
    seed: int,
) -> seed_tf.SEED:
    """The model that distils a student."""
    return seed_tf.SEED(
        student=student,
        teacher=teacher,
        views=views(),
        queue_size=QUEUE_SIZE,
        teacher_temperature=temperature,
        seed=seed,
    )


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

    def record(title, name, train, test, history=None):
        scores = evaluate((train, test), labels, test_labels)
        for protocol, value in scores.items():
            results.setdefault(name, {}).setdefault(protocol, []).append(value)
        features.setdefault(name, (train, test))
        if history:
            histories.setdefault(name, history)
        line = ", ".join(f"{k} {v:.1f}" for k, v in scores.items())
        print(f"\n{title}:\n  {line}", flush=True)

    def record_encoder(title, name, encoder, history=None):
        embed = seed_tf.evaluation.embed
        pair = embed(encoder, images), embed(encoder, test_images)
        record(title, name, *pair, history)

    flat = [
        x.reshape(len(x), -1).astype("float32") for x in (images, test_images)
    ]
    print(f"{len(images)} images to train on, {len(test_images)} to test on")
    record("Raw pixels", "raw pixels", *flat)
    total = 1 + settings.seeds * (1 + len(settings.teacher_temperature))
    teacher = build_encoder(TEACHER_WIDTHS, seed=0)
    size = f"{teacher.backbone.count_params():,} parameters"
    title = f"[1/{total}] Teacher: MoCo v2, {size}"
    model = alone(teacher, seed=0)
    history = fit(model, settings.teacher_steps, title)
    record_encoder(title, "teacher", teacher, history)

    students: list[tuple[str, seed_tf.Encoder, keras.Model, str]] = []
    for seed in range(1, settings.seeds + 1):
        for temperature in (None, *settings.teacher_temperature):
            student = build_encoder(STUDENT_WIDTHS, seed)
            if temperature is None:
                name, model = ALONE, alone(student, seed)
            else:
                name = distilled_at(temperature)
                model = distilled(student, teacher, temperature, seed)
            size = f"{student.backbone.count_params():,} parameters"
            number = f"[{len(students) + 2}/{total}]"
            title = f"{number} {name}, {size}, seed {seed}"
            students.append((name, student, model, title))
    names, encoders, models, titles = zip(*students, strict=True)
    trained = fit_all(models, settings.student_steps, titles)
    with contextlib.closing(trained):  # ends the threads after an error
        for i, history in enumerate(trained):
            if names[i] == ALONE:
                untrained = build_encoder(STUDENT_WIDTHS, models[i].seed)
                title = f"Untrained student, seed {models[i].seed}"
                record_encoder(title, "untrained student", untrained)
            record_encoder(titles[i], names[i], encoders[i], history)
            if i == 1:
                draw(settings, results)
                print(
                    "\nFirst comparison, of one seed; see results.png. Top-1 "
                    f"accuracy, %\n\n{table(results)}",
                    flush=True,
                )
    return (
        results,
        histories,
        features,
        (images, labels, test_images, test_labels),
    )


def distilled_at(temperature: float) -> str:
    """The name of students that are distilled at a temperature."""
    return f"SEED, teacher temperature {temperature:g}"


def table(results: Results, **options: str) -> str:
    """Mean accuracies by encoder, with standard deviations over seeds."""
    rows = [
        {"encoder": name}
        | {
            k: (np.mean(v), np.std(v)) if len(v) > 1 else v[0]
            for k, v in scores.items()
        }
        for name, scores in results.items()
    ]
    return tables.table(rows, list(rows[0]), **options)


def draw(settings: Settings, results: Results) -> Figure:
    """Draws the accuracies, and writes results.png."""
    bars = figures.bars(results, colours=figures.palette(results))
    bars.savefig(os.path.join(settings.output, "results.png"))
    return bars


def show(
    settings: Settings,
    results: Results,
    histories: Mapping[str, History],
    features: Mapping[str, Features],
    data: Sequence[np.ndarray],
    seconds: float,
) -> None:
    """Writes summary.json, results.png and report.html; prints the table."""
    images, labels, test_images, test_labels = data
    pair = [ALONE, distilled_at(settings.teacher_temperature[0])]
    colours = figures.palette(results)
    bars = draw(settings, results)
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
                table(results, fmt="html"),
                bars,
            ),
            (
                "Training the students alone",
                "Contrastive training: the loss must stay below "
                f"log({QUEUE_SIZE + 1}) = {np.log(QUEUE_SIZE + 1):.2f}, where "
                "every image looks alike.",
                figures.curves(
                    {n: histories[n] for n in ("teacher", ALONE)},
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
    print(table(results))
    print(f"\nPictures: {os.path.join(settings.output, 'report.html')}")


def run(settings: Settings) -> None:
    """Runs the study, and writes its results to a folder."""
    os.makedirs(settings.output, exist_ok=True)
    start = time.monotonic()
    results, histories, features, data = train_all(settings)
    seconds = time.monotonic() - start
    show(settings, results, histories, features, data, seconds)
