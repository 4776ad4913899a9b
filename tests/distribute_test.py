"""Two replicas, on two logical CPUs, against one device."""

import functools

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

import seed_tf
from seed_tf import losses, stateless

# Before anything runs: logical devices cannot be added later.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)


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


@functools.cache
def two_replicas():
    """One strategy: a second one's collectives would meet the first one's."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def train(strategy, build, steps=20):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = build()
        model.compile(seed_tf.training.SGD(0.1))
    data = tf.data.Dataset.from_tensor_slices(random_images(8 * steps))
    data = data.batch(8, drop_remainder=True)
    history = model.fit(data, verbose=0).history
    return model, history


class TwoReplicasTest(parameterized.TestCase):
    def assert_same_training(self, build):
        one, one_history = train(tf.distribute.get_strategy(), build)
        two, two_history = train(two_replicas(), build)
        self.assertEqual(int(two.step.numpy()), 20)
        self.assertEqual(int(two.queue.cursor), int(one.queue.cursor))
        for a, b in zip(one.weights, two.weights, strict=True):
            np.testing.assert_allclose(
                a.numpy(), b.numpy(), atol=1e-5, err_msg=a.path
            )
        np.testing.assert_allclose(
            one_history["loss"], two_history["loss"], rtol=1e-4
        )
        for replica in two.queue.embeddings.value.values:
            np.testing.assert_array_equal(replica, two.queue.embeddings)

    def test_seed_trains_as_on_one_device(self):
        self.assert_same_training(
            lambda: seed_tf.SEED(
                tower(4),
                tower(8),
                views=seed_tf.views.moco_v2(8),
                queue_size=50,
            )
        )

    def test_moco_trains_as_on_one_device(self):
        self.assert_same_training(
            lambda: seed_tf.MoCo(
                tower(4),
                views=seed_tf.views.moco_v2(8),
                queue_size=50,
                shuffle_groups=2,
            )
        )

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    def test_mixed_precision(self, policy):
        keras.mixed_precision.set_global_policy(policy)
        self.addCleanup(keras.mixed_precision.set_global_policy, "float32")
        model, history = train(
            two_replicas(),
            lambda: seed_tf.SEED(
                tower(4),
                tower(8),
                views=seed_tf.views.moco_v2(8),
                queue_size=50,
            ),
        )
        self.assertTrue(np.isfinite(history["loss"]).all())
        self.assertEqual(int(model.queue.cursor), 160 % 50)
        self.assertEqual(model.queue.embeddings.dtype, "float32")
        for weight in model.student.weights:
            self.assertTrue(np.isfinite(weight.numpy()).all(), weight.path)

    @parameterized.parameters({"jit_compile": True}, {"steps_per_execution": 2})
    def test_what_keras_cannot_do_is_refused(self, **kwargs):
        (name,) = kwargs
        with two_replicas().scope():
            model = seed_tf.SEED(
                tower(4),
                tower(8),
                views=seed_tf.views.moco_v2(8),
                queue_size=8,
            )
            model.compile(seed_tf.training.SGD(0.1), **kwargs)
        data = tf.data.Dataset.from_tensors(random_images(8))
        with self.assertRaisesRegex(ValueError, f"`{name}` does not work with"):
            model.fit(data, verbose=0)

    def test_moco_shuffles_keys_across_replicas(self):
        strategy = two_replicas()
        with strategy.scope():
            model = seed_tf.MoCo(
                tower(4, synchronized=False),
                views=seed_tf.views.moco_v2(8),
                queue_size=16,
            )
            model.compile(seed_tf.training.SGD(0.1))
        images = random_images(16)
        with strategy.scope():
            (view,) = model.augment(images, 0, stream=1)
        draws = stateless.uniform(stateless.image_seeds(0, 0, 16), 1)[:, 0]
        order = np.argsort(draws)
        self.assertFalse(set(order[:8]) == set(range(8)))
        expected = np.zeros((16, 4), "float32")
        reference = tower(4)
        for half in (order[:8], order[8:]):
            reference.set_weights(model.momentum_encoder.get_weights())
            batch = tf.gather(view, half)
            expected[half] = losses.normalise(reference(batch, training=True))
        data = tf.data.Dataset.from_tensor_slices(images)
        data = data.batch(16, drop_remainder=True)
        model.fit(data, verbose=0)
        np.testing.assert_allclose(
            model.queue.embeddings.numpy(), expected, atol=1e-5
        )


if __name__ == "__main__":
    absltest.main()
