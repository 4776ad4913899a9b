"""The queue of teacher embeddings, a ring buffer saved with the model."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from seed_tf.arguments import integer


@keras.saving.register_keras_serializable(package="seed_tf")
class EmbeddingQueue(keras.layers.Layer):
    """The last `size` embeddings, first in, first out.

    The queue has two non-trainable weights, which are saved with the model
    that owns it. `embeddings [size, dim]` float32 are random unit vectors at
    the start, as in the authors' code. `enqueued`, int64, counts all
    embeddings ever enqueued; `cursor` and `filled` follow from it.

    Under a `tf.distribute` strategy every replica must enqueue the same,
    all-gathered batch. The copies of the queue then stay equal.

    Args:
        size: positive int, K of the paper (65,536).
        dim: positive int, the width of an embedding.
        seed: int or None, for the random vectors at the start.

    Raises:
        ValueError: if `size` or `dim` is not a positive integer.

    Example:

    >>> queue = seed_tf.EmbeddingQueue(size=4, dim=2)
    >>> queue.enqueue(np.ones((3, 2), "float32"))
    >>> int(queue.cursor), float(queue.filled)
    (3, 0.75)
    """

    def __init__(
        self, size: int, dim: int, *, seed: int | None = None, **kwargs
    ):
        # The queue is float32 under every mixed-precision policy.
        kwargs.update(dtype="float32", trainable=False)
        super().__init__(**kwargs)
        self.size = integer("size", size)
        self.dim = integer("dim", dim)
        self.seed = seed
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.size, self.dim),
            initializer=_RandomUnitVectors(seed),
            trainable=False,
            aggregation="only_first_replica",
        )
        self.enqueued = self.add_weight(
            name="enqueued",
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self.built = True

    @property
    def cursor(self) -> tf.Tensor:
        """The row of the next embedding: scalar int64 in [0, size)."""
        return self.enqueued.value % self.size

    @property
    def filled(self) -> tf.Tensor:
        """Share of rows that hold real embeddings: scalar float32 in [0, 1]."""
        share = ops.cast(self.enqueued.value, "float32") / self.size
        return ops.minimum(share, 1.0)

    def enqueue(self, batch: tf.Tensor) -> None:
        """Overwrites the oldest rows with a batch.

        Args:
            batch: `[n, dim]`, oldest first, n >= 0. If n exceeds `size`, only
                the last `size` rows are kept.

        Raises:
            ValueError: if the batch has another shape.
        """
        batch = ops.cast(batch, "float32")
        if len(batch.shape) != 2 or batch.shape[1] != self.dim:
            raise ValueError(
                f"Expected a batch of embeddings [n, {self.dim}]. "
                f"Received: shape {tuple(batch.shape)}."
            )
        rows = tf.shape(batch, out_type=tf.int64)[0]
        dropped = tf.maximum(rows - self.size, 0)
        positions = self.enqueued.value + tf.range(dropped, rows)
        # The variable's own scatter writes the rows in place.
        # ops.scatter_update would copy the whole queue twice in each step.
        self.embeddings.value.scatter_update(
            tf.IndexedSlices(batch[dropped:], positions % self.size)
        )
        self.enqueued.assign_add(rows)

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "dim": self.dim,
            "seed": self.seed,
        }


class _RandomUnitVectors(keras.initializers.Initializer):
    """Uniform directions: normal vectors, divided by their length."""

    def __init__(self, seed):
        self._normal = keras.initializers.RandomNormal(stddev=1.0, seed=seed)

    def __call__(self, shape, dtype=None):
        return ops.normalize(self._normal(shape, dtype=dtype), axis=-1)
