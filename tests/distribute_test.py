"""Two replicas, on two logical CPUs, against one device."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.devices import two_logical_cpus, two_replicas
from helpers.light_views import crop_and_flip

import seed_tf
from seed_tf import (
    random,
)
from seed_tf.embeddings import l2_normalise

two_logical_cpus()


def random_images(n, size=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def tower(width, *, synchronized=True):
    return keras.Sequential(
        [
            keras.layers.Input((None, None, 3)),
            keras.layers.Rescaling(1 / 255.0),
            keras.layers.Conv2D(width, 3, padding="same"),
            keras.layers.BatchNormalization(synchronized=synchronized),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.0),
            keras.layers.Dense(4),
        ]
    )


def batches(count, size=8):
    data = tf.data.Dataset.from_tensor_slices(random_images(count * size))
    return data.batch(size, drop_remainder=True)


def build(method, *, synchronized=False, queue_size=50, views=None):
    """A function without arguments to a small model."""
    views = views or crop_and_flip(8)
    options = {"views": views, "queue_size": queue_size}
    student = functools.partial(tower, 4, synchronized=synchronized)
    if method == "seed":
        return lambda: seed_tf.SEED(
            student=student(), teacher=tower(8), **options
        )
    return lambda: seed_tf.MoCo(student(), shuffle_groups=2, **options)


def train(strategy, build, steps=20, **options):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = build()
        model.compile(seed_tf.training.SGD(0.1), **options)
    history = model.fit(batches(steps), verbose=0).history
    return model, history


def unchanged(images):
    """A view that costs nothing to compile."""
    return keras.ops.cast(images, "float32")


@functools.cache
def plain(method):
    """Model and logs of a short training by two replicas."""
    return train(two_replicas(), build(method, views=unchanged), steps=6)


class TwoReplicasTest(parameterized.TestCase):
    @parameterized.parameters("seed", "moco")
    def test_trains_as_on_one_device(self, method):
        one, one_logs = train(
            tf.distribute.get_strategy(), build(method, synchronized=True)
        )
        two, two_logs = train(two_replicas(), build(method, synchronized=True))
        self.assertEqual(int(two.step.numpy()), 20)
        self.assertEqual(int(two.queue.cursor), int(one.queue.cursor))
        for a, b in zip(one.weights, two.weights, strict=True):
            np.testing.assert_allclose(
                a.numpy(), b.numpy(), atol=1e-5, err_msg=a.path
            )
        for name in {"loss", "gap", "accuracy", "cosine"} & set(one_logs):
            np.testing.assert_allclose(
                one_logs[name], two_logs[name], rtol=1e-4, err_msg=name
            )
        for replica in two.queue.embeddings.value.values:
            np.testing.assert_array_equal(replica, two.queue.embeddings)

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    @pytest.mark.slow
    def test_mixed_precision(self, policy):
        keras.mixed_precision.set_global_policy(policy)
        self.addCleanup(keras.mixed_precision.set_global_policy, "float32")
        model, history = train(two_replicas(), build("seed", synchronized=True))
        self.assertTrue(np.isfinite(history["loss"]).all())
        self.assertEqual(int(model.queue.cursor), 160 % 50)
        self.assertEqual(model.queue.embeddings.dtype, "float32")
        for weight in model.student.weights:
            self.assertTrue(np.isfinite(weight.numpy()).all(), weight.path)

    @parameterized.product(
        method=["seed", "moco"],
        options=[{"jit_compile": True}, {"steps_per_execution": 3}],
    )
    @pytest.mark.slow
    def test_xla_and_several_steps_per_execution(self, method, options):
        expected, expected_logs = plain(method)
        model, logs = train(
            two_replicas(), build(method, views=unchanged), steps=6, **options
        )
        self.assertEqual(int(model.step.numpy()), 6)
        for a, b in zip(expected.weights, model.weights, strict=True):
            np.testing.assert_allclose(
                a.numpy(), b.numpy(), atol=1e-5, err_msg=a.path
            )
        for name, value in logs.items():
            np.testing.assert_allclose(value, expected_logs[name], rtol=1e-3)

    @parameterized.parameters("seed", "moco")
    def test_xla_takes_the_views_in(self, method):
        def strings(images):  # which XLA does not know
            return tf.strings.to_number(tf.strings.as_string(images))

        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError, "unsupported operations|AsString"
        ):
            train(
                two_replicas(),
                build(method, views=strings),
                steps=1,
                jit_compile=True,
            )

    @pytest.mark.slow
    def test_is_traced_once_for_each_replica(self):
        with two_replicas().scope():
            model, traces = build("seed")(), []
            model.compile(seed_tf.training.SGD(0.1))
        step = model.train_step
        model.train_step = lambda data: traces.append(1) or step(data)
        for _ in range(2):
            model.fit(batches(4), epochs=2, verbose=0)
        self.assertLen(traces, 2)

    @parameterized.parameters("seed", "moco")
    @pytest.mark.slow
    def test_running_statistics_are_the_mean_of_the_replicas(self, method):
        with two_replicas().scope():
            model = build(method)()
            model.compile(seed_tf.training.SGD(0.0))
        tower = model.student if method == "seed" else model.encoder
        norm = tower.layers[2]
        convolve = keras.Sequential(tower.layers[:2])
        with two_replicas().scope():
            (view,) = model.augment(random_images(8), 0)
            activations = convolve(view).numpy().reshape(2, -1, 4)
        model.fit(batches(1), verbose=0)
        for variable, expected in (
            (norm.moving_mean, 0.01 * activations.mean(1)),
            (norm.moving_variance, 0.99 + 0.01 * activations.var(1)),
        ):
            for replica in variable.value.values:
                np.testing.assert_allclose(replica, expected.mean(0), rtol=1e-5)

    def test_evaluates_as_one_device(self):
        found = []
        for strategy in (tf.distribute.get_strategy(), two_replicas()):
            with strategy.scope():
                keras.utils.set_random_seed(0)
                model = build("seed")()
                model.compile()
            logs = model.evaluate(batches(3), verbose=0, return_dict=True)
            found.append(logs)
        for name in ("loss", "gap", "cosine"):
            np.testing.assert_allclose(
                found[0][name], found[1][name], rtol=1e-4, err_msg=name
            )

    @parameterized.parameters(
        (lambda: batches(2, size=7), {}, "a multiple of 2. .* batches of 7"),
        (lambda: batches(2).unbatch().batch(8), {}, "batches of unknown size"),
        (
            lambda: batches(5),
            {"steps_per_execution": 2},
            "must divide the steps.*steps_per_execution=2, 5 steps",
        ),
        (
            lambda: batches(4).repeat(),
            {"steps_per_execution": 2},
            "steps_per_execution=2, unknown steps",
        ),
    )
    def test_refuses_what_replicas_cannot_share(self, data, options, message):
        with two_replicas().scope():
            model = build("seed")()
            model.compile(seed_tf.training.SGD(0.1), **options)
        with self.assertRaisesRegex(ValueError, message):
            model.fit(data(), verbose=0)

    def test_refuses_xla_with_synchronised_batch_norm(self):
        with two_replicas().scope():
            model = build("seed", synchronized=True)()
            model.compile(seed_tf.training.SGD(0.1), jit_compile=True)
        with self.assertRaisesRegex(ValueError, "leave out `jit_compile=True`"):
            model.fit(batches(1), verbose=0)

    def test_refuses_single_batches(self):
        with two_replicas().scope():
            model = build("seed")()
            model.compile(seed_tf.training.SGD(0.1))
        with self.assertRaisesRegex(ValueError, "train and evaluate by `fit`"):
            model.train_on_batch(random_images(8))

    @pytest.mark.slow
    def test_moco_shuffles_keys_across_replicas(self):
        strategy = two_replicas()
        with strategy.scope():
            model = build("moco", queue_size=16)()
            model.compile(seed_tf.training.SGD(0.1))
        images = random_images(16)
        with strategy.scope():
            (view,) = model.augment(images, 0, stream=1)
        draws = random.uniform(random.image_seeds(0, 0, 16), 1)[:, 0]
        order = np.argsort(draws)
        self.assertFalse(set(order[:8]) == set(range(8)))
        expected = np.zeros((16, 4), "float32")
        reference = tower(4)
        for half in (order[:8], order[8:]):
            reference.set_weights(model.momentum_encoder.get_weights())
            batch = tf.gather(view, half)
            expected[half] = l2_normalise(reference(batch, training=True))
        data = tf.data.Dataset.from_tensor_slices(images)
        data = data.batch(16, drop_remainder=True)
        model.fit(data, verbose=0)
        np.testing.assert_allclose(
            model.queue.embeddings.numpy(), expected, atol=1e-5
        )


if __name__ == "__main__":
    absltest.main()
