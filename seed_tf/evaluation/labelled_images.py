"""Labelled images by name: how protocols find, cut and draw from them."""

import dataclasses
import functools
import hashlib
import os
import shutil

import numpy as np
import tensorflow as tf

from seed_tf import (
    datasets,
    random,
)
from seed_tf.datasets import sources
from seed_tf.datasets.folders import ImageFolder
from seed_tf.datasets.sampler import Sampler
from seed_tf.evaluation.labels import label_fraction
from seed_tf.images import shorter_side


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """A split of a data set with labels, cut to squares.

    Args:
        dataset: str, as `seed_tf.datasets.load` takes it: "folder" of class
            folders, "digits", "tsv" or a TFDS name.
        split: str.
        data_dir: str or None.
        image_size: positive int, S, of the central squares, which are cut out
            of images resized as 256 is to 224.
        batch_size: positive int, images run at a time.
        download: bool, let TFDS download and prepare what is missing.

    Raises:
        ValueError: by every method, if the data are missing or unlabelled.
    """

    dataset: str
    split: str
    data_dir: str | None = None
    image_size: int = 224
    batch_size: int = 64
    download: bool = False

    @property
    def resize(self):
        return shorter_side(self.image_size)

    def __len__(self):
        return int(self.load(batch_size=1).cardinality())

    def load(self, **options):
        """Batches of (central squares, labels), in a fixed order."""
        options = {
            "image_size": self.image_size,
            "resize": self.resize,
            "batch_size": self.batch_size,
            "shuffle": False,
            "labels": True,
            "download": self.download,
            **options,
        }
        return datasets.load(
            self.dataset, split=self.split, data_dir=self.data_dir, **options
        )

    def training(self, view, *, epochs, batch_size, seed=0, **options):
        """Augmented batches of all epochs, each in another order.

        Only what the view's crop needs of a file is decoded.

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

        views = batches.enumerate().map(augment, tf.data.AUTOTUNE)
        return views.prefetch(tf.data.AUTOTUNE), len(batches) // epochs

    def pick(self, indices):
        """The squares `[n, S, S, 3]` uint8 of the images of those numbers."""
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

    @functools.cached_property
    def labels(self):
        """`[N]` int64, read without decoding an image."""
        self.load()  # its checks
        if self.dataset == "folder":
            files = self._folder
            return np.array([files[i][1] for i in range(files.size)])
        if self.dataset == "digits":
            return datasets.digits(self.split, image_size=8)[1]
        if self.dataset == "tsv":
            return np.array([label for _, label in self._files()], np.int64)
        source = sources.tfds(self.dataset, self._path, self.split)
        batches = source.records(Sampler.once(source.size, 1024))
        labels = batches.map(lambda number, data, label, name: label)
        # The last batch's places beyond the last image hold anything.
        return np.concatenate(list(labels.as_numpy_iterator()))[: source.size]

    @property
    def num_classes(self):
        if self.dataset in ("folder", "digits", "tsv"):
            return 1 + int(self.labels.max())
        return self._tfds_info.features["label"].num_classes

    @property
    def class_names(self):
        """Dict of labels to names, empty where classes have numbers alone."""
        if self.dataset in ("digits", "tsv"):
            return {}
        if self.dataset != "folder":
            return dict(enumerate(self._tfds_info.features["label"].names))
        names = {}
        for label, i in zip(
            *np.unique(self.labels, return_index=True), strict=True
        ):
            path = os.path.relpath(self._folder[i][0], self._path)
            parts = path.split(os.sep)
            names[int(label)] = parts[parts[0] == self.split]
        return names

    @functools.cached_property
    def fingerprint(self):
        """16 hexadecimal digits that tell these images from any others.

        They are of the files' names, sizes and times (of TFDS also version
        and split), their labels, and how images are cut.
        """
        self.load()  # its checks
        digest = hashlib.sha256()

        def add(*facts):
            digest.update(repr(facts).encode())

        add(self.dataset, self.split, self.image_size, self.resize)
        if self.dataset == "folder":
            files = self._folder
            for i in range(files.size):
                path, label = files[i]
                add(os.path.relpath(path, self._path), int(label), *_stat(path))
        elif self.dataset == "digits":
            images, labels = datasets.digits(self.split, image_size=8)
            digest.update(images.tobytes() + labels.tobytes())
        elif self.dataset == "tsv":
            path = self._path
            if os.path.isdir(path):
                path = os.path.join(path, f"{self.split}.tsv")
            add(*_stat(path))
        else:
            info = self._tfds_info
            add(info.full_name)
            for part in info.splits[self.split].file_instructions:
                name = os.path.basename(part.filename)
                add(name, part.skip, part.take, *_stat(part.filename))
        return digest.hexdigest()[:16]

    def fraction(self, fraction, folder, seed=0):
        """A share of every class's images, see `label_fraction`.

        Args:
            fraction: float in (0, 1].
            folder: where the subset is put, as a folder of class folders:
                links to files, or files.
            seed: int.

        Returns:
            `LabelledImages`; these themselves if `fraction` is 1.
        """
        if fraction == 1:
            return self
        return self._subset(label_fraction(self.labels, fraction, seed), folder)

    def listed(self, path, folder):
        """The images that a file names, one per line, by their file names.

        Args:
            path: text file, as SimCLR's `1percent.txt` for ImageNet:
                `n01440764_10043.JPEG` and so on.
            folder: see `fraction`.

        Returns:
            `LabelledImages`.

        Raises:
            ValueError: if these are no class folders, a name is no image's,
                or a class has none.
        """
        if self.dataset != "folder":
            raise ValueError(
                "A list of image names needs a folder of class folders. "
                f"Received: dataset {self.dataset!r}."
            )
        with open(path, encoding="utf-8") as file:
            names = set(filter(None, map(str.strip, file)))
        files = self._folder
        numbers = {os.path.basename(files[i][0]): i for i in range(files.size)}
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
                f"{path!r} names no image of {len(missing)} classes, of which "
                f"the first is class {missing[0]}."
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
        if self.dataset == "folder":
            files = self._folder
            for i in chosen:
                path, label = files[i]
                name = f"{i:08}{os.path.splitext(path)[1]}"
                os.symlink(
                    os.path.abspath(path), os.path.join(classes[label], name)
                )
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
    def _folder(self):
        return ImageFolder(self._path, self.split)

    @functools.cached_property
    def _tfds_info(self):
        import tensorflow_datasets as tfds

        return tfds.builder(
            self.dataset, data_dir=self._path, try_gcs=False
        ).info

    @property
    def _path(self):
        return self.data_dir and os.path.expanduser(self.data_dir)

    def _files(self):
        """Yields the bytes and the label of every image file."""
        if self.dataset == "digits":
            images, labels = datasets.digits(self.split, image_size=self.resize)
            for image, label in zip(images, labels, strict=True):
                yield tf.io.encode_png(image).numpy(), int(label)
            return
        if self.dataset == "tsv":
            source = sources.tsv(self._path, self.split)
        else:
            source = sources.tfds(self.dataset, self._path, self.split)
        left, size = source.size, 256
        order = Sampler.once(left, size)
        for batch in source.records(order).as_numpy_iterator():
            # The last batch's places beyond the last image hold anything.
            for record in list(zip(*batch, strict=True))[:left]:
                data, label = source.fetch(*record)
                yield data, int(label)
            left -= size


def _stat(path):
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
