"""COCO's metrics, by its authors' own code."""

import contextlib
import io

import numpy as np

from seed_tf.detection.boxes import check_images
from seed_tf.detection.retinanet import detect
from seed_tf.io.extras import extra

METRICS = ("AP", "AP50", "AP75")


def import_pycocotools():
    """The modules `coco` and `cocoeval` of pycocotools.

    Raises:
        ValueError: if it is not installed. Call it before any training.
    """
    with extra("detection", "COCO's metrics"):
        from pycocotools import coco, cocoeval
    return coco, cocoeval


def evaluate_detector(model, test, *, batch_size=16):
    """COCO's metrics of a detector on a data set.

    Args:
        model: of `detector`.
        test: data set, see `seed_tf.detection`.
        batch_size: positive int.

    Returns:
        Dict of "AP", "AP50" and "AP75", see `coco_metrics`.
    """
    check_images(test, model.num_classes)
    objects = [o for _, o in test.batch(256).as_numpy_iterator()]
    truth = {k: np.concatenate([o[k] for o in objects]) for k in objects[0]}
    return coco_metrics(truth, detect(model, test, batch_size=batch_size))


def coco_metrics(truth, detections):
    """Average precision as COCO defines it, by its authors' own code.

    Sizes of objects do not matter here, so images may have been resized.
    KerasCV's `BoxCOCOMetrics` leaves images without any detection out, and
    with them the objects that were missed.

    Args:
        truth: dict of "boxes" `[N, M, 4]`, "classes" `[N, M]` and, where there
            are any, "crowd" `[N, M]`, see `seed_tf.detection`.
        detections: dict of "boxes" `[N, K, 4]`, "classes" `[N, K]` and
            "confidence" `[N, K]`; the best 100 of an image count.

    Returns:
        Dict of "AP", mean over overlaps of 0.50, 0.55, ... 0.95 and over the
        classes that occur, "AP50" and "AP75", at those overlaps; in [0, 1].

    Raises:
        ValueError: if there is no object, the numbers of images differ, or
            pycocotools is not installed.

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
            "`truth` and `detections` must be of the same images. "
            f"Received: {len(classes)} and {len(found)} images."
        )
    crowd = np.asarray(truth.get("crowd", np.zeros(classes.shape, bool)))
    if not ((classes >= 0) & ~crowd).any():
        raise ValueError(
            "`truth` has no objects: average precision is not defined."
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
                "id": n,  # 0 would mean that nothing matches
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
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        coco.createIndex()
        evaluation = cocoeval.COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, map(float, evaluation.stats[:3]), strict=True))


def _corner_and_size(boxes):
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)
