"""Computes a teacher's embeddings of fixed views, once, into a folder."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import math
import os
import time
import zlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from seed_tf import datasets, random
from seed_tf.acceleration import precision
from seed_tf.acceleration.folded_teacher import FoldedTeacher
from seed_tf.datasets import pipeline
from seed_tf.embeddings import l2_normalise
from seed_tf.io.arrays import write_record
from seed_tf.io.files import as_json, atomic_write, check_space, differences
from seed_tf.io.locks import folder_lock
from seed_tf.io.pipelines import BATCHES_AHEAD
from seed_tf.io.progress import Progress
from seed_tf.io.units import duration, readable_bytes
from seed_tf.trainer import check_encoder, noise_image
from seed_tf.view_cache import cache, provenance
from seed_tf.views import MultiCrop, View


def build(
    path: str,
    name: str,
    *,
    teacher: keras.Model,
    views: View | MultiCrop,
    views_per_image: int = 8,
    seed: int = 0,
    teacher_precision: str | None = None,
    batch_size: int = 256,
    log: Callable[[str], object] = print,
    **data: Any,
) -> cache.ViewCache:
    """Makes a `ViewCache`, or goes on with one.

    Each image is read once. A process killed at any moment loses no more than
    the last 1,024 images; the same call goes on, and leaves the same files.
    For a complete cache the call makes damaged files again.

    Args:
        path: folder of the cache, made if missing.
        name: data set, as `datasets.load` takes it.
        teacher: keras.Model, images -> embeddings `[B, D]`.
        views: `View` or `MultiCrop` of `seed_tf.views`.
        views_per_image: positive int, V.
        seed: int, of the views.
        teacher_precision: "float32" or "bfloat16", in which a copy of the
            teacher computes; None for that of a cache to go on with, else for
            what `SEED` does by default at the paper's temperature, 0.01, see
            `acceleration.precision.default_teacher_precision`.
        batch_size: positive int, views run at a time, if V is no larger.
        log: function of one str, a line about size, time or progress.
        **data: arguments of `datasets.load` about the images: split, data_dir,
            image_size, resize, download, corrupt.

    Returns:
        `ViewCache`.

    Raises:
        ValueError: if the folder has another cache in it, another process
            writes to it, or an argument is out of range.
        OSError: if the folder cannot be written, or the disk is too small.
    """
    for argument, value in {
        "views_per_image": views_per_image,
        "batch_size": batch_size,
    }.items():
        if value < 1:
            raise ValueError(
                f"`{argument}` must be positive. Received: {argument}={value}."
            )
    # Images at a time: a power of two, because shards must be multiples of it.
    images = 2 ** (max(1, batch_size // views_per_image).bit_length() - 1)
    images = min(images, cache.SHARD)
    path = os.path.abspath(os.path.expanduser(path))
    # A cache goes on, also on another machine, in the precision it began with.
    if teacher_precision is None:
        try:
            teacher_precision = cache.read_config(path)["teacher_precision"]
        except (FileNotFoundError, ValueError):  # a new cache
            teacher_precision = precision.default_teacher_precision(0.01)
    corrupt = data.pop("corrupt", None)
    images_of = datasets.describe(name, views=views, **data)
    log(images_of.source.summary)
    fixed = cache.FixedViews(seed, views_per_image)
    batches = _Batches(images_of, fixed, images, corrupt)
    samples = views(noise_image(), seeds=tf.zeros([1, 2], tf.uint32))
    samples = list(samples) if isinstance(samples, tuple) else [samples]
    dim = check_encoder(teacher, "teacher", samples)
    config = {
        "teacher": provenance.of_teacher(teacher),
        "views": provenance.of_views(views, images_of.squares),
        "images": {
            "number": images_of.size,
            "fingerprint": images_of.fingerprint,
        },
        "seed": seed,
        "views_per_image": views_per_image,
        "embeddings_per_view": sum(len(x) for x in samples),
        "dim": dim,
        "teacher_precision": teacher_precision,
    }
    with folder_lock(path):
        builder = _Builder(path, config, log)
        if builder.pending:
            embed = _Embedder(teacher, views, teacher_precision, images)
            builder.run(embed, batches)
        return cache.ViewCache(path)


class _Batches:
    """The images in their order, each with the keys of all its views."""

    def __init__(self, data, fixed, batch_size, corrupt):
        self._data, self._fixed, self._corrupt = data, fixed, corrupt
        self._size = batch_size
        self._all = self._load(0)
        self.spec = self._all.element_spec

    def _load(self, first):
        sampler = datasets.Sampler.once(self._data.size, self._size)
        batches = self._data.batches(
            dataclasses.replace(sampler, first_step=first),
            keys=pipeline.given_keys,
            num_views=self._fixed.views_per_image,
            accompany=self._accompany,
            corrupt=self._corrupt,
        )
        return batches.map(lambda batch, _: batch).prefetch(BATCHES_AHEAD)

    def _accompany(self, step, index):
        numbers = tf.range(self._fixed.views_per_image, dtype=tf.int64)
        keys = self._fixed.keys(index[:, None], numbers)
        return {"keys": keys, "index": index}, tf.ones_like(index, tf.bool)

    def __call__(self, start, end):
        """Batches of the images of these numbers, multiples of `SHARD`."""
        first = start // self._size
        batches = self._load(first) if first else self._all
        return batches.take((end - start) // self._size)


class _Builder:
    """A cache in the making.

    Attributes:
        pending: numbers of the shards that are missing or were damaged.
    """

    def __init__(self, path, config, log):
        self._path, self._config, self._log = path, config, log
        self._file = os.path.join(path, cache.CONFIG)
        self._shapes = cache.shard_shapes(config)
        self._compare()
        self.pending = self._find_pending()
        self._check_space()

    def run(self, embed, batches):
        """Writes the shards that are pending."""
        write_record(self._file, self._config)
        views = sum(math.prod(self._shapes[i][:2]) for i in self.pending)
        seconds = views * embed.seconds_per_view(batches.spec)
        self._log(
            f"{views:,} views to embed, some {duration(seconds)} of the "
            "teacher alone. Stop at any time: the same command goes on."
        )
        report, embedded = Progress(views, "views", self._log), 0
        for first, last in _runs(self.pending):
            start, end = first * cache.SHARD, (last + 1) * cache.SHARD
            number, done = first, 0
            for batch in batches(start, end):
                if not done:
                    rows = np.full(self._shapes[number], np.nan, np.float16)
                index = batch["index"].numpy() % cache.SHARD
                rows[index] = embed(batch["images"], batch["keys"])
                count = min(embed.batch_size, len(rows) - done)
                embedded += count * rows.shape[1]
                report(embedded)
                done += count
                if done == len(rows):
                    self._save(number, rows)
                    number, done = number + 1, 0

    def _compare(self):
        """Refuses a folder that holds another cache."""
        try:
            there = cache.read_config(self._path)
        except FileNotFoundError:
            return
        except ValueError as error:
            # The teacher that the files are of is unknown.
            self._log(f"{error}. All files are computed again.")
            for name, _ in cache.find_shards(self._path).values():
                os.remove(os.path.join(self._path, name))
            return
        self._config["teacher"] = provenance.comparable_teacher(
            self._config["teacher"], there["teacher"]
        )
        different = differences(there, as_json(self._config))
        if different:
            raise ValueError(
                f"{self._path!r} holds another view cache. "
                f"{'; '.join(different)}. Give the settings of that cache "
                "to go on with it, choose another folder, or remove the cache."
            )

    def _find_pending(self):
        """Returns the numbers of missing shards; removes damaged files."""
        for name in glob.glob(os.path.join(self._path, "*.unfinished.*")):
            os.remove(name)  # of a killed process
        whole, found = set(), cache.find_shards(self._path)
        for number, (name, checksum) in found.items():
            if number >= len(self._shapes):
                continue
            file = os.path.join(self._path, name)
            try:
                cache.read_shard(file, self._shapes[number], checksum)
                whole.add(number)
            except ValueError as error:
                self._log(f"{error}. Computed again.")
                os.remove(file)
        return [i for i in range(len(self._shapes)) if i not in whole]

    def _check_space(self):
        sizes = [2 * math.prod(shape) + 128 for shape in self._shapes]
        _, views, *row = self._shapes[0]
        self._log(
            f"{self._config['images']['number']:,} images, {views} views of "
            f"{2 * math.prod(row)} bytes each: {readable_bytes(sum(sizes))} in "
            f"{len(sizes):,} files, {len(self.pending):,} missing."
        )
        check_space(self._path, sum(sizes[i] for i in self.pending))

    def _save(self, number, rows):
        name = cache.shard_name(number, zlib.crc32(rows))
        with atomic_write(os.path.join(self._path, name)) as file:
            np.save(file, rows)


class _Embedder:
    """A teacher's embeddings of views that are made from their keys.

    Args:
        batch_size: int, b, the most images at a time.
    """

    def __init__(self, teacher, views, dtype, batch_size):
        self.batch_size = batch_size
        teacher = FoldedTeacher(teacher, dtype)

        @tf.function
        def embed(images, keys):
            count = keys.shape[1]
            seeds = tf.reshape(random.view_keys(keys), [-1, 2])
            cropped = tf.nest.flatten(images)[0].shape.rank == 5
            if isinstance(images, tuple):  # of each view as many crops
                images = tuple(
                    tf.reshape(x, [-1, x.shape[1] // count, *x.shape[2:]])
                    for x in images
                )
            elif cropped:
                images = tf.reshape(images, [-1, *images.shape[2:]])
            else:
                images = tf.repeat(images, count, axis=0)
            options = {"cropped": True} if cropped else {}
            seen = views(images, seeds=seeds, **options)
            seen = seen if isinstance(seen, (tuple, list)) else [seen]
            rows = [l2_normalise(teacher(view)) for view in seen]
            # One small view of all, then the next, as `MultiCrop`.
            rows = [
                tf.reshape(x, [-1, batch_size, count, x.shape[-1]])
                for x in rows
            ]
            rows = tf.transpose(tf.concat(rows, 0), [1, 2, 0, 3])
            return tf.cast(rows, tf.float16)

        self._embed = embed

    def __call__(self, images, keys):
        """float16 `[b, V, n, D]` of crops or squares, and keys `[b, V, 2]`."""
        count = len(keys)
        # All batches of one size are traced once.
        images, keys = tf.nest.map_structure(
            lambda x: tf.pad(
                x,
                [[0, self.batch_size - count], *[[0, 0]] * (x.shape.rank - 1)],
            ),
            (images, keys),
        )
        return self._embed(images, keys)[:count].numpy()

    def seconds_per_view(self, spec):
        """Measures the time on black images, given a batch's specs."""
        images, keys = tf.nest.map_structure(
            lambda x: tf.zeros([self.batch_size, *x.shape[1:]], x.dtype),
            (spec["images"], spec["keys"]),
        )
        self(images, keys)  # traces
        start = time.monotonic()
        self(images, keys)
        return (time.monotonic() - start) / math.prod(keys.shape[:2])


def _runs(numbers):
    """Yields (first, last) of each row of successive numbers."""
    groups = itertools.groupby(enumerate(numbers), lambda x: x[1] - x[0])
    for _, group in groups:
        numbers = [number for _, number in group]
        yield numbers[0], numbers[-1]
