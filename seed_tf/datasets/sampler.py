"""Which image is seen when: a pure function of the seed, in no memory.

Place i of epoch e is filled by a pseudo-random permutation of the images that
(seed, e) selects, so that any batch can be found without its predecessors.
"""

import dataclasses

import tensorflow as tf

from seed_tf import random

# Sets the keys of the order apart from those of views: they are folded with
# streams, which are small numbers.
_ORDER = 0x5EED0DE5
# Of the permutation that chooses the images held out, whatever the seed.
_HELD_OUT = (0x5EED, 0x4E1D)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The rows that one worker reads, batch for batch.

    Attributes:
        total: int, images of the data set.
        start: int, where the images of this subset begin in a fixed
            permutation of all, if `held_out`.
        size: int, images of this subset, seen in every epoch.
        held_out: bool, whether there is such a permutation.
        batch_size: int, B, of the global batch.
        rows: pair of ints, first row of each global batch that is read, and
            the one after the last.
        drop_remainder: bool, leave out what does not fill a batch; otherwise
            the last batch of an epoch has places without an image.
        shuffle: bool.
        seed: int.
        first_step: int, batch to begin with.
        epochs: int.
    """

    total: int
    start: int
    size: int
    held_out: bool
    batch_size: int
    rows: tuple
    drop_remainder: bool
    shuffle: bool
    seed: int
    first_step: int
    epochs: int

    @classmethod
    def once(cls, size, batch_size):
        """All of `size` images once, in their own order, read by one."""
        return cls(
            total=size,
            start=0,
            size=size,
            held_out=False,
            batch_size=batch_size,
            rows=(0, batch_size),
            drop_remainder=False,
            shuffle=False,
            seed=0,
            first_step=0,
            epochs=1,
        )

    @property
    def steps_per_epoch(self):
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest > 0 and not self.drop_remainder)

    @property
    def steps(self):
        """The `tf.data.Dataset` of the numbers of batches to be read."""
        return tf.data.Dataset.range(
            self.first_step, self.epochs * self.steps_per_epoch
        )

    def places(self, step):
        """int64 `[b]`, the places within their epoch of a batch's rows."""
        first = step % self.steps_per_epoch * self.batch_size
        return first + tf.range(*self.rows, dtype=tf.int64)

    def indices(self, step):
        """int64 `[b]`, the numbers of the images; any, for empty places."""
        index = tf.minimum(self.places(step), self.size - 1)
        if self.shuffle:
            key = self.key(step // self.steps_per_epoch)
            index = permute(index, key, self.size)
        if self.held_out:
            key = tf.constant(_HELD_OUT, tf.uint32)
            index = permute(index + self.start, key, self.total)
        return index

    def key(self, epoch):
        """uint32 `[2]`, the key of an epoch's permutations."""
        return random.purpose_key(self.seed, epoch, _ORDER)


def permute(index, key, size):
    """Where a pseudo-random permutation of `size` numbers puts each index."""
    return tf.random.experimental.index_shuffle(index, key, size - 1)
