"""A folder of a teacher's embeddings of fixed views, opened to train from."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from seed_tf import random
from seed_tf.io.arrays import open_array, read_record
from seed_tf.io.files import differences
from seed_tf.view_cache import provenance

if TYPE_CHECKING:
    from seed_tf.views import MultiCrop, View

CONFIG = "cache.json"
SHARD = 1024  # images in a file, and what a killed process loses at most
_SHARD_NAME = re.compile(r"(\d{6})-([0-9a-f]{8})\.npy")
# They separate the keys of views, and of the first view, from the keys that a
# training of the same seed derives.
_VIEWS, _FIRST = 0x5EEDCAC4, 0x5EEDCAC5


class FixedViews:
    """V views of each image, as keys.

    Args:
        seed: int.
        views_per_image: positive int, V.
    """

    def __init__(self, seed: int, views_per_image: int) -> None:
        self.seed, self.views_per_image = seed, views_per_image

    def keys(self, index: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Returns the keys of views, see `seed_tf.views.View`.

        Args:
            index: int64 `[...]`, the numbers of images in their data set.
            number: int64 `[...]`, which view of each, in [0, V).

        Returns:
            uint32 `[..., 2]`.
        """
        key = random.purpose_key(self.seed, 0, _VIEWS)
        return random.fold_in(random.fold_in(key, index), number)

    def chosen(
        self, seed: int, epoch: tf.Tensor, index: tf.Tensor
    ) -> tf.Tensor:
        """Returns the number of the view that a training sees in an epoch.

        Epochs go through all V views and begin again. The first view differs
        from image to image.

        Args:
            seed: int, of the training.
            epoch: int64 scalar.
            index: int64 `[b]`.

        Returns:
            int64 `[b]` in [0, V).
        """
        keys = random.fold_in(random.purpose_key(seed, 0, _FIRST), index)
        first = random.uniform(keys, 1)[:, 0] * self.views_per_image
        return (tf.cast(first, tf.int64) + epoch) % self.views_per_image


class ViewCache(FixedViews):
    """A frozen teacher's embeddings of V fixed views of each image, on disk.

    A view is a key of its random parameters, a function of the cache's seed,
    the image's number and the view's: only embeddings are stored. `build`
    makes a cache, `datasets.load(..., view_cache=...)` gives batches of its
    views with their embeddings, and `SEED` trained on these does not call its
    teacher.

    Args:
        path: folder that `build` has filled:

            - `cache.json`, its contents: "teacher", "views", "images",
              "seed", "views_per_image", "embeddings_per_view", "dim",
              "teacher_precision";
            - `<shard>-<CRC-32>.npy`, float16 `[1024, V, n, D]`, the
              L2-normalised embeddings of 1,024 images in the order of the
              data set, fewer in the last; n is 1, of multi-crop 1 + the
              number of small views. An image that could not be read has NaN.

    Raises:
        ValueError: if the cache is missing, not whole, or a file of it is
            damaged: all are read once, and compared with their checksums.

    Example:

    >>> cache = seed_tf.view_cache.ViewCache("caches/photos")  # doctest: +SKIP
    >>> cache.check_teacher(teacher)  # doctest: +SKIP
    >>> batches = seed_tf.datasets.load(
    ...     "folder", data_dir="photos", views=views, view_cache=cache
    ... )  # doctest: +SKIP
    >>> seed.fit(batches)  # doctest: +SKIP
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        try:
            self.config = read_config(self.path)
        except OSError as error:
            raise ValueError(
                f"No view cache in {path!r}: {CONFIG} cannot be read "
                f"({error.strerror}). Make one with "
                "seed_tf.view_cache.build, or the command seed-tf cache."
            ) from error
        super().__init__(self.config["seed"], self.config["views_per_image"])
        self._shape = row_shape(self.config)
        self._files = whole_shards(self.path, self.config)
        self._seen = set()

    def accompany(
        self, seed: int, epoch: tf.Tensor, index: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Returns the keys and embeddings of an epoch's images.

        Args:
            seed: int, of the training.
            epoch: int64 scalar.
            index: int64 `[b]`, numbers of images.

        Returns:
            dict of "keys" uint32 `[b, 2]` and "embeddings" float16
            `[b, n, D]`; bool `[b]`, whether there are embeddings.
        """
        number = self.chosen(seed, epoch, index)
        embeddings = self.embeddings(index, number)
        known = tf.reduce_all(tf.math.is_finite(embeddings), [1, 2])
        along = {"keys": self.keys(index, number), "embeddings": embeddings}
        return along, known

    def embeddings(self, index: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Returns the teacher's embeddings of views.

        Args:
            index: int64 `[b]`, numbers of images.
            number: int64 `[b]`, which view of each.

        Returns:
            float16 `[b, n, D]`.
        """
        embeddings = tf.numpy_function(
            self._read, [index, number], tf.float16, stateful=False
        )
        embeddings.set_shape([*index.shape, *self._shape[1:]])
        return embeddings

    def _read(self, index, number):
        # Files are not kept open or mapped: there are thousands of them.
        rows = np.empty([len(index), *self._shape[1:]], np.float16)
        size = rows[0].size
        for row, i, v in zip(rows, index, number, strict=True):
            shard, place = divmod(int(i), SHARD)
            file, start = self._files[shard]
            start += rows.itemsize * size * (place * self.views_per_image + v)
            values = np.fromfile(file, np.float16, size, offset=start)
            row[:] = values.reshape(row.shape)
        return rows

    def check_teacher(self, teacher: keras.Model) -> None:
        """Raises ValueError unless the cache is of this teacher."""
        facts = provenance.comparable_teacher(
            provenance.of_teacher(teacher), self.config["teacher"]
        )
        self._compare("teacher", "another teacher", facts)

    def check_views(
        self, views: View | MultiCrop, squares: dict[str, int] | None = None
    ) -> None:
        """Raises ValueError unless the cache is of these views.

        Args:
            views: `View` or `MultiCrop`.
            squares: how whole images are cut before, None if files are
                decoded to the crops that views begin with.
        """
        self._compare(
            "views", "other views", provenance.of_views(views, squares)
        )

    def check_images(
        self, where: tuple[Any, ...], size: int, fingerprint: Callable[[], str]
    ) -> None:
        """Raises ValueError unless the cache is of these images.

        Args:
            where: name, split and folder. Each is checked once.
            size: number of images.
            fingerprint: called at the first check.
        """
        if where not in self._seen:
            images = {"number": size, "fingerprint": fingerprint()}
            self._compare("images", "other images", images)
            self._seen.add(where)

    def _compare(self, name, other, here):
        different = differences(self.config[name], here)
        if different:
            raise ValueError(
                f"The view cache {self.path!r} is of {other}. "
                f"{'; '.join(different)}. Train with the {name} that it was "
                "made of, or make another one with seed-tf cache."
            )


def read_config(path: str) -> dict[str, Any]:
    """Returns the contents of a cache.

    Raises:
        FileNotFoundError: if there is no cache.
        ValueError: if the file is damaged.
    """
    numbers = ("seed", "views_per_image", "embeddings_per_view", "dim")
    parts = ("teacher", "views", "images")
    types = dict.fromkeys(numbers, int) | dict.fromkeys(parts, dict)
    types["teacher_precision"] = str
    file = os.path.join(path, CONFIG)
    config = read_record(file, types)
    number = config["images"].get("number")
    if not isinstance(number, int) or min(number, *row_shape(config)) < 1:
        raise ValueError(f"{file!r} is damaged: a size is not positive")
    return config


def row_shape(config: dict[str, Any]) -> tuple[int, ...]:
    """(V, n, D), the shape of an image's embeddings."""
    names = ("views_per_image", "embeddings_per_view", "dim")
    return tuple(config[name] for name in names)


def shard_shapes(config: dict[str, Any]) -> list[tuple[int, ...]]:
    """The shapes of all shards, in their order."""
    total, shape = config["images"]["number"], row_shape(config)
    return [
        (min(SHARD, total - start), *shape) for start in range(0, total, SHARD)
    ]


def find_shards(path: str) -> dict[int, tuple[str, int]]:
    """Returns (file name, checksum) of each shard by its number."""
    found = {}
    for name in sorted(os.listdir(path)):
        if match := _SHARD_NAME.fullmatch(name):
            found[int(match[1])] = name, int(match[2], 16)
    return found


def shard_name(number: int, checksum: int) -> str:
    """Returns the name of a shard's file."""
    return f"{number:06d}-{checksum:08x}.npy"


def read_shard(file: str, shape: tuple[int, ...], checksum: int) -> int:
    """Returns the place in its file where a shard's values begin, in bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the shard is damaged. The message names it.
    """
    array = open_array(file, np.float16, shape)
    if zlib.crc32(array.data) != checksum:
        raise ValueError(f"{file!r} is damaged: its checksum is wrong")
    return array.offset


def whole_shards(path: str, config: dict[str, Any]) -> list[tuple[str, int]]:
    """Returns (file, place of its values in bytes) of all shards.

    Raises:
        ValueError: if any is missing or damaged, with its name.
    """
    found, shards, damaged, missing = find_shards(path), [], [], 0
    for number, shape in enumerate(shard_shapes(config)):
        if number not in found:
            missing += 1
            continue
        name, checksum = found[number]
        file = os.path.join(path, name)
        try:
            shards.append((file, read_shard(file, shape, checksum)))
        except ValueError as error:
            damaged.append(str(error))
    if damaged or missing:
        problems = damaged[:10]
        if more := len(damaged) - len(problems):
            problems.append(f"{more:,} more files damaged")
        if missing:
            problems.append(f"{missing} of {number + 1} files missing")
        raise ValueError(
            f"The view cache {path!r} is not whole: {'; '.join(problems)}. "
            "Repeat the call or the command that made it: it computes only "
            "what is missing or damaged."
        )
    return shards
