"""Images with boxes: read, resized, mirrored, checked."""

import tensorflow as tf

from seed_tf.datasets import sources


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
        A data set, see `seed_tf.detection`, in a fixed order, and
        the classes' names.

    Raises:
        ValueError: at once, if the data are not prepared or have no boxes.
    """
    check_size(image_size)
    # Its checks; images alone would be read from here.
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


def check_size(image_size):
    if not isinstance(image_size, int) or image_size < 32 or image_size % 32:
        raise ValueError(
            "`image_size` must be a positive multiple of 32, the last stride. "
            f"Received: image_size={image_size!r}."
        )


def check_images(data, num_classes):
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
    check_size(height)
    tops = []
    for _, objects in data.take(64):
        tops.append(float(tf.reduce_max(objects["classes"])))
        if tops[-1] >= 0:
            break
    else:
        raise ValueError(
            "Expected images with objects. Received: none in the first "
            f"{len(tops)} images. Of COCO and of VOC 2012 the split 'test' is "
            "published without boxes."
        )
    if tops[-1] >= num_classes:
        raise ValueError(
            "Classes must be below `num_classes`. Received: class "
            f"{tops[-1]:.0f}, num_classes={num_classes}."
        )
