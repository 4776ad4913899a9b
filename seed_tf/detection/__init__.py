"""Detection: an encoder's backbone in a KerasCV RetinaNet, by COCO's metrics.

Boxes are `(x1, y1, x2, y2)` in pixels of the image that the network sees. A
data set here is a `tf.data.Dataset` of single images `[S, S, 3]` and a dict of
their objects, padded to a common number M:

- "boxes": `[M, 4]` float32, -1 where there is none;
- "classes": `[M]` float32, 0, 1, ..., or -1 where there is none;
- "crowd": `[M]` bool, objects that are not trained on, and neither missed nor
  found in evaluation: COCO's crowds, VOC's difficult ones.
"""

from seed_tf.detection.boxes import (
    flip_images,
    load_boxes,
    resize,
)
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
from seed_tf.detection.pyramid import (
    Pyramid,
    pyramid_maps,
)
from seed_tf.detection.retinanet import (
    detect,
    detector,
)
from seed_tf.detection.training import fine_tune_detector

__all__ = [
    "METRICS",
    "Pyramid",
    "import_pycocotools",
    "coco_metrics",
    "compare",
    "detect",
    "detector",
    "drawn_detections",
    "evaluate_detector",
    "fine_tune_detector",
    "flip_images",
    "load_boxes",
    "pyramid_maps",
    "resize",
    "table",
    "write_results",
]
