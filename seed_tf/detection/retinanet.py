"""The detector: KerasCV's RetinaNet on an encoder's backbone."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from seed_tf.arguments import integer
from seed_tf.detection.pyramid import Pyramid
from seed_tf.encoders import Encoder
from seed_tf.io.pipelines import steady


def detector(
    encoder: keras.Model,
    num_classes: int,
    *,
    smallest_anchor: float = 32.0,
    frozen_norm: bool = True,
) -> keras.Model:
    """Builds a RetinaNet with new heads on a copy of an encoder's backbone.

    Feature pyramid, heads and anchors are KerasCV's: nine anchors per
    position, at strides 8 to 128.

    Args:
        encoder: `Encoder`, used without its head and with its normalisation,
            or a keras.Model of images `[B, H, W, 3]` in [0, 255].
        num_classes: positive int.
        smallest_anchor: float, side in pixels of the smallest anchor, at
            stride 8; the side doubles with the stride. RetinaNet's 32 suits
            images of 500 pixels and more. No anchor matches an object that is
            much smaller than the smallest anchor.
        frozen_norm: bool, keep statistics, scales and offsets of all BatchNorm
            layers of the backbone, as Detectron does: a few images per batch
            are too few to estimate statistics. Use False for a backbone with
            random weights.

    Returns:
        `keras_cv.models.RetinaNet` of float images in [0, 255], with sides
        that are multiples of 32. All other weights are trainable.

    Raises:
        ValueError: if an argument is out of range, or `Pyramid` refuses the
            backbone.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017;
    He et al., "Rethinking ImageNet Pre-training", ICCV 2019, on BatchNorm.

    Example:

    >>> encoder = seed_tf.Encoder("resnet18")
    >>> model = seed_tf.detection.detector(encoder, num_classes=20)
    >>> model.bounding_box_format
    'xyxy'
    """
    num_classes = integer("num_classes", num_classes)
    if smallest_anchor <= 0:
        raise ValueError(
            "`smallest_anchor` must be positive. "
            f"Received: smallest_anchor={smallest_anchor}."
        )
    if isinstance(encoder, Encoder):
        rescaling = encoder.rescaling
        pyramid = Pyramid(encoder.backbone, rescaling.scale, rescaling.offset)
    elif isinstance(encoder, keras.Model):
        pyramid = Pyramid(encoder)
    else:
        raise ValueError(
            "`encoder` must be an `Encoder` or a keras.Model. "
            f"Received: encoder={encoder!r}."
        )
    pyramid.trainable = True
    for layer in pyramid.copied.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = not frozen_norm
    import keras_cv

    anchors = keras_cv.layers.AnchorGenerator(
        bounding_box_format="xyxy",
        sizes=[smallest_anchor * 2.0**i for i in range(5)],
        scales=[2 ** (i / 3) for i in range(3)],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
        clip_boxes=True,
    )
    # KerasCV's default decoder keeps one class per box and drops scores below
    # 0.5, but average precision needs the low scores too.
    decoder = keras_cv.layers.MultiClassNonMaxSuppression(
        bounding_box_format="xyxy",
        from_logits=True,
        iou_threshold=0.5,
        confidence_threshold=0.01,
    )
    return keras_cv.models.RetinaNet(
        pyramid,
        num_classes=num_classes,
        bounding_box_format="xyxy",
        anchor_generator=anchors,
        prediction_decoder=decoder,
    )


def detect(
    model: keras.Model,
    images: np.ndarray | tf.data.Dataset,
    *,
    batch_size: int = 16,
) -> dict[str, np.ndarray]:
    """Finds objects, with non-maximum suppression within each class.

    Args:
        model: keras.Model, as `detector` returns it.
        images: `[N, S, S, 3]` in [0, 255], or a data set, see
            `seed_tf.detection`.
        batch_size: positive int.

    Returns:
        Dict of arrays with at most K = 100 detections per image, the best
        first: "boxes" `[N, K, 4]`, "classes" `[N, K]`, -1 as padding, and
        "confidence" `[N, K]` in [0, 1].
    """
    if isinstance(images, tf.data.Dataset):
        images = images.map(lambda image, _: image)
    else:
        images = tf.data.Dataset.from_tensor_slices(images)

    @tf.function(reduce_retracing=True)
    def step(batch):
        raw = model({"images": batch}, training=False)
        return model.decode_predictions(raw, batch)

    found = [
        step(tf.cast(batch, tf.float32))
        for batch in steady(images).batch(batch_size)
    ]
    return {
        k: np.concatenate([ops.convert_to_numpy(f[k]) for f in found])
        for k in ("boxes", "classes", "confidence")
    }
