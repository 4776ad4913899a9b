"""COCO's metrics, by its authors' own code."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from types import ModuleType

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from seed_tf.detection.boxes import check_images, checked
from seed_tf.detection.retinanet import detect
from seed_tf.io.extras import extra

METRICS = ("AP", "AP50", "AP75")


def import_pycocotools() -> tuple[ModuleType, ModuleType]:
    """Imports the modules `coco` and `cocoeval` of pycocotools.

    Call this before training, so that a missing package costs no time.

    Raises:
        ValueError: if pycocotools is not installed.
    """
    with extra("detection", "COCO's metrics"):
        from pycocotools import coco, cocoeval
    return coco, cocoeval


def evaluate_detector(
    model: keras.Model, test: tf.data.Dataset, *, batch_size: int = 16
) -> dict[str, float]:
    """Computes COCO's metrics of a detector on a data set.

    Args:
        model: keras.Model, as `detector` returns it.
        test: data set, see `seed_tf.detection`.
        batch_size: positive int.

    Returns:
        Dict of "AP", "AP50" and "AP75", see `coco_metrics`.
    """
    check_images(test, model.num_classes)
    with checked(test, model.num_classes) as samples:
        objects = [o for _, o in samples.batch(256).as_numpy_iterator()]
    truth = {k: np.concatenate([o[k] for o in objects]) for k in objects[0]}
    return coco_metrics(truth, detect(model, test, batch_size=batch_size))


def coco_metrics(
    truth: Mapping[str, npt.ArrayLike], detections: Mapping[str, npt.ArrayLike]
) -> dict[str, float]:
    """Computes average precision as COCO defines it, by its authors' code.

    These metrics do not depend on the sizes of objects, so images may be
    resized. KerasCV's `BoxCOCOMetrics` is no substitute: it ignores images
    without detections, and the objects missed there.

    Args:
        truth: dict of "boxes" `[N, M, 4]`, "classes" `[N, M]` and optionally
            "crowd" `[N, M]`, see `seed_tf.detection`.
        detections: dict of "boxes" `[N, K, 4]`, "classes" `[N, K]` and
            "confidence" `[N, K]`. The best 100 of each image count.

    Returns:
        Dict of floats in [0, 1]: "AP", the mean over overlaps of 0.50, 0.55,
        ... 0.95 and over the classes that occur; "AP50" and "AP75", at an
        overlap of 0.50 and of 0.75.

    Raises:
        ValueError: if `truth` has no objects, the numbers of images differ,
            or pycocotools is not installed.

    Source: Lin et al., "Microsoft COCO", ECCV 2014; pycocotools.

    Example:

    >>> truth = {"boxes": [[[0, 0, 10, 10]]], "classes": [[0]]}
    >>> found = {"boxes": [[[0, 0, 10, 6]]], "classes": [[0]]}
    >>> ap = coco_metrics(truth, found | {"confidence": [[0.9]]})["AP50"]
    >>> round(ap, 6)
    1.0
    """
    pycoco, cocoeval = import_pycocotools()
    classes = np.asarray(truth["classes"])
    found = np.asarray(detections["classes"])
    if len(classes) != len(found):
        raise ValueError(
            "`truth` and `detections` must have one row per image. "
            f"Received: {len(classes)} and {len(found)} images."
        )
    crowd = np.asarray(truth.get("crowd", np.zeros(classes.shape, bool)))
    if not ((classes >= 0) & ~crowd).any():
        raise ValueError(
            "`truth` must have at least one object: average precision is not "
            "defined without. Received: none."
        )
    image, place = np.nonzero(classes >= 0)
    boxes = _corner_and_size(truth["boxes"])[image, place]
    coco = pycoco.COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(classes))],
        "categories": [
            {"id": int(c)} for c in np.unique(classes[image, place])
        ],
        "annotations": [
            {
                "id": n,  # from 1: COCOeval reads 0 as "no match"
                "image_id": int(i),
                "category_id": int(classes[i, j]),
                "bbox": box.tolist(),
                "area": float(box[2] * box[3]),
                "iscrowd": int(crowd[i, j]),
            }
            for n, (i, j, box) in enumerate(
                zip(image, place, boxes, strict=True), 1
            )
        ],
    }
    image, place = np.nonzero(found >= 0)
    if not len(image):
        return dict.fromkeys(METRICS, 0.0)
    results = np.column_stack(
        [
            image,
            _corner_and_size(detections["boxes"])[image, place],
            np.asarray(detections["confidence"])[image, place],
            found[image, place],
        ]
    )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco.createIndex()
        evaluation = cocoeval.COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, map(float, evaluation.stats[:3]), strict=True))


def _corner_and_size(boxes):
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)
