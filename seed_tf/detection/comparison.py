"""Compares encoders as backbones of detectors: table and picture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from seed_tf.detection.boxes import check_images
from seed_tf.detection.coco import (
    METRICS,
    evaluate_detector,
    import_pycocotools,
)
from seed_tf.detection.retinanet import detect, detector
from seed_tf.detection.training import fine_tune_detector
from seed_tf.evaluation.results import Results
from seed_tf.io.pipelines import steady
from seed_tf.reporting import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = Mapping[str, Sequence[Mapping[str, float]]]
Detections = Mapping[str, Mapping[str, Any]]


def compare(
    encoders: Mapping[str, Callable[[int], keras.Model]],
    train: tf.data.Dataset,
    test: tf.data.Dataset,
    *,
    num_classes: int,
    seeds: Iterable[int],
    frozen_norm: Collection[str] = (),
    smallest_anchor: float = 32.0,
    num_pictures: int = 6,
    save: Callable[[str, int, keras.Model], None] | None = None,
    log: Callable[[str], None] = logging.info,
    **training: Any,
) -> tuple[
    dict[str, list[dict[str, float]]], np.ndarray, dict[str, dict[str, Any]]
]:
    """Fine-tunes and evaluates a detector for each encoder and seed.

    With one seed, all encoders get the same heads, order and flips.

    Args:
        encoders: dict of names to functions that take a seed and return an
            encoder.
        train: data set to fine-tune on, see `seed_tf.detection`.
        test: data set to evaluate on.
        num_classes: int.
        seeds: ints.
        frozen_norm: names of the encoders whose BatchNorm layers stay fixed.
        smallest_anchor: float, see `detector`.
        num_pictures: int, number of `test` images in the picture.
        save: None, or a function of an encoder's name, a seed and the trained
            detector.
        log: function of one str, called with the progress.
        **training: further arguments of `fine_tune_detector`.

    Returns:
        Scores for `table`; images for `drawn_detections`; and detections for
        `drawn_detections`: the truth, then those of every encoder with the
        first seed.

    Raises:
        ValueError: before training, if images or classes do not fit, or
            pycocotools is not installed.
    """
    import_pycocotools()
    for data in (train, test):
        check_images(data, num_classes)
    pictures, truth = zip(
        *steady(test).take(num_pictures).as_numpy_iterator(), strict=True
    )
    images = np.stack(pictures)
    drawn: dict[str, dict[str, Any]] = {
        "truth": {k: [t[k] for t in truth] for k in truth[0]}
    }
    scores: dict[str, list] = {name: [] for name in encoders}
    for seed in seeds:
        for name, encoder in encoders.items():
            log(f"\n{name}, seed {seed}")
            start = encoder(seed)
            keras.utils.set_random_seed(seed)  # the same heads for all
            model = detector(
                start,
                num_classes,
                smallest_anchor=smallest_anchor,
                frozen_norm=name in frozen_norm,
            )
            fine_tune_detector(model, train, seed=seed, log=log, **training)
            metrics = evaluate_detector(model, test)
            log(", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
            scores[name].append(metrics)
            if save is not None:
                save(name, seed, model)
            drawn.setdefault(name, detect(model, images))
    return scores, images, drawn


@figures.styled
def drawn_detections(
    images: np.ndarray,
    detections: Detections,
    *,
    names: Sequence[str] | None = None,
    threshold: float = 0.5,
) -> Figure:
    """Draws detections on images, with class and confidence in percent.

    Args:
        images: `[N, S, S, 3]` uint8.
        detections: dict of titles to dicts as `detect` returns them, or as
            the truth: a dict without "confidence" is drawn as a whole.
        names: list of str, names of the classes; None for their numbers.
        threshold: float, the least confidence to draw.

    Returns:
        Matplotlib figure with a row per title and a column per image.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    images = np.asarray(images)
    rows, columns = len(detections), len(images)
    figure = Figure((1.7 * columns, 1.9 * rows), dpi=110)
    grid = figure.subplots(rows, columns, squeeze=False)
    for panels, (title, found) in zip(grid, detections.items(), strict=True):
        for i, (axes, image) in enumerate(zip(panels, images, strict=True)):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            confidence = found.get("confidence", np.ones_like(found["classes"]))
            parts = found["boxes"][i], found["classes"][i], confidence[i]
            for box, label, score in zip(*parts, strict=True):
                if label < 0 or score < threshold:
                    continue
                colour = f"C{int(label) % 10}"
                x1, y1, x2, y2 = box
                style: dict[str, Any] = {"fill": False, "ec": colour, "lw": 1.5}
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))
                text = names[int(label)] if names else f"{int(label)}"
                if "confidence" in found:
                    text += f" {100 * score:.0f}"
                frame = {"facecolor": colour, "edgecolor": "none", "pad": 0.6}
                style = {"fontsize": 6, "va": "bottom", "color": "w"}
                axes.text(x1, y1, text, bbox=frame, **style)
        panels[0].set_ylabel(title, fontsize=8)
    return figure


def table(scores: Scores, fmt: str = "text") -> str:
    """Renders scores in percent: the mean and standard deviation over seeds.

    Args:
        scores: dict of encoders' names to lists, over seeds, of dicts as
            `evaluate_detector` returns them. A single seed has no deviation.
        fmt: see `seed_tf.reporting.tables.table`.
    """
    return _results(scores).table(fmt)


def write_results(
    folder: str,
    scores: Scores,
    images: np.ndarray,
    detections: Detections,
    **drawing: Any,
) -> None:
    """Writes results.json, .csv, .md and .png, and detections.png.

    Evaluation of features writes files of the same names: choose another
    folder.

    Args:
        folder: str, created if missing.
        scores: see `table`.
        images, detections, **drawing: arguments of `drawn_detections`.

    Raises:
        OSError: if a file cannot be written.
    """
    figure = drawn_detections(images, detections, **drawing)
    _results(scores, {"detections": figure}).write(folder)


def _results(scores, pictures=()):
    percent = {
        name: {m: [100 * run[m] for run in runs] for m in METRICS}
        for name, runs in scores.items()
    }
    return Results(percent, pictures)
