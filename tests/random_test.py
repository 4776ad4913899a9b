"""Random numbers as functions of keys."""

import numpy as np
import scipy.stats
import tensorflow as tf
from absl.testing import absltest, parameterized

from seed_tf import random
from seed_tf.datasets import pipeline
from seed_tf.trainer import Trainer
from seed_tf.view_cache.cache import FixedViews


def threefry_numpy(key, counter):
    """Threefry-2x32-20 in Python integers, from the paper's pseudo-code."""
    mask = 2**32 - 1
    keys = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x, y = ((c + k) & mask for c, k in zip(counter, key, strict=True))
    rotations = [13, 15, 26, 6, 17, 29, 16, 24]
    for i in range(20):
        x = (x + y) & mask
        r = rotations[i % 8]
        y = ((y << r) & mask | y >> (32 - r)) ^ x
        if i % 4 == 3:
            j = i // 4 + 1
            x = (x + keys[j % 3]) & mask
            y = (y + keys[(j + 1) % 3] + j) & mask
    return x, y


def seeds(n, seed=0, step=0):
    return random.image_seeds(seed, tf.constant(step, tf.int64), n)


class ThreefryTest(parameterized.TestCase):
    @parameterized.parameters(
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
        (
            (0x13198A2E, 0x03707344),
            (0x243F6A88, 0x85A308D3),
            (0xC4923A9C, 0x483DF7A0),
        ),
    )
    def test_known_answers(self, key, counter, expected):
        """The vectors published with Random123."""
        key = tf.constant(key, tf.uint32)
        bits = random.threefry(key, *tf.constant(counter, tf.uint32))
        self.assertSequenceEqual(bits.numpy().tolist(), expected)

    def test_random_keys_and_counters(self):
        words = np.random.default_rng(0).integers(0, 2**32, [50, 4])
        words = words.astype(np.uint32)
        bits = random.threefry(words[:, :2], words[:, 2], words[:, 3])
        expected = [threefry_numpy(row[:2], row[2:]) for row in words.tolist()]
        np.testing.assert_array_equal(bits, expected)

    def test_shapes_are_known_and_few_operations_added_to_a_graph(self):
        function = tf.function(lambda keys, x: random.threefry(keys, x, x))
        for batch, numbers, expected in (
            (4, [3, 1], [3, 4, 2]),
            (None, [], [None, 2]),
            (None, [5, 1], [5, None, 2]),
        ):
            concrete = function.get_concrete_function(
                tf.TensorSpec([batch, 2], tf.uint32),
                tf.TensorSpec(numbers, tf.uint32),
            )
            self.assertEqual(concrete.output_shapes.as_list(), expected)
            self.assertLess(len(concrete.graph.get_operations()), 30)


class ImageSeedsTest(parameterized.TestCase):
    def test_replicas_draw_what_one_device_draws(self):
        step = tf.constant(5, tf.int64)
        whole = random.image_seeds(3, step, 8)
        halves = [
            random.image_seeds(3, step, 4, offset=replica * 4)
            for replica in range(2)
        ]
        np.testing.assert_array_equal(tf.concat(halves, 0), whole)
        offset = tf.constant(1) * tf.constant(4)
        np.testing.assert_array_equal(
            random.image_seeds(3, step, tf.constant(4), offset), whole[4:]
        )

    def test_no_two_keys_are_equal(self):
        keys = [
            seeds(256, seed, step)
            for seed in (0, 1, 2**32, 2**63, -1)
            for step in (-1, 0, 1, 2**31, 2**32, 2**40)
        ]
        keys = np.concatenate(keys)
        self.assertLen(np.unique(keys, axis=0), len(keys))
        self.assertEqual(keys.dtype, np.uint32)

    def test_step_may_be_a_variable_of_a_compiled_function(self):
        step = tf.Variable(41, dtype=tf.int64)

        @tf.function(jit_compile=True)
        def next_seeds():
            step.assign_add(1)
            return random.image_seeds(0, step, 3)

        np.testing.assert_array_equal(next_seeds(), seeds(3, step=42))


class FoldInTest(parameterized.TestCase):
    def test_broadcasts(self):
        keys = seeds(3)
        table = random.fold_in(keys, tf.range(4)[:, None])
        self.assertEqual(table.shape, (4, 3, 2))
        for i in range(4):
            np.testing.assert_array_equal(table[i], random.fold_in(keys, i))
        self.assertEqual(random.fold_in(keys[0], 7).shape, (2,))

    def test_new_keys_differ_from_one_another_and_from_draws(self):
        keys = seeds(64)
        folded = random.fold_in(keys, tf.range(64)[:, None])
        folded = np.reshape(folded, [-1, 2])
        self.assertLen(np.unique(folded, axis=0), len(folded))
        # Drawing from a key must not show the keys folded from it.
        draws = random.uniform(keys, 128).numpy().ravel()
        shown = (folded >> 8).astype(np.float32) * 2.0**-24
        self.assertLess(np.isin(shown, draws).mean(), 0.01)


class UniformTest(parameterized.TestCase):
    def test_distribution(self):
        draws = random.uniform(seeds(4000), 5).numpy()
        self.assertEqual(draws.dtype, np.float32)
        self.assertGreaterEqual(draws.min(), 0.0)
        self.assertLess(draws.max(), 1.0)
        for column in draws.T:
            p = scipy.stats.kstest(column, "uniform").pvalue
            self.assertGreater(p, 1e-3)
        correlation = np.corrcoef(draws.T) - np.eye(5)
        self.assertLess(np.abs(correlation).max(), 0.06)
        neighbours = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
        self.assertLess(abs(neighbours), 0.06)

    def test_draws_keep_24_bits(self):
        draws = random.uniform(seeds(10000), 2).numpy().astype(np.float64)
        np.testing.assert_array_equal(draws * 2**24 % 1, 0)

    def test_more_draws_start_with_the_same(self):
        keys = seeds(3)
        many = random.uniform(keys, 7)
        self.assertEqual(many.shape, (3, 7))
        for n in (1, 2, 6):
            np.testing.assert_array_equal(random.uniform(keys, n), many[:, :n])

    def test_draws_belong_to_the_key_not_to_the_batch(self):
        keys = seeds(5)
        together = random.uniform(keys, 3)
        for i in range(5):
            np.testing.assert_array_equal(
                random.uniform(keys[i], 3), together[i]
            )

    def test_same_bits_everywhere(self):
        def draw(step):
            return random.uniform(random.image_seeds(7, step, 4), 5)

        steps = tf.range(3, dtype=tf.int64)
        expected = [draw(step).numpy() for step in steps]
        for jit_compile in (False, True):
            function = tf.function(draw, jit_compile=jit_compile)
            np.testing.assert_array_equal(
                [function(step) for step in steps], expected
            )
        dataset = tf.data.Dataset.from_tensor_slices(steps).map(draw)
        np.testing.assert_array_equal(list(dataset), expected)


class ViewKeysTest(absltest.TestCase):
    """Every place that makes views, against keys that version 0.1 computed.

    A change here would change the views of every run that goes on, and make
    view caches worthless.
    """

    seed, step = 3, 7
    first = [[272403510, 449103045], [1238088803, 16280393]]
    second = [[4109565795, 4129396454], [1909015111, 1030730572]]

    def test_from_seed_and_step(self):
        keys = random.image_seeds(self.seed, self.step, 2, offset=5)
        expected = [[3074016349, 2515638292], [981404126, 86237524]]
        np.testing.assert_array_equal(keys, expected)
        keys = random.image_seeds(self.seed, self.step, 2)
        np.testing.assert_array_equal(random.view_keys(keys), self.first)
        np.testing.assert_array_equal(random.view_keys(keys, 1), self.second)

    def test_of_a_training_step(self):
        received = []

        def views(images, seeds):
            received.append(seeds)
            return tf.cast(images, tf.float32)

        trainer = Trainer(views=views, seed=self.seed)
        images = np.zeros((2, 8, 8, 3), "uint8")
        step = tf.constant(self.step, tf.int64)
        trainer.augment(images, step)
        trainer.augment(images, step, stream=1)
        keys = tf.constant([[1, 2], [3, 4]], tf.uint32)
        trainer.augment({"images": images, "keys": keys}, step)
        given = [[629003988, 1317161160], [1441834994, 695621559]]
        np.testing.assert_array_equal(
            received, [self.first, self.second, given]
        )

    def test_of_decoding(self):
        keys = pipeline.live_keys(self.seed, (0, 2), 2)(self.step, {})
        np.testing.assert_array_equal(keys[:, 0, 0], self.first)
        np.testing.assert_array_equal(keys[:, 0, 1], self.second)
        keys = tf.constant([[1, 2], [3, 4]], tf.uint32)
        keys = pipeline.given_keys(self.step, {"keys": keys})
        given = [[629003988, 1317161160], [1441834994, 695621559]]
        np.testing.assert_array_equal(keys[:, 0, 0], given)

    def test_of_a_view_cache(self):
        fixed = FixedViews(self.seed, 4)
        keys = fixed.keys(tf.constant([5, 6], tf.int64), [0, 2])
        expected = [[166125189, 559364758], [330001956, 2894569701]]
        np.testing.assert_array_equal(keys, expected)
        chosen = fixed.chosen(9, 1, tf.range(6, dtype=tf.int64))
        np.testing.assert_array_equal(chosen, [1, 2, 1, 0, 2, 3])

    def test_views_that_take_no_seeds(self):
        self.assertTrue(random.takes_seeds(lambda images, seeds=None: images))
        self.assertFalse(random.takes_seeds(lambda images: images))


if __name__ == "__main__":
    absltest.main()
