"""Where images lie: in memory, in folders, in the authors' TSV, in TFDS.

Each function finds a data set, refuses one that cannot be read, and returns a
`Source`; nothing is decoded here.
"""

import base64
import dataclasses
import difflib
import hashlib
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from seed_tf import random
from seed_tf.datasets.folders import ImageFolder, check_folder
from seed_tf.datasets.sampler import permute

_WINDOW = 2048  # records that are shuffled at a time


@dataclasses.dataclass(frozen=True)
class Source:
    """Encoded images, of which any can be found.

    Attributes:
        size: int, images.
        unlabelled: str, why not every image has a label; empty if all have.
            An image without one has label -1.
        records: function of an `Order` to a tf.data.Dataset that yields, for
            every batch, a tuple of tensors with a row for each image: what
            `fetch` and `name` take. The first is the image's number, from 0.
        fetch: Python function of a record to the file's bytes and its label.
        name: Python function of a record to what to call it in messages.
        fingerprint: function without arguments to 16 hexadecimal digits of
            the images' order, names and sizes in bytes. It may take seconds.
    """

    size: int
    unlabelled: str
    records: Callable
    fetch: Callable
    name: Callable
    fingerprint: Callable = None


def folder(path, split):
    """Image files below a folder, in class folders or not, see `load`."""
    files = ImageFolder(path, split)

    def fetch(index):
        path, label = files[index]
        with open(path, "rb") as file:
            return file.read(), label

    def facts():
        for index in range(files.size):
            file, _ = files[index]
            name = file.removeprefix(path).lstrip(os.sep)
            yield name, os.stat(file).st_size

    return Source(
        size=files.size,
        unlabelled=files.unlabelled,
        records=_numbers,
        fetch=fetch,
        name=lambda index: files[index][0],
        fingerprint=lambda: _digest(facts()),
    )


def tsv(path, split):
    """The authors' format: a row per image, tab-separated.

    Column 1 (from 0) is the label, the last is the image file in base64; the
    first is a key that is not read. `path` is a folder with `<split>.tsv`, or
    a file, which is the split "train". The byte offsets of the rows are taken
    from a `.lineidx` file beside it, one per line; without, the file is read
    through once.
    """
    file = path or ""
    if split != "train" or not file.endswith(".tsv"):
        check_folder(path)
        file = os.path.join(path, f"{split}.tsv")
    if not os.access(file, os.R_OK):
        raise ValueError(
            f"Unknown split {split!r}: no readable file {file!r}. Expected "
            f"`data_dir` to be a folder with {split}.tsv."
        )
    offsets = _row_offsets(file)
    if not len(offsets):
        raise ValueError(f"No images: {file!r} is empty.")

    def fetch(number):
        with open(file, "rb") as rows:
            rows.seek(offsets[number])
            columns = rows.readline().split(b"\t")
        if len(columns) < 3:
            raise ValueError(
                f"Expected rows of key, label, ..., base64 image in {file!r}. "
                f"Received: {len(columns)} columns in row {number}."
            )
        return base64.b64decode(columns[-1]), np.int64(columns[1])

    fetch(0)
    return Source(
        size=len(offsets),
        unlabelled="",
        records=_numbers,
        fetch=fetch,
        name=lambda number: f"{file} row {number}",
        fingerprint=lambda: _digest([os.stat(file).st_size, *offsets.tolist()]),
    )


def tfds(name, data_dir, split, download=False):
    """A data set that TensorFlow Datasets has prepared, in TFRecord files.

    Its records lie one after the other in files. An epoch reads the files in
    another order, 16 of them at a time, and shuffles what comes in windows of
    2,048 records that are not decoded.

    Args:
        name: as `tfds.builder` takes it, "cifar10" or "name/config:version".
        data_dir: where it was prepared; None for TFDS's default.
        split: as TFDS takes it, also slices: "train[:10%]".
        download: bool, prepare it if it is not.
    """
    builder = _builder(name, data_dir, download)
    import tensorflow_datasets as tfds

    info = builder.info
    try:
        parts = info.splits[split].file_instructions
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
            f"{name!r} has no images. Received: features {', '.join(features)}."
        )
    image = "image" if "image" in images else images[0]
    labelled = isinstance(features.get("label"), tfds.features.ClassLabel)
    wanted = [image, "label"] if labelled else [image]
    features = tfds.decode.PartialDecoding(wanted).extract_features(
        info.features
    )

    def parse(number, example, name):
        example = features.deserialize_example(
            example, decoders={image: tfds.decode.SkipDecoding()}
        )
        label = example.get("label", tf.constant(-1, tf.int64))
        return number, example[image], label, name

    def records(order):
        return _streamed(_part(parts, order), order, parse)

    return Source(
        size=sum(part.take for part in parts),
        unlabelled="" if labelled else f'{name!r} has no feature "label"',
        records=records,
        fetch=lambda number, data, label, name: (data, label),
        name=lambda number, data, label, name: name.decode(),
        fingerprint=lambda: _digest(
            [info.full_name]
            + [
                (os.path.basename(part.filename), part.skip, part.take)
                + (os.stat(part.filename).st_size,)
                for part in parts
            ]
        ),
    )


def _numbers(order):
    """Records of a source that finds an image by its number."""
    return order.steps.map(lambda step: (order.indices(step),))


def _part(parts, order):
    """Files of the subset: name, records to skip and take, first's number.

    What is held out lies at the end.
    """
    start = order.total - order.start - order.size
    files, number = [], 0
    for part in parts:
        first = min(max(start - number, 0), part.take)
        last = min(max(start - number + order.size, 0), part.take)
        if last > first:
            skip = part.skip + first
            files.append((part.filename, skip, last - first, number + first))
        number += part.take
    return files


def _streamed(files, order, parse):
    """Records of files that are read from their beginning, batch for batch."""
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
            return permute(i, order.key(epoch), len(files))

        return tf.data.Dataset.range(len(files)).map(place)

    def shuffle_window(epoch, number, window):
        size = tf.shape(window[0], tf.int64)[0]
        key = random.fold_in(order.key(epoch), number)
        index = permute(tf.range(size), key, size)
        return tuple(tf.gather(x, index) for x in window)

    def read_epoch(epoch):
        if order.shuffle:
            dataset = shuffled_files(epoch).interleave(
                read,
                cycle_length=16,
                block_length=16,
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
            dataset = dataset.batch(_WINDOW).enumerate()
            dataset = dataset.map(
                lambda number, window: shuffle_window(epoch, number, window)
            ).unbatch()
        else:
            dataset = tf.data.Dataset.range(len(files)).flat_map(read)
        first = tf.maximum(order.first_step - epoch * order.steps_per_epoch, 0)
        dataset = dataset.skip(first * order.batch_size)
        dataset = dataset.map(parse, tf.data.AUTOTUNE, deterministic=True)
        dataset = dataset.batch(order.batch_size, order.drop_remainder)
        return dataset.map(own_rows)

    def own_rows(*batch):
        start, end = order.rows

        def padded(rows):
            rows = rows[start:end]
            missing = tf.zeros([end - start - tf.shape(rows)[0]], rows.dtype)
            return tf.ensure_shape(tf.concat([rows, missing], 0), [end - start])

        return tuple(map(padded, batch))

    first_epoch = order.first_step // order.steps_per_epoch
    epochs = tf.data.Dataset.range(first_epoch, order.epochs)
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
    # Asked before anything else: an absent data set's details would be looked
    # up on the network.
    if builder.is_prepared():
        return builder
    if download:
        builder.download_and_prepare()
        return builder
    # The `tfds build` command needs Apache Beam, this does not.
    arguments = f"{name!r}" + (f", data_dir={data_dir!r}" if data_dir else "")
    raise ValueError(
        f"{name!r} is not prepared: nothing in {str(builder.data_dir)!r}. "
        "Prepare it once, which downloads it: --download, or "
        'python -c "import tensorflow_datasets as tfds; '
        f'tfds.builder({arguments}).download_and_prepare()"'
    )


def _digest(facts):
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(repr(fact).encode())
    return digest.hexdigest()[:16]


def _row_offsets(file):
    """`[rows]` int64: where each row of a TSV file begins."""
    index = os.path.splitext(file)[0] + ".lineidx"
    if os.path.exists(index):
        return np.loadtxt(index, np.int64, ndmin=1)
    with open(file, "rb") as rows:
        lengths = np.fromiter(map(len, rows), np.int64)
    return np.cumsum(lengths) - lengths
