"""Reads, resizes, mirrors and checks images with boxes."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator

import tensorflow as tf

from seed_tf.arguments import integer
from seed_tf.datasets import sources
from seed_tf.io.pipelines import ALL_CORES, steady


def load_boxes(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    image_size: int = 512,
    max_boxes: int = 100,
    download: bool = False,
) -> tuple[tf.data.Dataset, list[str]]:
    """Reads images with boxes that TensorFlow Datasets has prepared.

    Images keep their aspect ratio: the longer side becomes `image_size`, and
    black fills the square at the right or at the bottom.

    Args:
        name: str, as `tfds.builder` takes it: "voc/2007", "coco/2017", or any
            data set with "objects" of "bbox" and "label".
        split: str, as TFDS takes it.
        data_dir: str, folder of the prepared data; None for TFDS's default.
        image_size: positive int, S, a multiple of 32.
        max_boxes: positive int, M.
        download: bool, download and prepare missing data.

    Returns:
        A data set, see `seed_tf.detection`, in a fixed order, and the names of
        the classes.

    Raises:
        ValueError: before any reading, if the data are not prepared or have no
            boxes.
    """
    check_size(image_size)
    # Called for its checks only.
    sources.TFDS(name, data_dir, split, download)
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
        classes = tf.cast(objects["label"], tf.float32)
        skipped = tf.zeros_like(classes, tf.bool)
        return padded(
            example["image"],
            objects["bbox"],
            classes,
            objects[crowd[0]] if crowd else skipped,
            image_size,
            max_boxes,
        )

    data = steady(builder.as_dataset(split=split, shuffle_files=False))
    return data.map(example, ALL_CORES), fields["label"].names


def padded(
    image: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    crowd: tf.Tensor,
    image_size: int,
    max_boxes: int,
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Makes a sample of a data set of this package.

    Args:
        image, boxes: see `resize`; boxes are cut at the edges of the image.
        classes: `[m]` float32.
        crowd: bool `[m]`.
        image_size: int, S.
        max_boxes: int, M, no smaller than m.

    Returns:
        Image and objects. Objects without area count as crowds: COCO has a few.
    """
    boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    image, boxes = resize(image, boxes, image_size)
    number = tf.shape(boxes)[0]
    enough = tf.debugging.assert_less_equal(
        number, max_boxes, "An image has more than `max_boxes`."
    )
    with tf.control_dependencies([enough]):
        missing = max_boxes - number
    crowd |= _tiny(boxes) | tf.reduce_any(boxes[:, 2:] <= boxes[:, :2], 1)
    objects = {
        "boxes": tf.pad(boxes, [[0, missing], [0, 0]], constant_values=-1),
        "classes": tf.pad(classes, [[0, missing]], constant_values=-1),
        "crowd": tf.pad(crowd, [[0, missing]]),
    }
    shapes = {"boxes": [max_boxes, 4]}
    return image, {
        k: tf.ensure_shape(v, shapes.get(k, [max_boxes]))
        for k, v in objects.items()
    }


def resize(
    image: tf.Tensor, boxes: tf.Tensor, image_size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Fits an image into a square, and scales its boxes to pixels.

    Args:
        image: `[H, W, 3]`.
        boxes: `[M, 4]`, (y1, x1, y2, x2) in [0, 1], as in TFDS.
        image_size: int, S.

    Returns:
        `[S, S, 3]` uint8, with the image in the upper left corner and its
        aspect ratio kept, and boxes `[M, 4]` float32, (x1, y1, x2, y2) in
        pixels.
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


def flip_images(
    images: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor, flipped: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors chosen images and their boxes, left to right.

    Args:
        images: `[B, S, S, 3]`.
        boxes: `[B, M, 4]` float32.
        classes: `[B, M]`, -1 as padding.
        flipped: bool `[B]`, the images to mirror.

    Returns:
        Images and boxes.
    """
    width = tf.cast(tf.shape(images)[2], boxes.dtype)
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    mirrored = tf.stack([width - x2, y1, width - x1, y2], axis=-1)
    chosen = (flipped[:, None] & (classes >= 0))[..., None]
    images = tf.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    return images, tf.where(chosen, mirrored, boxes)


def check_size(image_size: int) -> None:
    """Raises ValueError if RetinaNet cannot take images of this size."""
    if integer("image_size", image_size) % 32:
        raise ValueError(
            "`image_size` must be a positive multiple of 32, the last stride. "
            f"Received: image_size={image_size!r}."
        )


def check_images(data: tf.data.Dataset, num_classes: int) -> None:
    """Raises ValueError if data are no data set of this package."""
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
    check_size(height)
    seen = 0
    with checked(data, num_classes) as samples:
        for _, objects in samples.take(64):
            seen += 1
            if tf.reduce_any(objects["classes"] >= 0):
                return
    raise ValueError(
        "Expected images with objects. Received: none in the first "
        f"{seen} images. COCO and VOC 2012 publish the split 'test' "
        "without boxes."
    )


@contextlib.contextmanager
def checked(
    data: tf.data.Dataset, num_classes: int
) -> Iterator[tf.data.Dataset]:
    """Gives the data, each sample checked when it is read.

    Args:
        data: data set of this package.
        num_classes: int.

    Raises:
        ValueError: within the context, at the first sample that has an
            impossible class, or a box beyond the image, without area, or in
            [0, 1] instead of pixels. The message names sample and box.
    """
    check = functools.partial(_check_sample, num_classes)
    try:
        yield steady(data).enumerate().map(check)
    except tf.errors.InvalidArgumentError as error:
        pattern = r"(Sample \d+.*pixels\.|Image file [^\n]+)"
        found = re.search(pattern, str(error), re.DOTALL)
        if not found:
            raise
        raise ValueError(found[0]) from None


def _check_sample(num_classes, number, sample):
    image, objects = sample
    boxes, classes = objects["boxes"], objects["classes"]
    side = tf.cast(tf.shape(image)[0], boxes.dtype)
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    sound = (x1 < x2) & (y1 < y2) & ~_tiny(boxes)
    # A pixel beyond the edge is rounding.
    inside = (tf.minimum(x1, y1) >= -1) & (tf.maximum(x2, y2) <= side + 1)
    known = (classes >= 0) & (classes < num_classes)
    known &= classes == tf.floor(classes)
    right = known & (sound & inside | objects["crowd"])
    wrong = ~(right | (classes == -1))
    first = tf.argmax(wrong)
    message = tf.strings.format(
        "Sample {} of the data set (from 0): object {} has the class {} and "
        "the box {}. Expected a whole class from 0 to {}, and a box (x1, y1, "
        "x2, y2) with an area inside the {} x {} pixels.",
        (
            *(number, first, classes[first], boxes[first], num_classes - 1),
            *tf.unstack(tf.shape(image)[:2]),
        ),
    )
    with tf.control_dependencies(
        [tf.debugging.Assert(~tf.reduce_any(wrong), [message])]
    ):
        return tf.nest.map_structure(tf.identity, sample)


def _tiny(boxes):
    """Whether boxes `[M, 4]` lie in the first pixel, as those in [0, 1] do."""
    return (boxes[:, 2] <= 1) & (boxes[:, 3] <= 1)
