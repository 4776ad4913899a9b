"""Sources of images: memory, folders, the authors' TSV files and TFDS.

A source opens a data set, raises ValueError if it cannot read it, and decodes
nothing. It owns the labels, names and fingerprints of its images. A new format
needs a new subclass of `Source`, and a line in `find` to open it by name.
"""

import abc
import base64
import difflib
import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from seed_tf import random
from seed_tf.datasets.digits import digits
from seed_tf.datasets.folders import ImageFolder, check_folder
from seed_tf.datasets.sampler import Sampler, permute
from seed_tf.io.pipelines import ALL_CORES, steady

_WINDOW = 2048  # records shuffled at a time
_BLOCK = 256  # records read at a time when all are read once


class Source(abc.ABC):
    """The encoded images of one split of a data set.

    A subclass sets `size` and defines `fetch`, `name` and `contents`. The
    other methods have defaults that suit images found by their number.

    Attributes:
        size: int, images.
        unlabelled: str, why some images have no label; empty if all have one.
            An image without a label has label -1.
    """

    size: int
    unlabelled: str = ""

    @abc.abstractmethod
    def fetch(self, *record: Any) -> tuple[bytes, int]:
        """Returns the file and the label of a record."""

    @abc.abstractmethod
    def name(self, *record: Any) -> str:
        """Returns the name, for messages, of a record's image."""

    @abc.abstractmethod
    def contents(self) -> Iterable[Any]:
        """Yields facts that identify the images, also after copying.

        Usually these are the names and sizes of the files, in order.
        """

    @property
    def summary(self) -> str:
        """A line about the images, and about files that were left out."""
        return f"{self.size:,} images."

    def versions(self) -> Iterable[Any]:
        """Yields facts that change when a file changes in place."""
        return self.contents()

    def records(self, sampler: Sampler) -> tf.data.Dataset:
        """Returns batches of records, one record for each sampled image.

        A record is a tuple that begins with the image's number, from 0. A
        batch is a tuple of tensors with a row for each record.
        """
        return sampler.steps.map(lambda step: (sampler.indices(step),))

    def arrays(
        self, image_size: int, resize: int
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns images and labels if they fit in memory, None otherwise.

        Images are central squares `[N, S, S, 3]` uint8 of images resized to
        `resize`, and labels `[N]` int64.
        """
        return None

    def files(self) -> Iterator[tuple[bytes, int]]:
        """Yields the file and the label of each image, in order."""
        for record in self._all_records():
            data, label = self.fetch(*record)
            yield data, int(label)

    def path(self, number: int) -> str | None:
        """Returns the path of an image's own file, None if it has none."""
        return None

    def key(self, number: int) -> str | None:
        """Returns a name that an image keeps when other images come or go.

        The name is None if images are known by their place only.
        """
        return None

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """`[N]` int64. No image is decoded."""
        return np.array([label for _, label in self.files()], np.int64)

    @property
    def num_classes(self) -> int:
        return 1 + int(self.labels.max())

    @property
    def class_names(self) -> dict[int, str]:
        """Names by label, empty where classes only have numbers."""
        return {}

    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits of `contents`. It may take seconds."""
        return digest(self.contents())

    def check_labelled(self) -> None:
        """Raises ValueError unless every image has a label."""
        if self.unlabelled:
            raise ValueError(
                "`labels` needs a label for every image, but "
                f"{self.unlabelled}."
            )

    def _all_records(self):
        """Yields the record of each image, in order."""
        batches = self.records(Sampler.once(self.size, _BLOCK))
        records = (
            record
            for batch in batches.as_numpy_iterator()
            for record in zip(*batch, strict=True)
        )
        # Places of the last batch beyond the last image hold anything.
        return itertools.islice(records, self.size)


def find(
    name: str, data_dir: str | None, split: str, download: bool = False
) -> Source:
    """Opens a data set. Arguments and errors are those of `load`."""
    path = data_dir and os.path.expanduser(data_dir)
    if name == "digits":
        return Digits(split)
    if name == "folder":
        return Folder(path, split)
    if name == "tsv":
        return TSV(path, split)
    return TFDS(name, path, split, download)


class Digits(Source):
    """scikit-learn's digits, see `seed_tf.datasets.digits`."""

    def __init__(self, split: str):
        self._split = split
        # 8 pixels are the original size.
        self._images, self.labels = digits(split, image_size=8)
        self.size = len(self.labels)

    def arrays(
        self, image_size: int, resize: int
    ) -> tuple[np.ndarray, np.ndarray]:
        images, labels = digits(self._split, image_size=resize)
        start = round((resize - image_size) / 2)
        end = start + image_size
        return images[:, start:end, start:end], labels

    def fetch(self, number: int) -> tuple[bytes, int]:
        image = tf.io.encode_png(self._images[number])
        return image.numpy(), self.labels[number]

    def name(self, number: int) -> str:
        return f"digit {number}"

    def contents(self) -> Iterable[bytes]:
        return self._images.tobytes(), self.labels.tobytes()


class Folder(Source):
    """Image files below a folder, in class folders or not, see `load`."""

    def __init__(self, path: str | None, split: str):
        self._root, self._split = path, split
        self._files = ImageFolder(path, split)
        self.size, self.unlabelled = self._files.size, self._files.unlabelled

    @property
    def summary(self) -> str:
        return self._files.summary

    def fetch(self, number: int) -> tuple[bytes, int]:
        path, label = self._files[number]
        with open(path, "rb") as file:
            return file.read(), label

    def name(self, number: int) -> str:
        return self.path(number)

    def path(self, number: int) -> str:
        return self._files[number][0]

    def key(self, number: int) -> str:
        return self.path(number).removeprefix(self._root).lstrip(os.sep)

    def contents(self) -> Iterator[Any]:
        for number in range(self.size):
            yield self.key(number), os.stat(self.path(number)).st_size

    def versions(self) -> Iterator[Any]:
        for number in range(self.size):
            path, label = self._files[number]
            name = os.path.relpath(path, self._root)
            yield name, int(label), *_status(path)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return np.array([self._files[i][1] for i in range(self.size)])

    @property
    def class_names(self) -> dict[int, str]:
        names = {}
        for label, number in zip(
            *np.unique(self.labels, return_index=True), strict=True
        ):
            path = os.path.relpath(self.path(number), self._root)
            parts = path.split(os.sep)
            names[int(label)] = parts[parts[0] == self._split]
        return names


class Subset(Source):
    """Some images of a source whose images have a `key`.

    Args:
        source: `Source`.
        numbers: the images' numbers in the source, ascending.
    """

    def __init__(self, source: Source, numbers: Sequence[int] | np.ndarray):
        self._source, self._numbers = source, np.array(numbers, np.int64)
        self.size, self.unlabelled = len(numbers), source.unlabelled

    def fetch(self, number: int) -> tuple[bytes, int]:
        return self._source.fetch(self._numbers[number])

    def name(self, number: int) -> str:
        return self._source.name(self._numbers[number])

    def path(self, number: int) -> str | None:
        return self._source.path(self._numbers[number])

    def key(self, number: int) -> str | None:
        return self._source.key(self._numbers[number])

    def contents(self) -> Iterator[Any]:
        yield self._numbers.tobytes()
        yield from self._source.contents()


class TSV(Source):
    """The authors' format: a row per image, tab-separated.

    The first column is a key, which is not read; the second is the label; the
    last is the image file in base64. `path` is a folder with `<split>.tsv`, or
    a file, which is the split "train". A `.lineidx` file beside it may hold the
    byte offsets of the rows, one per line; otherwise the rows are read once.
    """

    def __init__(self, path: str | None, split: str):
        file = path or ""
        if split != "train" or not file.endswith(".tsv"):
            check_folder(path)
            file = os.path.join(path, f"{split}.tsv")
        if not os.access(file, os.R_OK):
            raise ValueError(
                f"Unknown split {split!r}: no readable file {file!r}. Expected "
                f"`data_dir` to be a folder with {split}.tsv."
            )
        self._file, self._offsets = file, _row_offsets(file)
        self.size = len(self._offsets)
        if not self.size:
            raise ValueError(f"No images: {file!r} is empty.")
        self.fetch(0)

    def fetch(self, number: int) -> tuple[bytes, int]:
        with open(self._file, "rb") as rows:
            rows.seek(self._offsets[number])
            columns = rows.readline().split(b"\t")
        if len(columns) < 3:
            raise ValueError(
                "Expected rows of key, label, ..., base64 image in "
                f"{self._file!r}. "
                f"Received: {len(columns)} columns in row {number}."
            )
        return base64.b64decode(columns[-1]), int(columns[1])

    def name(self, number: int) -> str:
        return f"{self._file} row {number}"

    def contents(self) -> list[int]:
        return [os.stat(self._file).st_size, *self._offsets.tolist()]

    def versions(self) -> list[Any]:
        return [_status(self._file)]


class TFDS(Source):
    """A data set that TensorFlow Datasets has prepared, in TFRecord files.

    Each file is read from its beginning. When shuffled, an epoch reads the
    files in a new order, 16 at a time, and shuffles windows of 2,048 encoded
    records.

    Args:
        name: as in `tfds.builder`: "cifar10" or "name/config:version".
        data_dir: folder of prepared data sets; None for TFDS's default.
        split: as in TFDS, also a slice: "train[:10%]".
        download: whether to prepare a data set that is not prepared.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | None,
        split: str,
        download: bool = False,
    ):
        builder = _builder(name, data_dir, download)
        import tensorflow_datasets as tfds

        self._info = info = builder.info
        try:
            self._parts = info.splits[split].file_instructions
        except (KeyError, ValueError):
            raise ValueError(
                f"Unknown split {split!r} of {name!r}. "
                f"Expected one of {', '.join(info.splits)}, or a slice of one."
            ) from None
        if info.file_format.value != "tfrecord":
            raise ValueError(
                f"{name!r} must be prepared as TFRecord files. "
                f"Received: {info.file_format.value}."
            )
        features = dict(info.features.items())
        images = [
            k for k, f in features.items() if isinstance(f, tfds.features.Image)
        ]
        if not images:
            raise ValueError(
                f"{name!r} has no images. "
                f"Received: features {', '.join(features)}."
            )
        image = "image" if "image" in images else images[0]
        self.size = sum(part.take for part in self._parts)
        wanted, label = [image], features.get("label")
        if isinstance(label, tfds.features.ClassLabel):
            wanted.append("label")
        else:
            self.unlabelled = f'{name!r} has no feature "label"'
        decoding = tfds.decode.PartialDecoding(wanted)
        features = decoding.extract_features(info.features)

        def parse(number, example, name):
            example = features.deserialize_example(
                example, decoders={image: tfds.decode.SkipDecoding()}
            )
            label = example.get("label", tf.constant(-1, tf.int64))
            return number, example[image], label, name

        self._parse = parse

    def records(self, sampler: Sampler) -> tf.data.Dataset:
        return _streamed(_part(self._parts, sampler), sampler, self._parse)

    def fetch(
        self, number: int, data: bytes, label: int, name: bytes
    ) -> tuple[bytes, int]:
        return data, label

    def name(self, number: int, data: bytes, label: int, name: bytes) -> str:
        return name.decode()

    def contents(self) -> Iterator[Any]:
        yield self._info.full_name
        for part in self._parts:
            size = os.stat(part.filename).st_size
            name = os.path.basename(part.filename)
            yield name, part.skip, part.take, size

    def versions(self) -> Iterator[Any]:
        yield (self._info.full_name,)
        for part in self._parts:
            name = os.path.basename(part.filename)
            yield name, part.skip, part.take, *_status(part.filename)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        batches = self.records(Sampler.once(self.size, 1024))
        labels = batches.map(lambda number, data, label, name: label)
        # Places of the last batch beyond the last image hold anything.
        return np.concatenate(list(labels.as_numpy_iterator()))[: self.size]

    @property
    def num_classes(self) -> int:
        return self._info.features["label"].num_classes

    @property
    def class_names(self) -> dict[int, str]:
        return dict(enumerate(self._info.features["label"].names))


def _part(parts, sampler):
    """Returns files of a subset: name, records to skip and take, first number.

    Held-out records lie at the end.
    """
    start = sampler.total - sampler.start - sampler.size
    files, number = [], 0
    for part in parts:
        first = min(max(start - number, 0), part.take)
        last = min(max(start - number + sampler.size, 0), part.take)
        if last > first:
            skip = part.skip + first
            files.append((part.filename, skip, last - first, number + first))
        number += part.take
    return files


def _streamed(files, sampler, parse):
    """Returns batches of the records of files."""
    names, *numbers = zip(*files, strict=True)
    names = tf.constant(names)
    skips, takes, firsts = (tf.constant(x, tf.int64) for x in numbers)

    def read(i):
        file = tf.data.TFRecordDataset(names[i]).enumerate()
        file = file.skip(skips[i]).take(takes[i])
        return file.map(
            lambda n, example: (
                n - skips[i] + firsts[i],
                example,
                tf.strings.join(
                    [names[i], tf.strings.as_string(n)], " record "
                ),
            )
        )

    def shuffled_files(epoch):
        def place(i):
            return permute(i, sampler.key(epoch), len(files))

        return tf.data.Dataset.range(len(files)).map(place)

    def shuffle_window(epoch, number, window):
        size = tf.shape(window[0], tf.int64)[0]
        key = random.fold_in(sampler.key(epoch), number)
        index = permute(tf.range(size), key, size)
        return tuple(tf.gather(x, index) for x in window)

    def read_epoch(epoch):
        if sampler.shuffle:
            dataset = shuffled_files(epoch).interleave(
                read,
                cycle_length=16,
                block_length=16,
                num_parallel_calls=ALL_CORES,
                deterministic=True,
            )
            dataset = dataset.batch(_WINDOW).enumerate()
            dataset = dataset.map(
                lambda number, window: shuffle_window(epoch, number, window)
            ).unbatch()
        else:
            dataset = tf.data.Dataset.range(len(files)).flat_map(read)
        first = tf.maximum(
            sampler.first_step - epoch * sampler.steps_per_epoch, 0
        )
        dataset = dataset.skip(first * sampler.batch_size)
        dataset = dataset.map(parse, ALL_CORES, deterministic=True)
        dataset = dataset.batch(sampler.batch_size, sampler.drop_remainder)
        return dataset.map(own_rows)

    def own_rows(*batch):
        start, end = sampler.rows

        def padded(rows):
            rows = rows[start:end]
            missing = tf.zeros([end - start - tf.shape(rows)[0]], rows.dtype)
            return tf.ensure_shape(tf.concat([rows, missing], 0), [end - start])

        return tuple(map(padded, batch))

    first_epoch = sampler.first_step // sampler.steps_per_epoch
    epochs = steady(tf.data.Dataset.range(first_epoch, sampler.epochs))
    return epochs.flat_map(read_epoch)


def _builder(name, data_dir, download):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(), 3)
        near = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            'Unknown data set. Expected "digits", "folder", "tsv" or a name '
            f"of TensorFlow Datasets. Received: {name!r}.{near}"
        ) from None
    except AssertionError as error:  # of a version that does not exist
        raise ValueError(f"{name!r} cannot be opened: {error}") from error
    # Check this first: TFDS looks up an absent data set on the network.
    if builder.is_prepared():
        return builder
    if download:
        builder.download_and_prepare()
        return builder
    # Do not suggest `tfds build`: it needs Apache Beam.
    arguments = f"{name!r}" + (f", data_dir={data_dir!r}" if data_dir else "")
    raise ValueError(
        f"{name!r} is not prepared: nothing in {str(builder.data_dir)!r}. "
        "Download and prepare it once: with `download=True`, or "
        'python -c "import tensorflow_datasets as tfds; '
        f'tfds.builder({arguments}).download_and_prepare()"'
    )


def digest(things: Iterable[Any]) -> str:
    """Returns 16 hexadecimal digits of bytes, or of the `repr` of others."""
    found = hashlib.sha256()
    for thing in things:
        found.update(
            thing if isinstance(thing, bytes) else repr(thing).encode()
        )
    return found.hexdigest()[:16]


def _status(path):
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _row_offsets(file):
    """Returns the byte offset of each row of a TSV file, int64 `[rows]`."""
    index = os.path.splitext(file)[0] + ".lineidx"
    if os.path.exists(index):
        return np.loadtxt(index, np.int64, ndmin=1)
    with open(file, "rb") as rows:
        lengths = np.fromiter(map(len, rows), np.int64)
    return np.cumsum(lengths) - lengths
