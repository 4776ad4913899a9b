"""Object detection: an encoder as the backbone of a KerasCV RetinaNet.

Boxes are `(x1, y1, x2, y2)` in pixels of the image that the network sees. A
data set of this package is a `tf.data.Dataset` of single images `[S, S, 3]`,
each with a dict of its objects, padded to a common number M:

- "boxes": `[M, 4]` float32, -1 as padding;
- "classes": `[M]` float32, 0, 1, ..., and -1 as padding;
- "crowd": `[M]` bool, True for objects that training ignores and evaluation
  counts neither as missed nor as found: COCO's crowds, VOC's difficult objects.
"""

from seed_tf.detection.box_files import load_box_files
from seed_tf.detection.boxes import flip_images, load_boxes, resize
from seed_tf.detection.coco import (
    METRICS,
    coco_metrics,
    evaluate_detector,
    import_pycocotools,
)
from seed_tf.detection.comparison import (
    compare,
    drawn_detections,
    table,
    write_results,
)
from seed_tf.detection.pyramid import Pyramid, pyramid_maps
from seed_tf.detection.retinanet import detect, detector
from seed_tf.detection.training import fine_tune_detector

__all__ = [
    "METRICS",
    "Pyramid",
    "coco_metrics",
    "compare",
    "detect",
    "detector",
    "drawn_detections",
    "evaluate_detector",
    "fine_tune_detector",
    "flip_images",
    "import_pycocotools",
    "load_box_files",
    "load_boxes",
    "pyramid_maps",
    "resize",
    "table",
    "write_results",
]
