"""Detection: an encoder's backbone in a KerasCV RetinaNet, by COCO's metrics.

Boxes are `(x1, y1, x2, y2)` in pixels of the image that the network sees. A
data set here is a `tf.data.Dataset` of single images `[S, S, 3]` and a dict of
their objects, padded to a common number M:

- "boxes": `[M, 4]` float32, -1 where there is none;
- "classes": `[M]` float32, 0, 1, ..., or -1 where there is none;
- "crowd": `[M]` bool, objects that are not trained on, and neither missed nor
  found in evaluation: COCO's crowds, VOC's difficult ones.
"""

import contextlib
import io
import json
import math
import os
import time
import warnings

import keras
import keras_cv
import numpy as np
import tensorflow as tf
from absl import logging
from keras import ops
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from seed_tf import stateless
from seed_tf.datasets import sources
from seed_tf.encoders import Encoder
from seed_tf.evaluation import report
from seed_tf.evaluation.linear_probe import DivergenceError
from seed_tf.training.callbacks import duration
from seed_tf.training.optimizer import SGD
from seed_tf.training.schedule import warmup_cosine

STRIDES = {"P3": 8, "P4": 16, "P5": 32}
METRICS = ("AP", "AP50", "AP75")


@keras.saving.register_keras_serializable(package="seed_tf")
class Pyramid(keras.Model):
    """A copy of a backbone that gives its maps at strides 8, 16 and 32.

    Of each stride it is the last map through which the whole network passes:
    a ResNet's stage outputs; of a MobileNet or an EfficientNet the expansion
    before the next stride, as SSDLite takes it, and the last convolution. They
    are found by shape in the graph of layers.

    Args:
        backbone: functional or sequential keras.Model of images
            `[B, H, W, 3]`, without shared layers.
        scale, offset: three floats each: the backbone is given
            `images * scale + offset`.

    Attributes:
        pyramid_level_inputs: dict of "P3", "P4", "P5" to layers' names, what
            KerasCV asks of a backbone.

    Raises:
        ValueError: if the graph is not known, or has no map at a stride.
    """

    def __init__(self, backbone, scale=(1.0,) * 3, offset=(0.0,) * 3, **kwargs):
        copy = _copy(backbone)
        maps = pyramid_maps(copy)
        images = keras.Input(copy.input_shape[1:], name="images")
        x = keras.layers.Rescaling(
            list(scale), list(offset), dtype="float32", name="rescaling"
        )(images)
        maps = keras.Model(copy.inputs, maps, name="backbone")(x)
        levels = {
            level: keras.layers.Identity(dtype="float32", name=level)(y)
            for level, y in maps.items()
        }
        super().__init__(images, levels, **kwargs)
        self.copied = copy
        self.pyramid_level_inputs = {level: level for level in levels}
        self._scale, self._offset = list(scale), list(offset)

    def get_config(self):
        return {
            "name": self.name,
            "backbone": keras.saving.serialize_keras_object(self.copied),
            "scale": self._scale,
            "offset": self._offset,
        }

    @classmethod
    def from_config(cls, config):
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**{**config, "backbone": backbone})


def pyramid_maps(backbone):
    """Symbolic outputs of a backbone's layers at strides 8, 16 and 32.

    Args:
        backbone: see `Pyramid`.

    Returns:
        Dict of "P3", "P4" and "P5" to KerasTensors `[B, H/s, W/s, C]`.

    Raises:
        ValueError: see `Pyramid`.
    """
    maps = _passages(backbone)
    height, width = backbone.input_shape[1:3]
    height, width = height or 256, width or 256
    probe = keras.Model(backbone.inputs, maps).compute_output_spec(
        keras.KerasTensor((1, height, width, 3))
    )
    found = {}
    for tensor, spec in zip(maps, probe, strict=True):
        for level, stride in STRIDES.items():
            size = math.ceil(height / stride), math.ceil(width / stride)
            if spec.shape[1:3] == size:
                found[level] = tensor
    missing = [f"{STRIDES[k]}" for k in STRIDES if k not in found]
    if missing:
        sizes = dict.fromkeys(f"{s.shape[1]} x {s.shape[2]}" for s in probe)
        raise ValueError(
            "`encoder` must have feature maps at strides 8, 16 and 32. "
            f"Received: {backbone.name!r}, which has none at stride "
            f"{', '.join(missing)}: of {height} x {width} pixels it makes maps "
            f'of {", ".join(sizes)}. stem="cifar" leaves out strides: train '
            'with stem="imagenet".'
        )
    return {level: found[level] for level in STRIDES}


def _passages(backbone):
    """4-D outputs that every path from input to output passes, in order."""
    operations = keras.Model(backbone.inputs, backbone.outputs).operations
    place = {id(op.output): i for i, op in enumerate(operations)}
    used = [backbone.outputs, *(op.input for op in operations)]
    if any(id(x) not in place for x in keras.tree.flatten(used)):
        raise ValueError(
            "`encoder` must use each of its layers once. "
            f"Received: {backbone.name!r}, which calls a layer twice."
        )
    # How far the branches reach that leave each place or an earlier one.
    reach = list(range(len(operations)))
    for i, op in enumerate(operations):
        for x in keras.tree.flatten(op.input):
            reach[place[id(x)]] = max(reach[place[id(x)]], i)
    outputs, furthest = [], 0
    for i, op in enumerate(operations):
        if furthest <= i and len(getattr(op.output, "shape", ())) == 4:
            outputs.append(op.output)
        furthest = max(furthest, reach[i])
    return outputs


def _copy(backbone):
    try:
        copy = keras.models.clone_model(backbone)
        copy.set_weights(backbone.get_weights())
        if len(copy.inputs) != 1 or len(copy.outputs) != 1:
            raise ValueError("it has several inputs or outputs")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            "`encoder` must be a functional or sequential keras.Model, or an "
            "`Encoder` with such a backbone. "
            f"Received: {type(backbone).__name__} {backbone.name!r}: {error}"
        ) from error
    return copy


def detector(encoder, num_classes, *, smallest_anchor=32.0, frozen_norm=True):
    """A RetinaNet of fresh heads on a copy of an encoder's backbone.

    KerasCV's feature pyramid, heads and anchors: nine per place, at strides 8
    to 128.

    Args:
        encoder: `Encoder`, whose head is left out and whose normalisation is
            kept, or a keras.Model of images `[B, H, W, 3]` in [0, 255].
        num_classes: positive int.
        smallest_anchor: float, side in pixels of the smallest anchor, at
            stride 8; it doubles with the stride. RetinaNet's 32 is for
            images of 500 pixels and more; an object much smaller than it is
            never matched.
        frozen_norm: bool, keep all BatchNorm layers of the backbone as they
            are, statistics, scales and offsets, as Detectron does: a batch of
            a few images is too small to estimate statistics from. A network
            that starts from scratch has none to keep: give False.

    Returns:
        `keras_cv.models.RetinaNet` of float images in [0, 255], of sides that
        are multiples of 32. All else is trainable. It can be saved.

    Raises:
        ValueError: if an argument is out of range, or see `Pyramid`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017;
    He et al., "Rethinking ImageNet Pre-training", ICCV 2019, on BatchNorm.

    Example:

    >>> encoder = seed_tf.Encoder("resnet18")
    >>> model = seed_tf.evaluation.detection.detector(encoder, num_classes=20)
    >>> model.bounding_box_format
    'xyxy'
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(
            "`num_classes` must be a positive integer. "
            f"Received: num_classes={num_classes!r}."
        )
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
    anchors = keras_cv.layers.AnchorGenerator(
        bounding_box_format="xyxy",
        sizes=[smallest_anchor * 2.0**i for i in range(5)],
        scales=[2 ** (i / 3) for i in range(3)],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
        clip_boxes=True,
    )
    # KerasCV's default decoder keeps one class per box and drops scores below
    # 0.5; average precision needs the low scores too.
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


def fine_tune_detector(
    model,
    train,
    *,
    steps,
    batch_size=16,
    learning_rate=0.01,
    warmup_steps=None,
    momentum=0.9,
    weight_decay=1e-4,
    flip=True,
    seed=0,
    tell=logging.info,
):
    """Trains a detector, in place.

    Focal loss on classes and smooth L1 on boxes, both over the matched
    anchors; SGD with a linear warm-up and a cosine to zero, gradients clipped
    to a norm of 10.

    Args:
        model: of `detector`.
        train: data set of single images, see the module; of any size, it is
            shuffled and repeated.
        steps: positive int.
        batch_size: int, 2 or more.
        learning_rate: float, peak per 16 images; scaled linearly.
        warmup_steps: int, by default a tenth of all, 500 at most.
        momentum: float.
        weight_decay: float, coupled.
        flip: bool, mirror half of the images; not for digits or text.
        seed: int, of order and flips. The heads' start is Keras's own:
            `keras.utils.set_random_seed`.
        tell: function of one str, told of progress and the time left.

    Returns:
        List of floats, the loss of each tenth of the steps.

    Raises:
        ValueError: if arguments or images do not fit.
        DivergenceError: a ValueError, if the loss is not finite.

    Source: RetinaNet's settings (section 4.1), but for the schedule.
    """
    # A step of one image aborts the process: KerasCV 0.9, TensorFlow 2.21, CPU.
    least = {"steps": (steps, 1), "batch_size": (batch_size, 2)}
    for name, (value, minimum) in least.items():
        if not isinstance(value, int) or value < minimum:
            raise ValueError(
                f"`{name}` must be an integer of at least {minimum}. "
                f"Received: {name}={value!r}."
            )
    _check_images(train, model.num_classes)
    if warmup_steps is None:
        warmup_steps = min(500, steps // 10)

    def batch(step, images, objects):
        images = tf.cast(images, tf.float32)
        keep = ~objects["crowd"]
        boxes = tf.where(keep[..., None], objects["boxes"], -1.0)
        classes = tf.where(keep, objects["classes"], -1.0)
        if flip:
            seeds = stateless.image_seeds(seed, step, batch_size)
            drawn = stateless.uniform(seeds, 1)[:, 0] < 0.5
            images, boxes = flip_images(images, boxes, classes, drawn)
        return images, {"boxes": boxes, "classes": classes}

    batches = (
        train.shuffle(2048, seed)
        .repeat()
        .batch(batch_size, drop_remainder=True)
        .enumerate()
        .map(lambda step, data: batch(step, *data), tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    epochs = min(10, steps)
    model.compile(
        optimizer=SGD(
            warmup_cosine(
                batch_size=batch_size,
                steps_per_epoch=1,
                epochs=steps,
                warmup_epochs=warmup_steps,
                rate_per_256=16 * learning_rate,
            ),
            momentum,
            weight_decay,
            global_clipnorm=10.0,
        ),
        classification_loss="focal",
        box_loss="smoothl1",
        jit_compile=False,
    )
    watch = _Watch(steps, epochs, learning_rate, tell)
    with _unnamed_inputs():
        model.fit(
            batches.take(steps),
            shuffle=False,  # done, and Keras warns of its own default
            verbose=0,
            callbacks=[watch],
        )
    return watch.losses


@contextlib.contextmanager
def _unnamed_inputs():
    """Hides Keras's warning that KerasCV gives its named input without name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The structure of `inputs`")
        yield


class _Watch(keras.callbacks.Callback):
    """Tells of every tenth of the steps; stops where the loss is not finite."""

    def __init__(self, steps, parts, learning_rate, tell):
        super().__init__()
        self._ends = [round(steps * i / parts) for i in range(1, parts + 1)]
        self._steps, self._rate, self._tell = steps, learning_rate, tell
        self._start, self._sum, self._count = None, 0.0, 0
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        done = batch + 1
        # Keras's log is the mean since the start.
        total = float(logs["loss"]) * done
        if not math.isfinite(total):
            raise DivergenceError(
                f"Fine-tuning diverged: loss {logs['loss']} in step {done}. "
                "Lower the learning rate. "
                f"Received: learning_rate={self._rate}."
            )
        # The first step traces; the time is taken after it.
        self._start = self._start or time.monotonic()
        if done not in self._ends:
            return
        loss = (total - self._sum) / (done - self._count)
        self._sum, self._count = total, done
        self.losses.append(loss)
        seconds = (time.monotonic() - self._start) / max(1, batch)
        self._tell(
            f"detector: step {done:,}/{self._steps:,}, loss {loss:.3f}, "
            f"{duration(seconds * (self._steps - done))} left"
        )


def flip_images(images, boxes, classes, drawn):
    """Mirrors the drawn images and their boxes.

    Args:
        images: `[B, S, S, 3]`.
        boxes: `[B, M, 4]` float32.
        classes: `[B, M]`, -1 where there is no box.
        drawn: bool `[B]`.

    Returns:
        Images and boxes.
    """
    width = tf.cast(tf.shape(images)[2], boxes.dtype)
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    mirrored = tf.stack([width - x2, y1, width - x1, y2], axis=-1)
    chosen = (drawn[:, None] & (classes >= 0))[..., None]
    images = tf.where(drawn[:, None, None, None], images[:, :, ::-1], images)
    return images, tf.where(chosen, mirrored, boxes)


def detect(model, images, *, batch_size=16):
    """Finds objects: decoded, after non-maximum suppression by class.

    Args:
        model: of `detector`.
        images: `[N, S, S, 3]` in [0, 255], or a data set, see the module.
        batch_size: positive int.

    Returns:
        Dict of arrays, at most K = 100 detections per image, best first:
        "boxes" `[N, K, 4]`, "classes" `[N, K]`, -1 where there is none, and
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
        step(tf.cast(batch, tf.float32)) for batch in images.batch(batch_size)
    ]
    return {
        k: np.concatenate([ops.convert_to_numpy(f[k]) for f in found])
        for k in ("boxes", "classes", "confidence")
    }


def evaluate_detector(model, test, *, batch_size=16):
    """COCO's metrics of a detector on a data set.

    Args:
        model: of `detector`.
        test: data set, see the module.
        batch_size: positive int.

    Returns:
        Dict of "AP", "AP50" and "AP75", see `coco_metrics`.
    """
    _check_images(test, model.num_classes)
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
            are any, "crowd" `[N, M]`, see the module.
        detections: dict of "boxes" `[N, K, 4]`, "classes" `[N, K]` and
            "confidence" `[N, K]`; the best 100 of an image count.

    Returns:
        Dict of "AP", mean over overlaps of 0.50, 0.55, ... 0.95 and over the
        classes that occur, "AP50" and "AP75", at those overlaps; in [0, 1].

    Raises:
        ValueError: if there is no object, or the numbers of images differ.

    Source: Lin et al., "Microsoft COCO", ECCV 2014; pycocotools.

    Example:

    >>> truth = {"boxes": [[[0, 0, 10, 10]]], "classes": [[0]]}
    >>> found = {"boxes": [[[0, 0, 10, 6]]], "classes": [[0]]}
    >>> ap = coco_metrics(truth, found | {"confidence": [[0.9]]})["AP50"]
    >>> round(ap, 6)
    1.0
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

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
    coco = COCO()
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
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, map(float, evaluation.stats[:3]), strict=True))


def _corner_and_size(boxes):
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def load_boxes(
    name, split, *, data_dir=None, image_size=512, max_boxes=100, download=False
):
    """Images with boxes that TensorFlow Datasets has prepared.

    Images keep their aspect: the longer side becomes `image_size`, the rest,
    at the right and the bottom, is black.

    Args:
        name: str, as `tfds.builder` takes it: "voc/2007", "coco/2017", or any
            with "objects" of "bbox" and "label".
        split: str, as TFDS takes it.
        data_dir: str, where it was prepared; None for TFDS's default.
        image_size: positive int, S, a multiple of 32.
        max_boxes: positive int, M.
        download: bool, prepare it if it is not.

    Returns:
        A data set, see the module, in a fixed order, and the classes' names.

    Raises:
        ValueError: at once, if the data are not prepared or have no boxes.
    """
    _check_size(image_size)
    # Its checks; images alone would be read from here.
    sources.tfds(name, data_dir, split, download)
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    features = dict(builder.info.features.items())
    objects = features.get("objects")
    fields = getattr(objects, "feature", None) or {}
    if "bbox" not in fields or "label" not in fields:
        raise ValueError(
            f'{name!r} must have "objects" of "bbox" and "label". '
            f"Received: features {', '.join(features)}."
        )
    crowd = [k for k in ("is_crowd", "is_difficult") if k in fields]

    def example(example):
        objects = example["objects"]
        image, boxes = resize(example["image"], objects["bbox"], image_size)
        number = tf.shape(boxes)[0]
        with tf.control_dependencies(
            [
                tf.debugging.assert_less_equal(
                    number, max_boxes, "An image has more than `max_boxes`."
                )
            ]
        ):
            missing = max_boxes - number
        skipped = objects[crowd[0]] if crowd else tf.zeros([number], tf.bool)
        classes = tf.cast(objects["label"], tf.float32)
        padded = {
            "boxes": tf.pad(boxes, [[0, missing], [0, 0]], constant_values=-1),
            "classes": tf.pad(classes, [[0, missing]], constant_values=-1),
            "crowd": tf.pad(skipped, [[0, missing]]),
        }
        shapes = {"boxes": [max_boxes, 4], "classes": [max_boxes]}
        return image, {
            k: tf.ensure_shape(v, shapes.get(k, [max_boxes]))
            for k, v in padded.items()
        }

    data = builder.as_dataset(split=split, shuffle_files=False)
    return data.map(example, tf.data.AUTOTUNE), fields["label"].names


def resize(image, boxes, image_size):
    """An image in a square, its aspect kept, and its boxes in pixels.

    Args:
        image: `[H, W, 3]`.
        boxes: `[M, 4]`, (y1, x1, y2, x2) in [0, 1], as TFDS has them.
        image_size: int, S.

    Returns:
        Image `[S, S, 3]` uint8, in the upper left, and boxes `[M, 4]` float32,
        (x1, y1, x2, y2) in pixels.
    """
    image = tf.image.resize(
        image,
        [image_size, image_size],
        preserve_aspect_ratio=True,
        antialias=True,
    )
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    image = tf.image.pad_to_bounding_box(image, 0, 0, image_size, image_size)
    image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    boxes = tf.stack([x1 * width, y1 * height, x2 * width, y2 * height], -1)
    return tf.ensure_shape(image, [image_size, image_size, 3]), boxes


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
        scores: dict of backbones' names to lists, over seeds, of dicts as
            `evaluate_detector` gives.
        fmt: see `seed_tf.evaluation.report.table`.

    Returns:
        str.
    """
    rows = []
    for name, runs in scores.items():
        row = {"backbone": name}
        for metric in METRICS:
            values = [100 * run[metric] for run in runs]
            both = float(np.mean(values)), float(np.std(values))
            row[metric] = both if len(values) > 1 else values[0]
        rows.append(row)
    return report.table(rows, ["backbone", *METRICS], fmt)


def write_results(folder, scores, images, detections, **drawing):
    """Writes results.json, results.md and detections.png.

    Args:
        folder: str, made if missing.
        scores: see `table`.
        images, detections, **drawing: see `drawn_detections`.
    """
    os.makedirs(folder, exist_ok=True)
    figure = drawn_detections(images, detections, **drawing)
    figure.savefig(os.path.join(folder, "detections.png"))
    with open(os.path.join(folder, "results.md"), "w") as file:
        file.write(table(scores, "markdown") + "\n")
    with open(os.path.join(folder, "results.json"), "w") as file:
        json.dump(scores, file, indent=2)


def _check_size(image_size):
    if not isinstance(image_size, int) or image_size < 32 or image_size % 32:
        raise ValueError(
            "`image_size` must be a positive multiple of 32, the last stride. "
            f"Received: image_size={image_size!r}."
        )


def _check_images(data, num_classes):
    """Refuses what is no data set of this module, before anything runs."""
    try:
        image, objects = data.element_spec
        height, width, channels = image.shape
        fits = height == width and channels == 3
        fits = fits and {"boxes", "classes", "crowd"} <= set(objects)
    except (AttributeError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            "Expected a tf.data.Dataset of single images [S, S, 3] and dicts "
            'of "boxes", "classes" and "crowd". '
            f"Received: {getattr(data, 'element_spec', type(data).__name__)}."
        )
    _check_size(height)
    _, first = next(iter(data))
    if (top := float(tf.reduce_max(first["classes"]))) >= num_classes:
        raise ValueError(
            f"Classes must be below `num_classes`. Received: class {top:.0f}, "
            f"num_classes={num_classes}."
        )
