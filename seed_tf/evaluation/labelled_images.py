"""Labelled images by name, as evaluation protocols use them."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from seed_tf import datasets, random
from seed_tf.datasets.sources import Source, digest, find
from seed_tf.evaluation.labels import label_fraction
from seed_tf.images import shorter_side
from seed_tf.io.pipelines import BATCHES_AHEAD


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """A split of a data set with labels, cut to squares.

    Args:
        dataset: str, as `seed_tf.datasets.load` takes it: "folder" of class
            folders, "digits", "tsv" or a TFDS name.
        split: str.
        data_dir: str or None.
        image_size: positive int, S, pixels of the central squares. Images are
            resized to `images.shorter_side(S)` first.
        batch_size: positive int, images run at a time.
        download: bool, whether TFDS may download and prepare the data set.
        max_corrupt_fraction: float, share of unreadable images above which
            reading stops.

    Raises:
        ValueError: in every method, if the data are missing or unlabelled.
    """

    dataset: str
    split: str
    data_dir: str | None = None
    image_size: int = 224
    batch_size: int = 64
    download: bool = False
    max_corrupt_fraction: float = 0.01

    @property
    def resize(self) -> int:
        return shorter_side(self.image_size)

    def __len__(self):
        return int(self.load(batch_size=1).cardinality())

    def load(self, **options: Any) -> tf.data.Dataset:
        """Batches of (central squares, labels), in a fixed order."""
        options = {
            "image_size": self.image_size,
            "resize": self.resize,
            "batch_size": self.batch_size,
            "shuffle": False,
            "labels": True,
            "corrupt": datasets.CorruptFiles(self.max_corrupt_fraction),
            **options,
        }
        return datasets.load(self._source, **options)

    def training(
        self,
        view: Callable,
        *,
        epochs: int,
        batch_size: int,
        seed: int = 0,
        **options: Any,
    ) -> tuple[tf.data.Dataset, int]:
        """Augmented batches of all epochs, each in another order.

        Only the part of a file that the view's crop needs is decoded.

        Args:
            view: `seed_tf.views.View`.
            epochs: int.
            batch_size: int. Smaller last batches are left out, unless there
                are no others.
            seed: int, of order and views.
            **options: of `seed_tf.datasets.load`.

        Returns:
            A tuple of the `tf.data.Dataset` of (float32 images in [0, 255],
            labels), and the number of its batches in an epoch.
        """
        options = {
            "image_size": self.resize,
            "batch_size": batch_size,
            "shuffle": True,
            "drop_remainder": len(self) >= batch_size,
            "seed": seed,
            "views": view,
            "epochs": epochs,
            **options,
        }
        batches = self.load(**options)

        def augment(step, batch):
            images, labels = batch
            seeds = random.image_seeds(seed, step, tf.shape(images)[0])
            cropped = images.shape.rank == 5
            if cropped:
                # `load` has cropped by the keys of the first view.
                seeds, images = random.view_keys(seeds), images[:, 0]
            return view(images, seeds=seeds, cropped=cropped), labels

        views = batches.enumerate().map(augment, BATCHES_AHEAD)
        return views.prefetch(BATCHES_AHEAD), len(batches) // epochs

    def pick(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the squares `[n, S, S, 3]` uint8 of images by number."""
        wanted = {int(i): None for i in indices}
        number = 0
        for images, _ in self.load():
            for i in wanted:
                if number <= i < number + len(images):
                    wanted[i] = images[i - number].numpy()
            number += len(images)
            if number > max(wanted):
                break
        return np.stack([wanted[int(i)] for i in indices])

    @property
    def labels(self) -> np.ndarray:
        """`[N]` int64, read without decoding an image."""
        self._source.check_labelled()
        return self._source.labels

    @property
    def summary(self) -> str:
        """A line about the images, and about files that were left out."""
        return self._source.summary

    @property
    def num_classes(self) -> int:
        return self._source.num_classes

    @property
    def class_names(self) -> dict[int, str]:
        """Names by label, empty where classes only have numbers."""
        return self._source.class_names

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify these images.

        They depend on the files' names, sizes and times (of TFDS also on
        version and split), the labels, and how images are cut.
        """
        self._source.check_labelled()
        cut = self.dataset, self.split, self.image_size, self.resize
        return digest([cut, *self._source.versions()])

    def fraction(
        self, fraction: float, folder: str, seed: int = 0
    ) -> LabelledImages:
        """A share of every class's images, see `label_fraction`.

        Args:
            fraction: float in (0, 1].
            folder: receives the subset as class folders of links to files, or
                of files.
            seed: int.

        Returns:
            `LabelledImages`; the same object if `fraction` is 1.
        """
        if fraction == 1:
            return self
        return self._subset(label_fraction(self.labels, fraction, seed), folder)

    def listed(self, path: str, folder: str) -> LabelledImages:
        """The images whose file names a text file lists, one per line.

        Args:
            path: text file, as SimCLR's `1percent.txt` for ImageNet:
                `n01440764_10043.JPEG` and so on.
            folder: see `fraction`.

        Returns:
            `LabelledImages`.

        Raises:
            ValueError: if the data are not class folders, no image has one of
                the names, or a class has no image.
        """
        source = self._source
        if source.path(0) is None:
            raise ValueError(
                "A list of image names needs a folder of class folders. "
                f"Received: dataset {self.dataset!r}."
            )
        with open(path, encoding="utf-8") as file:
            names = set(filter(None, map(str.strip, file)))
        numbers = {
            os.path.basename(source.path(i)): i for i in range(source.size)
        }
        if unknown := sorted(names - set(numbers)):
            raise ValueError(
                f"{len(unknown)} of {len(names)} names in {path!r} are no "
                f"image's: {', '.join(unknown[:3])}, ..."
            )
        chosen = np.array(sorted(numbers[name] for name in names), np.int64)
        labels = self.labels
        missing = np.setdiff1d(labels, labels[chosen])
        if len(missing) or not len(chosen):
            raise ValueError(
                f"{path!r} names no image of {len(missing)} classes. The first "
                f"is class {missing[0]}."
            )
        return self._subset(chosen, folder)

    def _subset(self, chosen, folder):
        shutil.rmtree(folder, ignore_errors=True)
        labels = self.labels
        width = len(str(labels.max()))
        classes = [
            os.path.join(folder, "train", f"{label:0{width}}")
            for label in range(labels.max() + 1)
        ]
        for path in classes:  # also of labels that no image has
            os.makedirs(path)
        if self._source.path(0):
            for i in chosen:
                path = self._source.path(i)
                name = f"{i:08}{os.path.splitext(path)[1]}"
                link = os.path.join(classes[labels[i]], name)
                os.symlink(os.path.abspath(path), link)
        else:
            wanted = set(chosen.tolist())
            for i, (data, label) in enumerate(self._files()):
                if i in wanted:
                    # The decoder knows formats by content, not by name.
                    name = os.path.join(classes[label], f"{i:08}.png")
                    with open(name, "wb") as file:
                        file.write(data)
        return dataclasses.replace(
            self, dataset="folder", data_dir=folder, split="train"
        )

    @functools.cached_property
    def _source(self) -> Source:
        return find(self.dataset, self.data_dir, self.split, self.download)

    def _files(self):
        """Yields the file and the label of each image."""
        arrays = self._source.arrays(self.resize, self.resize)
        if arrays is None:
            yield from self._source.files()
        else:
            for image, label in zip(*arrays, strict=True):
                yield tf.io.encode_png(image).numpy(), int(label)
