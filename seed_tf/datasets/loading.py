"""Loads batches of images from a data set by its name."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import tensorflow as tf

from seed_tf.datasets import pipeline, sources
from seed_tf.datasets.corrupt import CorruptFiles
from seed_tf.datasets.sampler import Sampler
from seed_tf.datasets.sources import Source, digest
from seed_tf.io.pipelines import BATCHES_AHEAD


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """A data set, and how `load` cuts its images.

    Attributes:
        source: `Source` of the images.
        image_size: S, the side of the central squares.
        resize: length to which the shorter side is resized first.
        views: None, or the views that begin with a crop of the file.
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
        """16 hexadecimal digits of the images. It may take seconds."""
        if self._arrays:
            return digest(array.tobytes() for array in self._arrays)
        return self.source.fingerprint()

    @property
    def squares(self) -> dict[str, int] | None:
        """How whole images are cut, None if files are decoded to crops."""
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
        """Returns batches (images, labels).

        Args:
            sampler: `Sampler`, which chooses the images of each batch.
            keys: see `pipeline.crops`.
            num_views: positive int, crops of each image.
            accompany: see `pipeline.decoded`.
            corrupt: see `load`.
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
    """Opens a data set. Arguments and errors are those of `load`.

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
    """Returns batches of square RGB images, with their labels if wanted.

    `seed`, the epoch and the position alone decide which image a batch holds:
    batches from `first_step` on equal those of an uninterrupted run. JPEG, PNG,
    WebP, GIF, BMP, TIFF, AVIF and HEIC files (the first frame) are read and
    turned upright; HEIC needs the extra `[heif]`. Grey, palette, 16-bit, alpha
    and CMYK images become RGB. A file that cannot be decoded is left out and
    reported, see `CorruptFiles`. With `drop_remainder` another image of the
    batch takes its place, so that batches stay full.

    Images are resized, antialiased, until the shorter side is `resize`, and
    the central square of `image_size` is cut out. If `views` begin with a
    random crop, only this crop is decoded, from the full image, and the model's
    step computes the rest of the view. Image i of batch t is cropped as
    `Trainer(views=views, seed=seed)` would crop it in step t.

    Args:
        name: "digits" for scikit-learn's (see `digits`); "folder" for the
            image files below `data_dir`; "tsv" for the authors' format in
            `data_dir`; the name of a TensorFlow data set; or a `Source`.
        split: "train", "test", or another split of the data set. The split of
            a folder is its subfolder of that name; a folder without such
            subfolders is all "train". "all" is the whole folder, and each
            subfolder a class. TFDS also takes a slice: "train[:10%]".
        data_dir: folder, or .tsv file. For TFDS None means its default.
        image_size: positive int, S, of whole images.
        resize: positive int, at least S; `image_size` if None. The paper
            tests with 256 and S = 224.
        batch_size: positive int, B.
        shuffle: bool, whether each epoch has a new order. TFDS images are
            shuffled by file and in windows of 2,048, other images entirely.
        seed: int, of the order and of crops.
        labels: bool, whether to return pairs (images, labels). The classes of
            a folder are its top-level folders, sorted by name.
        drop_remainder: bool, whether to drop a last batch of an epoch that is
            not full. Defaults to `shuffle`.
        views: None, or a `seed_tf.views.View` or `MultiCrop`. Images stay whole
            if `views` do not begin with `RandomResizedCrop`, or if the images
            lie in memory (digits).
        num_views: positive int, n, views of each image; MoCo takes 2.
        epochs: positive int, passes over the data. A second iteration repeats
            the first: train for all epochs in one iteration.
        first_step: int, number of batches to skip. They are not decoded and,
            except with TFDS, not read.
        shard: pair of ints (index, count): this worker's part of each batch,
            rows `[index * B / count, (index + 1) * B / count)`.
        held_out: int, number of images set aside, by a fixed pseudo-random
            choice; with TFDS the last images of the split.
        subset: "train" for all images that are not held out, or "held_out".
        download: bool, whether TFDS may download and prepare the data set.
        corrupt: `CorruptFiles` to report to. By default the pipeline stops at
            more than 1 % of unreadable images.
        view_cache: None, or a `seed_tf.view_cache.ViewCache` of these images
            and views. The batches then hold views of the cache. Each epoch
            uses the next cached view of an image; `seed` chooses the first.

    Returns:
        A `tf.data.Dataset` of known cardinality, `epochs * steps_per_epoch -
        first_step`. Elements are images `[B, S, S, 3]` uint8, or pairs of
        images and labels `[B]` int64. Crops are `[B, n, s, s, 3]` uint8, with
        the view's size s. Crops of `MultiCrop` are pairs of large crops
        `[B, n, s, s, 3]` and small crops `[B, n * num_small, s, s, 3]`, in a
        tuple of one if there are no labels. Without `drop_remainder`, B is
        smaller at the end of an epoch and after a bad file. With `view_cache`,
        images become a dict: "images"; "keys" of the views, uint32 `[B, 2]`;
        and the teacher's "embeddings", float16 `[B, n, D]`.

    Raises:
        ValueError: if the data are missing, unreadable or empty, the split is
            unknown, images lie beside split folders, labels are missing, the
            data do not fill a batch, the view cache is of other data or views,
            or an argument is out of range.

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
        data=f"split {split!r}"
        + (f" of {name!r}" if isinstance(name, str) else ""),
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
    return batches.prefetch(BATCHES_AHEAD)


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
            f"all {total} images. Received: "
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
