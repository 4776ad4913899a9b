"""One function from the name of a data set to batches of images."""

import os

import tensorflow as tf

from seed_tf.datasets import sources
from seed_tf.datasets.digits import digits


def load(
    name,
    *,
    split="train",
    data_dir=None,
    image_size=224,
    resize=None,
    batch_size=256,
    shuffle=True,
    seed=0,
    labels=False,
    drop_remainder=None,
):
    """Batches of square RGB images, with their labels if wanted.

    Images are resized, antialiased, until the shorter side is `resize`, and
    the central square of `image_size` is cut out. JPEG, PNG, BMP, GIF (the
    first frame) and WebP files are read, grey, palette, alpha and CMYK ones
    too; palette BMP files come out wrong (TensorFlow's decoder).

    Args:
        name: "digits", scikit-learn's, embedded (see `digits`); "folder", the
            image files below `data_dir`; "tsv", the authors' format in
            `data_dir`; or the name of a prepared TensorFlow data set.
        split: "train", "test", or what else the data set has. Of a folder it
            is the subfolder of that name; a folder without such subfolders is
            all "train". Of TFDS also a slice: "train[:10%]".
        data_dir: folder, or .tsv file. For TFDS None means its default.
        image_size: positive int, S.
        resize: positive int, at least S; `image_size` if None. The paper
            tests with 256 and S = 224.
        batch_size: positive int, B.
        shuffle: bool, another order in every epoch, which follows from `seed`
            (and TensorFlow's global seed, if set). TFDS images are shuffled
            by file and in a window of 4,096 images, all others entirely.
        seed: int.
        labels: bool, give pairs (images, labels). The classes of a folder are
            its top-level folders, sorted by name.
        drop_remainder: bool, drop the last batch if it is smaller than the
            others. By default as `shuffle`: yes in training, no in evaluation.

    Returns:
        A finite `tf.data.Dataset` of images `[B, S, S, 3]` uint8, or of pairs
        of them and labels `[B]` int64, with known cardinality.

    Raises:
        ValueError: if the data are missing, unreadable or empty, the split is
            unknown, there are no labels, or a single batch cannot be filled.

    Example:

    >>> images = next(iter(seed_tf.datasets.load("digits", image_size=16)))
    >>> images.shape, images.dtype
    (TensorShape([256, 16, 16, 3]), tf.uint8)
    """
    if drop_remainder is None:
        drop_remainder = shuffle
    resize = resize or image_size
    if not 1 <= image_size <= resize:
        raise ValueError(
            "`image_size` must be positive, and `resize` no smaller. "
            f"Received: image_size={image_size}, resize={resize}."
        )
    data_dir = data_dir and os.path.expanduser(data_dir)
    if name == "digits":
        images, numbers = digits(split, image_size=resize)
        source = sources.arrays(images, numbers)
    elif name == "folder":
        source = sources.folder(data_dir, split)
    elif name == "tsv":
        source = sources.tsv(data_dir, split)
    else:
        source = sources.tfds(name, data_dir, split, seed if shuffle else None)
    if labels and source.unlabelled:
        raise ValueError(
            f"`labels` needs a label for every image, but {source.unlabelled}."
        )
    if drop_remainder and source.size < batch_size:
        raise ValueError(
            "A batch must not be larger than the data set. Received: "
            f"batch_size={batch_size}, {source.size} images in split "
            f"{split!r} of {name!r}."
        )

    def prepare(*record):
        image, label = source.read(*record)
        if image.dtype == tf.string:
            image = tf.io.decode_image(image, 3, expand_animations=False)
        image = _square(image, image_size, resize)
        return (image, label) if labels else image

    records = source.records
    if shuffle:
        records = records.shuffle(source.shuffle_buffer, seed)
    images = records.map(prepare, tf.data.AUTOTUNE)
    return images.batch(batch_size, drop_remainder).prefetch(tf.data.AUTOTUNE)


def _square(image, size, shorter):
    """Resizes `[H, W, 3]` until its shorter side fits; cuts out the centre."""
    shape = tf.shape(image)[:2]
    # Rounded as torchvision's Resize and CenterCrop do: down, and half to even.
    height_width = shape * shorter // tf.reduce_min(shape)
    # Resized as float: uint8 is rounded eagerly, but not in a graph.
    image = tf.image.resize(
        tf.cast(image, tf.float32), height_width, antialias=True
    )
    top, left = tf.unstack(
        tf.cast(tf.round((height_width - size) / 2), tf.int32)
    )
    image = image[top : top + size, left : left + size]
    image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
    return tf.ensure_shape(image, [size, size, 3])
