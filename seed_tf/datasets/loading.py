"""One function from the name of a data set to batches of images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import tensorflow as tf

from seed_tf.datasets import pipeline, sources
from seed_tf.datasets.corrupt import CorruptFiles
from seed_tf.datasets.sampler import Sampler
from seed_tf.datasets.sources import Source, digest


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """What `load` reads of a data set, and how images are cut.

    Attributes:
        source: `Source` of the images.
        image_size: int, S, of whole images.
        resize: int, what their shorter side is resized to before.
        views: None, or the views whose first crop is decoded.
    """

    source: Source
    image_size: int
    resize: int
    views: Any = None

    @property
    def size(self) -> int:
        """Number of images."""
        return self.source.size

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the images. They may take seconds."""
        if self._arrays:
            return digest(array.tobytes() for array in self._arrays)
        return self.source.fingerprint()

    @property
    def squares(self) -> dict[str, int] | None:
        """How whole images are cut, None where files are decoded to crops."""
        if not self._arrays and getattr(self.views, "crops", None):
            return None
        return {"size": self.image_size, "of": self.resize}

    def batches(
        self,
        sampler: Sampler,
        *,
        keys: Callable,
        num_views: int = 1,
        accompany: Callable | None = None,
        corrupt: CorruptFiles | None = None,
    ) -> tf.data.Dataset:
        """Batches of (images, labels).

        Args:
            sampler: `Sampler`, which image is in which batch.
            keys: as of `pipeline.crops`.
            num_views: positive int, crops of each image.
            accompany: as of `pipeline.decoded`.
            corrupt: `CorruptFiles` to report to, as of `load`.
        """
        corrupt = corrupt or CorruptFiles()
        corrupt.size = self.size
        if self._arrays:
            return pipeline.in_memory(self._arrays, sampler, accompany)
        if self.squares:
            decoder = pipeline.squares(self.image_size, self.resize)
        else:
            decoder = pipeline.crops(self.views, keys, num_views)
        return pipeline.decoded(
            self.source, sampler, decoder, corrupt, accompany
        )

    @functools.cached_property
    def _arrays(self):
        return self.source.arrays(self.image_size, self.resize)


def describe(
    name: str | Source,
    *,
    split: str = "train",
    data_dir: str | None = None,
    image_size: int = 224,
    resize: int | None = None,
    views: Any = None,
    download: bool = False,
) -> Description:
    """Finds a data set. Arguments and errors are those of `load`.

    >>> seed_tf.datasets.describe("digits", split="test", image_size=16).size
    500
    """
    resize = resize or image_size
    if not 1 <= image_size <= resize:
        raise ValueError(
            "`image_size` must be positive, and `resize` no smaller. "
            f"Received: image_size={image_size}, resize={resize}."
        )
    if isinstance(name, Source):
        source = name
    else:
        source = sources.find(name, data_dir, split, download)
    return Description(source, image_size, resize, views)


def load(
    name: str | Source,
    *,
    split: str = "train",
    data_dir: str | None = None,
    image_size: int = 224,
    resize: int | None = None,
    batch_size: int = 256,
    shuffle: bool = True,
    seed: int = 0,
    labels: bool = False,
    drop_remainder: bool | None = None,
    views: Any = None,
    num_views: int = 1,
    epochs: int = 1,
    first_step: int = 0,
    shard: tuple[int, int] = (0, 1),
    held_out: int = 0,
    subset: Literal["train", "held_out"] = "train",
    download: bool = False,
    corrupt: CorruptFiles | None = None,
    view_cache: Any = None,
) -> tf.data.Dataset:
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
            `data_dir`; the name of a TensorFlow data set; or a `Source`.
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
            "`view_cache` needs `num_views=1`: teacher and student must see "
            f"the same view. Received: num_views={num_views}. Use "
            "`same_view=True`, or no `view_cache`."
        )
    description = describe(
        name,
        split=split,
        data_dir=data_dir,
        image_size=image_size,
        resize=resize,
        views=views,
        download=download,
    )
    if labels:
        description.source.check_labelled()
    sampler = _sampler(
        total=description.size,
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
    keys, accompany = pipeline.live_keys(seed, sampler.rows, num_views), None
    if view_cache:
        view_cache.check_views(views, description.squares)
        view_cache.check_images(
            (name, split, data_dir),
            description.size,
            lambda: description.fingerprint,
        )
        keys = pipeline.given_keys

        def accompany(step, index):
            epoch = step // sampler.steps_per_epoch
            return view_cache.accompany(seed, epoch, index)

    batches = description.batches(
        sampler,
        keys=keys,
        num_views=num_views,
        accompany=accompany,
        corrupt=corrupt,
    )

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
    steps = sampler.epochs * sampler.steps_per_epoch - sampler.first_step
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps))
    return batches.prefetch(tf.data.AUTOTUNE)


def _sampler(
    *, total, data, batch_size, first_step, shard, held_out, subset, **options
):
    """Returns the `Sampler` for the arguments of `load`."""
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
    sampler = Sampler(
        total=total,
        start=held_out if train else 0,
        size=total - held_out if train else held_out,
        held_out=held_out > 0,
        batch_size=batch_size,
        rows=(index * share, (index + 1) * share),
        first_step=first_step,
        **options,
    )
    if not sampler.steps_per_epoch:
        raise ValueError(
            "A batch must not be larger than the data set. Received: "
            f"batch_size={batch_size}, {sampler.size} images in {data}."
        )
    steps = sampler.epochs * sampler.steps_per_epoch
    if not 0 <= first_step <= steps:
        raise ValueError(
            f"`first_step` must be in [0, {steps}], the batches of all epochs. "
            f"Received: first_step={first_step}."
        )
    return sampler
