"""Chooses the images of each batch, as a pure function of the seed.

Seed and epoch select a pseudo-random permutation of the images. So any batch
can be computed without earlier batches.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from seed_tf import random
from seed_tf.io.pipelines import steady

# Makes the keys of permutations differ from the keys of views, which are folded
# with small numbers.
_ORDER = 0x5EED0DE5
# Key of the permutation that chooses held-out images, the same for all seeds.
_HELD_OUT = (0x5EED, 0x4E1D)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The images of each batch, for the rows that one worker reads.

    Attributes:
        total: int, number of images in the data set.
        size: int, number of images in this subset, all seen in every epoch.
        batch_size: int, B, of the global batch.
        rows: pair of ints, the first row of each global batch that this worker
            reads, and the row after the last.
        held_out: bool, whether the subset is part of a fixed permutation of all
            images.
        start: int, with `held_out` the first position in that permutation.
        drop_remainder: bool, whether to drop images that do not fill a batch;
            otherwise the last batch of an epoch has empty positions.
        shuffle: bool.
        seed: int.
        first_step: int, the first batch to read.
        epochs: int.
    """

    total: int
    size: int
    batch_size: int
    rows: tuple[int, int]
    held_out: bool = False
    start: int = 0
    drop_remainder: bool = False
    shuffle: bool = False
    seed: int = 0
    first_step: int = 0
    epochs: int = 1

    @classmethod
    def once(cls, size: int, batch_size: int) -> Sampler:
        """Returns the sampler of one pass over `size` images, in order."""
        return cls(size, size, batch_size, rows=(0, batch_size))

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest > 0 and not self.drop_remainder)

    @property
    def steps(self) -> tf.data.Dataset:
        """The numbers of the batches to read, int64."""
        last = self.epochs * self.steps_per_epoch
        return steady(tf.data.Dataset.range(self.first_step, last))

    def places(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the positions of a batch's rows in the epoch, int64 `[b]`."""
        first = step % self.steps_per_epoch * self.batch_size
        return first + tf.range(*self.rows, dtype=tf.int64)

    def indices(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the numbers of a batch's images, int64 `[b]`.

        The number at an empty position has no meaning.
        """
        index = tf.minimum(self.places(step), self.size - 1)
        if self.shuffle:
            key = self.key(step // self.steps_per_epoch)
            index = permute(index, key, self.size)
        if self.held_out:
            key = tf.constant(_HELD_OUT, tf.uint32)
            index = permute(index + self.start, key, self.total)
        return index

    def key(self, epoch: tf.Tensor) -> tf.Tensor:
        """Returns the key of an epoch's permutations, uint32 `[2]`."""
        return random.purpose_key(self.seed, epoch, _ORDER)


def permute(index: tf.Tensor, key: tf.Tensor, size: int) -> tf.Tensor:
    """Returns `index` under the permutation of [0, size) that `key` selects."""
    return tf.random.experimental.index_shuffle(index, key, size - 1)
