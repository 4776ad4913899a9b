"""The ring buffer against a Python deque, saved, compiled and distributed."""

import os

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from seed_tf import EmbeddingQueue


class Reference:
    """The same queue as a plain list of rows and a position."""

    def __init__(self, embeddings):
        self.rows = [np.array(row) for row in embeddings]
        self.position = 0

    def enqueue(self, batch):
        for row in batch:
            self.rows[self.position] = np.array(row)
            self.position = (self.position + 1) % len(self.rows)


class EmbeddingQueueTest(parameterized.TestCase):
    @parameterized.parameters(
        [[4, 4, 4]],  # divides the queue
        [[5, 5, 5, 5]],  # does not, and wraps
        [[12]],  # fills it exactly
        [[30]],  # exceeds it: the newest stay
        [[5, 31, 1, 0, 12, 13]],
    )
    def test_follows_a_ring_buffer(self, sizes):
        rng = np.random.default_rng(0)
        queue = EmbeddingQueue(12, 3)
        reference = Reference(queue.embeddings.numpy())
        enqueued = 0
        for size in sizes:
            batch = rng.standard_normal((size, 3)).astype("float32")
            queue.enqueue(batch)
            reference.enqueue(batch)
            enqueued += size
            np.testing.assert_array_equal(queue.embeddings, reference.rows)
            self.assertEqual(int(queue.cursor), reference.position)
            self.assertAlmostEqual(float(queue.filled), min(1, enqueued / 12))

    def test_starts_with_random_unit_vectors(self):
        a, b = EmbeddingQueue(500, 8, seed=1), EmbeddingQueue(500, 8, seed=2)
        np.testing.assert_allclose(
            np.linalg.norm(a.embeddings, axis=1), 1.0, rtol=1e-5
        )
        self.assertLess(np.abs(np.mean(a.embeddings, axis=0)).max(), 0.1)
        self.assertFalse(np.allclose(a.embeddings, b.embeddings))
        np.testing.assert_array_equal(
            a.embeddings, EmbeddingQueue(500, 8, seed=1).embeddings
        )

    @parameterized.parameters(True, False)
    def test_in_a_graph(self, jit_compile):
        queue = EmbeddingQueue(5, 2)

        @tf.function(jit_compile=jit_compile)
        def step(batch):
            before = queue.embeddings.value + 0.0
            queue.enqueue(batch)
            return before

        reference = Reference(queue.embeddings.numpy())
        for i in range(4):
            batch = np.full((3, 2), i, "float32")
            np.testing.assert_array_equal(step(batch), reference.rows)
            reference.enqueue(batch)
        np.testing.assert_array_equal(queue.embeddings, reference.rows)

    def test_is_saved_and_restored(self):
        queue = EmbeddingQueue(5, 2)
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Identity()(inputs))
        model.queue = queue
        queue.enqueue(np.ones((7, 2)))
        path = os.path.join(self.create_tempdir(), "queue.weights.h5")
        model.save_weights(path)
        expected = queue.embeddings.numpy()
        queue.enqueue(np.zeros((4, 2)))
        model.load_weights(path)
        np.testing.assert_array_equal(queue.embeddings, expected)
        self.assertEqual(int(queue.cursor), 2)
        self.assertEqual(float(queue.filled), 1.0)
        clone = EmbeddingQueue.from_config(queue.get_config())
        self.assertEqual((clone.size, clone.dim), (5, 2))

    def test_is_a_float32_variable_that_is_not_trained(self):
        keras.mixed_precision.set_global_policy("mixed_float16")
        try:
            queue = EmbeddingQueue(5, 2)
        finally:
            keras.mixed_precision.set_global_policy("float32")
        self.assertIsInstance(queue.embeddings.value, tf.Variable)
        self.assertEqual(queue.embeddings.dtype, "float32")
        self.assertEmpty(queue.trainable_weights)
        queue.enqueue(tf.ones((2, 2), tf.float16))
        np.testing.assert_array_equal(queue.embeddings[:2], np.ones((2, 2)))

    @parameterized.parameters(0, -3, 2.5, None)
    def test_refuses_sizes_that_are_not_positive_integers(self, value):
        with self.assertRaisesRegex(ValueError, f"size.*positive.*{value}"):
            EmbeddingQueue(value, 2)
        with self.assertRaisesRegex(ValueError, f"dim.*positive.*{value}"):
            EmbeddingQueue(2, value)

    def test_refuses_another_width(self):
        with self.assertRaisesRegex(ValueError, r"\[n, 2\].*\(3, 4\)"):
            EmbeddingQueue(5, 2).enqueue(np.ones((3, 4)))


if __name__ == "__main__":
    absltest.main()
