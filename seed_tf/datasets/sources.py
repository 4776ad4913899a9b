"""Where images lie: in memory, in folders, in the authors' TSV, in TFDS.

Each function finds a data set, refuses one that cannot be read, and returns a
`Source`; nothing is decoded here.
"""

import base64
import dataclasses
import difflib
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_SPLITS = ("train", "val", "valid", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Source:
    """Images in a fixed order, decoded or not.

    Attributes:
        records: tf.data.Dataset, one element per image, small enough to be
            shuffled: a path, a row number, or the image.
        size: int, images.
        read: function of a record to (image, label): the encoded image as a
            scalar string, or `[H, W, 3]` uint8; scalar int64.
        unlabelled: str, why not every image has a label; empty if all have.
            An image without one has label -1.
        shuffle_buffer: int, records held for shuffling.
    """

    records: tf.data.Dataset
    size: int
    read: Callable
    unlabelled: str
    shuffle_buffer: int


def arrays(images, labels):
    """Decoded images `[N, H, W, 3]` uint8 in memory, labels `[N]` int64."""
    return Source(
        records=tf.data.Dataset.from_tensor_slices((images, labels)),
        size=len(images),
        read=lambda image, label: (image, label),
        unlabelled="",
        shuffle_buffer=len(images),
    )


def folder(path, split):
    """Image files below a folder, in class folders or not.

    Where `path` has a subfolder named as the split (train, val, test), that is
    read; a folder without such subfolders is the split "train". The names of
    the top-level folders are the classes, sorted; those of all splits count,
    so that a class missing in one does not shift the numbers of the others.
    Files are known by their endings (`EXTENSIONS`); hidden ones are left out.
    """
    _check_folder(path)
    subfolders = _subfolders(path)
    splits = [name for name in (*_SPLITS, split) if name in subfolders]
    if split in splits:
        root = os.path.join(path, split)
    elif split == "train" and not splits:
        root = path
    else:
        found = f"has {', '.join(splits)}" if splits else "has no splits"
        raise ValueError(
            f"Unknown split {split!r}: {path!r} {found}. A folder without "
            'splits is read as split="train".'
        )
    roots = [os.path.join(path, name) for name in splits] or [path]
    classes = sorted({name for r in roots for name in _subfolders(r)})
    numbers = {name: number for number, name in enumerate(classes)}
    files = sorted(_image_files(root))
    paths = [path for path, _ in files]
    labels = [numbers.get(name, -1) for _, name in files]
    if not paths:
        raise ValueError(
            f"No images in {root!r}. Expected files ending in "
            f"{', '.join(EXTENSIONS)}, of any case."
        )
    return Source(
        records=tf.data.Dataset.from_tensor_slices(
            (paths, np.asarray(labels, np.int64))
        ),
        size=len(paths),
        read=lambda path, label: (tf.io.read_file(path), label),
        unlabelled=(
            f"{labels.count(-1)} of {len(labels)} images in {root!r} lie in no "
            "class folder"
            if -1 in labels
            else ""
        ),
        shuffle_buffer=len(paths),
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
        _check_folder(path)
        file = os.path.join(path, f"{split}.tsv")
    if not os.access(file, os.R_OK):
        raise ValueError(
            f"Unknown split {split!r}: no readable file {file!r}. Expected "
            f"`data_dir` to be a folder with {split}.tsv."
        )
    offsets = _row_offsets(file)
    if len(offsets) < 2:
        raise ValueError(f"No images: {file!r} is empty.")

    def read_row(number):
        start, end = offsets[number : number + 2]
        with open(file, "rb") as rows:
            rows.seek(start)
            columns = rows.read(end - start).split(b"\t")
        if len(columns) < 3:
            raise ValueError(
                f"Expected rows of key, label, ..., base64 image in {file!r}. "
                f"Received: {len(columns)} columns in row {number}."
            )
        return base64.b64decode(columns[-1]), np.int64(columns[1])

    def read(number):
        image, label = tf.numpy_function(
            read_row, [number], [tf.string, tf.int64], stateful=False
        )
        return tf.ensure_shape(image, []), tf.ensure_shape(label, [])

    read_row(0)
    return Source(
        records=tf.data.Dataset.range(len(offsets) - 1),
        size=len(offsets) - 1,
        read=read,
        unlabelled="",
        shuffle_buffer=len(offsets) - 1,
    )


def tfds(name, data_dir, split, shuffle_seed):
    """A data set that TensorFlow Datasets has prepared.

    Args:
        name: as `tfds.builder` takes it, "cifar10" or "name/config:version".
        data_dir: where it was prepared; None for TFDS's default.
        split: as TFDS takes it, also slices: "train[:10%]".
        shuffle_seed: int, or None to read the files in their order.
    """
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
    if not builder.is_prepared():
        # The `tfds build` command needs Apache Beam, this does not.
        arguments = f"{name!r}" + (
            f", data_dir={data_dir!r}" if data_dir else ""
        )
        raise ValueError(
            f"{name!r} is not prepared: nothing in {str(builder.data_dir)!r}. "
            "Prepare it once, which downloads it: "
            'python -c "import tensorflow_datasets as tfds; '
            f'tfds.builder({arguments}).download_and_prepare()"'
        )
    info = builder.info
    try:
        size = info.splits[split].num_examples
    except (KeyError, ValueError):
        raise ValueError(
            f"Unknown split {split!r} of {name!r}. "
            f"Expected one of {', '.join(info.splits)}, or a slice of one."
        ) from None
    features = dict(info.features.items())
    images = [
        k for k, f in features.items() if isinstance(f, tfds.features.Image)
    ]
    if not images:
        raise ValueError(
            f"{name!r} has no images. Received: features {', '.join(features)}."
        )
    image = "image" if "image" in images else images[0]
    label = isinstance(features.get("label"), tfds.features.ClassLabel)
    records = builder.as_dataset(
        split=split,
        shuffle_files=shuffle_seed is not None,
        decoders={image: tfds.decode.SkipDecoding()},
        # The guard refuses to shuffle what was stored in a meaningful order.
        read_config=tfds.ReadConfig(
            shuffle_seed=shuffle_seed, enable_ordering_guard=False
        ),
    )
    return Source(
        records=records,
        size=size,
        read=lambda record: (record[image], record.get("label", np.int64(-1))),
        unlabelled="" if label else f'{name!r} has no feature "label"',
        # Encoded images are held here, not their names.
        shuffle_buffer=min(size, 4096),
    )


def _check_folder(path):
    if path is None or not os.path.isdir(path):
        raise ValueError(
            f"`data_dir` must be an existing folder. Received: {path!r}."
        )


def _subfolders(path):
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{path!r} cannot be read: {error}.") from error
    return [e.name for e in entries if e.is_dir() and e.name[0] != "."]


def _image_files(root):
    """Yields paths of image files, each with its top-level folder, or "."."""

    def fail(error):
        raise ValueError(f"{root!r} cannot be read: {error}.") from error

    for path, folders, names in os.walk(root, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        top = os.path.relpath(path, root).split(os.sep)[0]
        for name in names:
            if name.lower().endswith(EXTENSIONS) and name[0] != ".":
                yield os.path.join(path, name), top


def _row_offsets(file):
    """`[rows + 1]` int64: where each row of a TSV file begins, and its end."""
    index = os.path.splitext(file)[0] + ".lineidx"
    if os.path.exists(index):
        offsets = np.loadtxt(index, np.int64, ndmin=1)
    else:
        with open(file, "rb") as rows:
            lengths = np.fromiter(map(len, rows), np.int64)
        offsets = np.cumsum(lengths) - lengths
    return np.append(offsets, os.path.getsize(file))
