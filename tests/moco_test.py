"""MoCo: momentum, keys, queue, and that BatchNorm leaks nothing."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.light_views import crop_and_flip

import seed_tf
from seed_tf import (
    random,
)
from seed_tf.embeddings import l2_normalise


def encoder(batch_norm=True, seed=0):
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Input((None, None, 3)),
        keras.layers.Rescaling(1 / 255.0),
        keras.layers.Conv2D(8, 3, padding="same"),
    ]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization(momentum=0.5))
    layers += [
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(4),
    ]
    return keras.Sequential(layers)


def random_images(n, size=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def moco(model=None, **kwargs):
    kwargs_ = {"views": crop_and_flip(8), "queue_size": 32}
    kwargs = kwargs_ | {"shuffle_groups": 2} | kwargs
    model = seed_tf.MoCo(model or encoder(), **kwargs)
    model.compile(seed_tf.training.SGD(0.05))
    return model


class MoCoTest(parameterized.TestCase):
    @parameterized.parameters(0.0, 0.5, 0.999)
    def test_a_step_is_momentum_keys_loss_and_enqueue(self, momentum):
        model = moco(encoder(batch_norm=False), momentum=momentum)
        images = random_images(16)
        for _ in range(3):  # the towers part
            model.train_on_batch(images)
        weights = model.encoder.get_weights()
        momentum_weights = model.momentum_encoder.get_weights()
        queue = model.queue.embeddings.numpy()
        step, cursor = int(model.step), int(model.queue.cursor)
        query_view = model.augment(images, step, stream=0)[0]
        key_view = model.augment(images, step, stream=1)[0]
        self.assertFalse(np.allclose(query_view, key_view))
        model.reset_metrics()
        logs = model.train_on_batch(images, return_dict=True)

        for ours, before, theirs in zip(
            model.momentum_encoder.get_weights(),
            momentum_weights,
            model.encoder.get_weights(),
            strict=True,
        ):
            want = momentum * before + (1 - momentum) * theirs
            np.testing.assert_allclose(ours, want, atol=1e-6)
        reference = encoder(batch_norm=False)
        reference.set_weights(momentum_weights)
        keys = l2_normalise(reference(key_view)).numpy()
        reference.set_weights(weights)
        queries = l2_normalise(reference(query_view)).numpy()
        similarity = np.concatenate(
            [np.sum(queries * keys, axis=1)[:, None], queries @ queue.T], axis=1
        )
        exp = np.exp(similarity / 0.2)
        expected = -np.mean(np.log(exp[:, 0] / exp.sum(axis=1)))
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
        np.testing.assert_allclose(
            logs["accuracy"], np.mean(similarity.argmax(axis=1) == 0)
        )
        np.testing.assert_allclose(
            model.queue.embeddings[cursor : cursor + 16], keys, atol=1e-5
        )

    def test_learns_to_tell_images_apart(self):
        keras.utils.set_random_seed(0)
        # Flat colours, each image another one: views keep enough of them.
        images = np.tile(random_images(64, size=1), (1, 8, 8, 1))
        model = moco(views=crop_and_flip(8), momentum=0.9, queue_size=64)
        model.compile(seed_tf.training.SGD(0.2))
        data = tf.data.Dataset.from_tensor_slices(images)
        data = data.batch(32, drop_remainder=True)
        history = model.fit(data, epochs=40, verbose=0).history
        full = next(i for i, f in enumerate(history["queue_filled"]) if f > 0.7)
        self.assertLess(
            np.mean(history["loss"][-5:]),
            np.mean(history["loss"][full + 1 : full + 6]) - 0.2,
        )

    @parameterized.parameters(2, 4)
    @pytest.mark.slow
    def test_keys_are_normalised_in_shuffled_groups(self, groups):
        model = moco(shuffle_groups=groups)
        model.train_on_batch(random_images(16))
        weights = model.momentum_encoder.get_weights()
        view = tf.cast(random_images(16, seed=1), "float32")
        keys = model._keys(view).numpy()
        seeds = random.image_seeds(0, model.step.value, 16)
        order = np.argsort(random.uniform(seeds, 1)[:, 0])
        self.assertFalse(np.array_equal(order, np.arange(16)))
        reference = encoder()
        for group in np.split(order, groups):
            reference.set_weights(weights)
            expected = reference(tf.gather(view, group), training=True)
            np.testing.assert_allclose(
                keys[group], l2_normalise(expected), atol=1e-5
            )
        # Neither inference mode nor the whole batch would give these keys.
        for training in (False, True):
            whole = l2_normalise(reference(view, training=training))
            self.assertGreater(np.abs(keys - whole).max(), 1e-3)

    def test_every_step_shuffles_anew(self):
        model = moco()
        view = tf.cast(random_images(16), "float32")
        first = model._keys(view).numpy()
        model.step.assign_add(1)
        self.assertFalse(np.allclose(first, model._keys(view), atol=1e-4))

    @pytest.mark.slow
    def test_the_momentum_encoder_is_not_trained(self):
        model = moco(momentum=0.5)
        self.assertEmpty(model.momentum_encoder.trainable_variables)
        for _ in range(2):
            model.train_on_batch(random_images(16))
        for ours, theirs in zip(
            model.momentum_encoder.weights, model.encoder.weights, strict=True
        ):
            if "moving" in ours.path:
                np.testing.assert_array_equal(ours, theirs)

    @parameterized.parameters(12, 8)
    def test_refuses_batches_that_do_not_divide(self, batch):
        with self.assertRaisesRegex(ValueError, f"8 groups.*batch of {batch}"):
            moco(shuffle_groups=8).train_on_batch(random_images(batch))

    def test_only_the_encoder_is_trained_and_called(self):
        model = moco()
        self.assertLen(model.trainable_variables, 6)
        images = random_images(4)
        np.testing.assert_allclose(
            model.predict(images, verbose=0), model.encoder(images), atol=1e-5
        )

    @pytest.mark.slow
    def test_saved_and_loaded_it_takes_the_same_step(self):
        images = random_images(16)
        model = moco()
        for _ in range(3):
            model.train_on_batch(images)
        path = os.path.join(self.create_tempdir(), "moco.keras")
        model.save(path)
        loaded = keras.models.load_model(path)
        for m in (model, loaded):
            m.train_on_batch(images)
        for a, b in zip(model.weights, loaded.weights, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6, err_msg=a.path)

    @pytest.mark.slow
    def test_a_compiled_step_equals_an_ordinary_one(self):
        images = random_images(16)
        results = []
        for jit_compile in (False, True):
            model = moco()
            model.compile(seed_tf.training.SGD(0.05), jit_compile=jit_compile)
            for _ in range(3):
                model.train_on_batch(images)
            results.append(model.get_weights())
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)

    @pytest.mark.slow
    def test_evaluate_is_the_same_each_time(self):
        model = moco()
        images = random_images(16)
        first = model.evaluate(images, verbose=0, return_dict=True)
        again = model.evaluate(images, verbose=0, return_dict=True)
        self.assertEqual(first, again)
        self.assertIn("accuracy", first)

    @parameterized.parameters(
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"momentum": 1.0}, r"momentum=1.0"),
        ({"queue_size": -1}, "size=-1"),
        ({"shuffle_groups": 0}, "shuffle_groups=0"),
    )
    def test_refuses_what_is_out_of_range(self, kwargs, message):
        with self.assertRaisesRegex(ValueError, message):
            moco(**kwargs)

    def test_refuses_a_frozen_encoder(self):
        frozen = encoder()
        frozen.trainable = False
        with self.assertRaisesRegex(ValueError, "`encoder`.*trainable = True"):
            moco(frozen)

    def test_refuses_batches_of_unknown_size(self):
        data = tf.data.Dataset.from_tensor_slices(random_images(20)).batch(8)
        with self.assertRaisesRegex(ValueError, "drop_remainder=True"):
            moco().fit(data, verbose=0)

    def test_refuses_multi_crop(self):
        view = seed_tf.views.swav(8)
        with self.assertRaisesRegex(ValueError, "one size"):
            moco(views=seed_tf.views.multi_crop(view, view, num_small=2))


if __name__ == "__main__":
    absltest.main()
