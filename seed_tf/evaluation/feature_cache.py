"""Features on disk, so that no encoder runs twice on the same images."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from seed_tf.encoders import Encoder
from seed_tf.evaluation.features import batch_embedder, check_finite
from seed_tf.io.arrays import (
    ArrayWriter,
    checksum,
    open_array,
    read_record,
    write_record,
)
from seed_tf.io.fingerprints import fingerprint, settings

if TYPE_CHECKING:
    from seed_tf.evaluation.labelled_images import LabelledImages

_BLOCK = 16384
# Types and ranks of an entry's arrays.
_ARRAYS: dict[str, Any] = {"features": (np.float32, 2), "labels": (np.int64, 1)}


class FeatureCache:
    """Features of labelled images, as memory-mapped arrays.

    Features are written batch by batch and never held in memory as a whole. An
    entry is a folder with `features.npy`, `labels.npy` and `entry.json`, named
    after the fingerprints of encoder and images. The folder gets this name
    when it is complete, so a killed process leaves no entry. If two processes
    write one entry, the first is kept. A damaged entry is computed again, with
    a warning. Entries are never removed: delete the folder, or any entry, to
    free space.

    The fingerprint of an encoder covers its weights and its configuration, but
    not the numbers in Keras's layer names. Without `get_config`, an entry is
    valid within one process.

    Args:
        folder: str, created if missing; None for a temporary folder, which
            is removed with this object.
        log: function of one str, called with lines of progress.

    Example:

    >>> images = seed_tf.evaluation.LabelledImages(
    ...     "digits", "train", image_size=16
    ... )
    >>> features, labels = FeatureCache().features(student, images)
    >>> features.shape, labels.shape
    ((1297, 4), (1297,))
    """

    def __init__(
        self,
        folder: str | None = None,
        *,
        log: Callable[[str], None] = logging.info,
    ) -> None:
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="features_")
            folder = self._temporary.name
        self._folder = os.path.abspath(os.path.expanduser(folder))
        os.makedirs(self._folder, exist_ok=True)
        self._log = log
        self._whole: set[str] = set()  # entries whose checksums were right

    def features(
        self,
        model: keras.Model,
        images: LabelledImages,
        output: str = "features",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns cached features of images, or computes them as `embed`.

        The embeddings of an `Encoder` are computed from its features.

        Args:
            model: `Encoder` or keras.Model.
            images: `LabelledImages`.
            output: "features" or "embeddings".

        Returns:
            `[N, C]` float32, a read-only memory map, and labels `[N]` int64.

        Raises:
            ValueError: see `embed`, or if the images cannot be read.
            OSError: if the cache cannot be written.
        """
        if not hasattr(model, "features") or getattr(model, "head", 0) is None:
            output = "features"  # the only output
        name = "-".join((_encoder_key(model), images.fingerprint, output))
        path = os.path.join(self._folder, name)
        entry = self._read(path)
        if entry is None:
            if output == "embeddings" and isinstance(model, Encoder):
                batches = _through_head(model, *self.features(model, images))
            else:
                self._log(f"Embedding {images.dataset} {images.split} ...")
                embed = batch_embedder(model, output=output)
                batches = embed(images.load())
            _write(path, batches)
            entry = self._read(path)
        return entry

    def labels(self, images: LabelledImages) -> np.ndarray:
        """Returns labels `[N]` int64 of images, from an entry if possible.

        Raises:
            ValueError: if the images cannot be read.
        """
        name = f"*-{images.fingerprint}-*"
        for path in glob.glob(os.path.join(glob.escape(self._folder), name)):
            # `features` warns of damage.
            with contextlib.suppress(OSError, ValueError):
                return np.array(_load(path, "labels"))
        return images.labels

    def _read(self, path):
        """Returns the arrays of an entry, None if missing or damaged."""
        if not os.path.isdir(path):
            return None
        known = path in self._whole
        try:
            features = _load(path, "features", check=not known)
            labels = _load(path, "labels", check=not known)
            if len(features) != len(labels):
                raise ValueError(f"{path!r} has other labels")
        except (OSError, ValueError) as error:
            logging.warning("%s. Computing the features again.", error)
            shutil.rmtree(path)
            return None
        self._whole.add(path)
        return features, np.array(labels)


def _encoder_key(model):
    """Returns the fingerprint of all that determines a model's features."""
    try:
        facts = settings(model, ("image_size",))  # of `LabelledImages`
    except NotImplementedError:
        facts = f"{os.getpid()}.{id(model)}"
    return f"{fingerprint(model)}{facts}"


def _load(path, name, check=True):
    """Returns a memory-mapped array of an entry.

    Raises:
        FileNotFoundError: if a file of the entry is missing.
        ValueError: if a file is damaged.
    """
    dtype, rank = _ARRAYS[name]
    file = f"{name}.npy"
    sums = read_record(os.path.join(path, "entry.json"), {file: str})
    return open_array(
        os.path.join(path, file),
        dtype,
        (None,) * rank,
        sums[file] if check else None,
    )


def _through_head(model, features, labels):
    """Yields embeddings of features, in blocks."""
    for start in range(0, len(features), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = model.head(tf.constant(features[rows]), training=False)
        block = tf.cast(block, tf.float32).numpy()
        check_finite(block, "embeddings")
        yield block, labels[rows]


def _write(path, batches):
    unfinished = tempfile.mkdtemp(".unfinished", "", os.path.dirname(path))
    files = {f"{x}.npy": os.path.join(unfinished, f"{x}.npy") for x in _ARRAYS}
    try:
        with (
            ArrayWriter(files["features.npy"]) as features,
            ArrayWriter(files["labels.npy"]) as labels,
        ):
            for block, block_labels in batches:
                features.append(np.asarray(block, np.float32))
                labels.append(np.asarray(block_labels, np.int64))
        sums = {name: checksum(file) for name, file in files.items()}
        write_record(os.path.join(unfinished, "entry.json"), sums)
        try:
            os.rename(unfinished, path)
        except OSError:
            # Another process was first, with an equal entry.
            if not os.path.isdir(path):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
