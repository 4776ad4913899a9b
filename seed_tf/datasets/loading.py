"""One function from the name of a data set to batches of images."""

import hashlib
import os

import tensorflow as tf

from seed_tf.datasets import pipeline, sources
from seed_tf.datasets.corrupt import CorruptFiles
from seed_tf.datasets.digits import digits
from seed_tf.datasets.sampler import Sampler


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
    views=None,
    num_views=1,
    epochs=1,
    first_step=0,
    shard=(0, 1),
    held_out=0,
    subset="train",
    download=False,
    corrupt=None,
    view_cache=None,
):
    """Batches of square RGB images, with their labels if wanted.

    Which image is in which batch is a function of `seed`, the epoch and the
    place, and of nothing else: the batches from `first_step` on are those of
    a data set that was read from its beginning. JPEG, PNG, WebP, BMP and GIF
    files (the first frame) are read; grey, palette, 16-bit, alpha and CMYK
    ones become RGB, and stand upright. Files that cannot be decoded are left
    out, counted and named, see `CorruptFiles`: with `drop_remainder` another
    image of the batch takes the place, so that batches stay full.

    Images are resized, antialiased, until the shorter side is `resize`, and
    the central square of `image_size` is cut out. With `views` that begin
    with a random crop, only that crop is decoded, of the full image, and
    what comes out are crops; the model's step does the rest of the view. The
    draws are the step's own: of image i of batch t, as
    `Trainer(views=views, seed=seed)` in step t.

    Args:
        name: "digits", scikit-learn's, embedded (see `digits`); "folder", the
            image files below `data_dir`; "tsv", the authors' format in
            `data_dir`; or the name of a TensorFlow data set.
        split: "train", "test", or what else the data set has. Of a folder it
            is the subfolder of that name; a folder without such subfolders is
            all "train". Of TFDS also a slice: "train[:10%]".
        data_dir: folder, or .tsv file. For TFDS None means its default.
        image_size: positive int, S, of whole images.
        resize: positive int, at least S; `image_size` if None. The paper
            tests with 256 and S = 224.
        batch_size: positive int, B.
        shuffle: bool, another order in every epoch. TFDS images are shuffled
            by file and in windows of 2,048 images, all others entirely.
        seed: int, of the order and of crops.
        labels: bool, give pairs (images, labels). The classes of a folder are
            its top-level folders, sorted by name.
        drop_remainder: bool, drop the last batch of an epoch if it is smaller
            than the others. By default as `shuffle`: yes in training, no in
            evaluation.
        views: None, or a `seed_tf.views.View` or `MultiCrop`. Where these do
            not begin with `RandomResizedCrop`, and for images in memory
            (digits), images come whole all the same.
        num_views: positive int, n, views of each image; MoCo takes 2.
        epochs: positive int, passes over the data. Iterated twice, the data
            set repeats itself: train for all epochs in one iteration.
        first_step: int, batches to leave out at the start, which are not
            decoded and, except of TFDS, not read.
        shard: pair of ints (index, count): this worker's part of each batch,
            rows `[index * B / count, (index + 1) * B / count)`.
        held_out: int, images set aside in a fixed pseudo-random choice; of
            TFDS the last of the split.
        subset: "train", all but those, or "held_out", those.
        download: bool, let TFDS download and prepare what is missing.
        corrupt: `CorruptFiles` to report to; None for one that stops the
            pipeline at more than 1 %.
        view_cache: None, or a `seed_tf.view_cache.ViewCache` of these images
            and views. Views are then its own, not the step's: every epoch
            another one of each image, through all before one is repeated,
            from where `seed` says.

    Returns:
        A `tf.data.Dataset` of known cardinality, `epochs * steps_per_epoch -
        first_step`. Elements are images `[B, S, S, 3]` uint8, or pairs of them
        and labels `[B]` int64. As crops, images are `[B, n, s, s, 3]` uint8,
        s the view's size; of `MultiCrop` pairs of the large crops
        `[B, n, s, s, 3]` and the small ones `[B, n * num_small, s, s, 3]`,
        without labels in a tuple of one. Without `drop_remainder`, B is
        smaller where an epoch ends or a file is bad. With `view_cache`,
        images are a dict: "images", these; "keys" uint32 `[B, 2]`, of the
        views; and "embeddings" float16 `[B, n, D]`, the teacher's, see
        `ViewCache`.

    Raises:
        ValueError: if the data are missing, unreadable or empty, the split is
            unknown, there are no labels, a single batch cannot be filled, an
            argument is out of range, or the view cache is of other images or
            views.

    Example:

    >>> images = next(iter(seed_tf.datasets.load("digits", image_size=16)))
    >>> images.shape, images.dtype
    (TensorShape([256, 16, 16, 3]), tf.uint8)
    """
    resize = resize or image_size
    if not 1 <= image_size <= resize:
        raise ValueError(
            "`image_size` must be positive, and `resize` no smaller. "
            f"Received: image_size={image_size}, resize={resize}."
        )
    for argument, value in {
        "batch_size": batch_size,
        "epochs": epochs,
        "num_views": num_views,
    }.items():
        if value < 1:
            raise ValueError(
                f"`{argument}` must be positive. Received: {argument}={value}."
            )
    if view_cache and num_views > 1:
        raise ValueError(
            "`view_cache` holds what a teacher makes of the very view that the "
            "student sees: both see one view, `num_views=1`. Received: "
            f"num_views={num_views}. Leave out --same_view=False, or "
            "--view_cache."
        )
    data_dir = data_dir and os.path.expanduser(data_dir)
    source = memory = None
    if name == "digits":
        memory = _centre(digits(split, image_size=resize), image_size)
    elif name == "folder":
        source = sources.folder(data_dir, split)
    elif name == "tsv":
        source = sources.tsv(data_dir, split)
    else:
        source = sources.tfds(name, data_dir, split, download)
    if labels and source and source.unlabelled:
        raise ValueError(
            f"`labels` needs a label for every image, but {source.unlabelled}."
        )
    order = _order(
        total=len(memory[0]) if memory else source.size,
        data=f"split {split!r} of {name!r}",
        batch_size=batch_size,
        drop_remainder=shuffle if drop_remainder is None else drop_remainder,
        shuffle=shuffle,
        seed=seed,
        first_step=first_step,
        epochs=epochs,
        shard=shard,
        held_out=held_out,
        subset=subset,
    )
    corrupt = corrupt or CorruptFiles()
    corrupt.size = order.total
    keys, accompany = pipeline.live_keys(seed, order.rows, num_views), None
    if view_cache:
        keys, num_views = pipeline.given_keys, view_cache.views_per_batch

        def accompany(step, index):
            epoch = step // order.steps_per_epoch
            return view_cache.accompany(seed, epoch, index)

    decoder = None
    if not memory:
        decoder = pipeline.crops(views, keys, num_views)
    if view_cache:
        view_cache.check_views(
            views, None if decoder else {"size": image_size, "of": resize}
        )
        view_cache.check_images(
            (name, split, data_dir),
            order.total,
            source.fingerprint if source else lambda: _fingerprint(memory),
        )
    if memory:
        batches = pipeline.in_memory(memory, order, accompany)
    else:
        decoder = decoder or pipeline.squares(image_size, resize)
        batches = pipeline.decoded(source, order, decoder, corrupt, accompany)

    def element(images, numbers):
        if labels:
            return images, numbers
        # Keras takes a pair for images and labels.
        return (images,) if isinstance(images, tuple) else images

    options = tf.data.Options()
    # Workers read their own rows already.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    batches = batches.map(element).with_options(options)
    steps = order.epochs * order.steps_per_epoch - order.first_step
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps))
    return batches.prefetch(tf.data.AUTOTUNE)


def _order(
    *, total, data, batch_size, first_step, shard, held_out, subset, **options
):
    """The `Sampler` that the arguments of `load` mean."""
    index, count = shard
    if not 0 <= index < count or batch_size % count:
        raise ValueError(
            "`shard` must be (index, count) with 0 <= index < count, and "
            "count must divide `batch_size`. Received: "
            f"shard={tuple(shard)}, batch_size={batch_size}."
        )
    if subset not in ("train", "held_out") or not (
        (subset == "held_out") <= held_out < total
    ):
        raise ValueError(
            '`subset` must be "train" or "held_out", and `held_out` fewer than '
            f"all images, of which there are {total}. Received: "
            f"subset={subset!r}, held_out={held_out}."
        )
    train = subset == "train"
    share = batch_size // count
    order = Sampler(
        total=total,
        start=held_out if train else 0,
        size=total - held_out if train else held_out,
        held_out=held_out > 0,
        batch_size=batch_size,
        rows=(index * share, (index + 1) * share),
        first_step=first_step,
        **options,
    )
    if not order.steps_per_epoch:
        raise ValueError(
            "A batch must not be larger than the data set. Received: "
            f"batch_size={batch_size}, {order.size} images in {data}."
        )
    steps = order.epochs * order.steps_per_epoch
    if not 0 <= first_step <= steps:
        raise ValueError(
            f"`first_step` must be in [0, {steps}], the batches of all epochs. "
            f"Received: first_step={first_step}."
        )
    return order


def _fingerprint(arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _centre(arrays, size):
    """Cuts the central squares out of square images."""
    images, labels = arrays
    start = round((images.shape[1] - size) / 2)
    end = start + size
    return images[:, start:end, start:end], labels
