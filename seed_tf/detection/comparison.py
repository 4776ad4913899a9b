"""Encoders compared as the backbones of detectors: table and picture."""

import keras
import numpy as np
from absl import logging
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from seed_tf.detection.boxes import check_images
from seed_tf.detection.coco import (
    METRICS,
    evaluate_detector,
    import_pycocotools,
)
from seed_tf.detection.retinanet import (
    detect,
    detector,
)
from seed_tf.detection.training import fine_tune_detector
from seed_tf.evaluation.results import Results


def compare(
    starts,
    train,
    test,
    *,
    num_classes,
    seeds,
    frozen_norm=(),
    smallest_anchor=32.0,
    num_pictures=6,
    log=logging.info,
    **training,
):
    """Fine-tunes and judges a detector of each start and seed.

    Heads, order and flips of a seed are the same for all starts.

    Args:
        starts: dict of names to functions of a seed to an encoder.
        train: data set to fine-tune on, see `seed_tf.detection`.
        test: data set to judge by.
        num_classes: int.
        seeds: ints.
        frozen_norm: names of the starts whose BatchNorm is kept.
        smallest_anchor: see `detector`.
        num_pictures: int, images of `test` for a picture.
        log: function of one str, called with lines of progress.
        **training: as of `fine_tune_detector`.

    Returns:
        Scores for `table`, and images and detections for `drawn_detections`.
        These are of the first seed, below the truth.

    Raises:
        ValueError: at once, if images or classes do not fit, or pycocotools
            is not installed.
    """
    import_pycocotools()
    for data in (train, test):
        check_images(data, num_classes)
    images, truth = zip(
        *test.take(num_pictures).as_numpy_iterator(), strict=True
    )
    images = np.stack(images)
    drawn = {"truth": {k: [t[k] for t in truth] for k in truth[0]}}
    scores = {name: [] for name in starts}
    for seed in seeds:
        for name, start in starts.items():
            log(f"\n{name}, seed {seed}")
            encoder = start(seed)
            keras.utils.set_random_seed(seed)  # the same heads for all
            model = detector(
                encoder,
                num_classes,
                smallest_anchor=smallest_anchor,
                frozen_norm=name in frozen_norm,
            )
            fine_tune_detector(model, train, seed=seed, log=log, **training)
            metrics = evaluate_detector(model, test)
            log(", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
            scores[name].append(metrics)
            drawn.setdefault(name, detect(model, images))
    return scores, images, drawn


def drawn_detections(images, detections, *, names=None, threshold=0.5):
    """Images and what was found in them, with class and confidence in %.

    Args:
        images: `[N, S, S, 3]` uint8.
        detections: dict of names of detectors to dicts as `detect` gives, or
            to a truth (without "confidence", all of it is drawn).
        names: list of str, by class.
        threshold: float, the least confidence drawn.

    Returns:
        Figure: a row per detector, a column per image.
    """
    images = np.asarray(images)
    rows, columns = len(detections), len(images)
    figure = Figure((1.7 * columns, 1.9 * rows), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for panels, (title, found) in zip(grid, detections.items(), strict=True):
        for i, (axes, image) in enumerate(zip(panels, images, strict=True)):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            confidence = found.get("confidence", np.ones_like(found["classes"]))
            for box, label, score in zip(
                found["boxes"][i],
                found["classes"][i],
                confidence[i],
                strict=True,
            ):
                if label < 0 or score < threshold:
                    continue
                colour = f"C{int(label) % 10}"
                x1, y1, x2, y2 = box
                axes.add_patch(
                    Rectangle(
                        (x1, y1),
                        x2 - x1,
                        y2 - y1,
                        fill=False,
                        ec=colour,
                        lw=1.5,
                    )
                )
                text = names[int(label)] if names else f"{int(label)}"
                if "confidence" in found:
                    text += f" {100 * score:.0f}"
                axes.text(
                    x1,
                    y1,
                    text,
                    fontsize=6,
                    va="bottom",
                    color="w",
                    bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
                )
        panels[0].set_ylabel(title, fontsize=8)
    return figure


def table(scores, fmt="text"):
    """Renders scores: means, with several runs and standard deviations, in %.

    Args:
        scores: dict of encoders' names to lists, over seeds, of dicts as
            `evaluate_detector` gives.
        fmt: see `seed_tf.reporting.tables.table`.

    Returns:
        str.
    """
    return _results(scores).table(fmt)


def write_results(folder, scores, images, detections, **drawing):
    """Writes results.json, .csv, .md and .png, and detections.png.

    These are files as of `seed-tf evaluate`, which would overwrite them:
    give a folder of their own.

    Args:
        folder: str, made if missing.
        scores: see `table`.
        images, detections, **drawing: see `drawn_detections`.

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
