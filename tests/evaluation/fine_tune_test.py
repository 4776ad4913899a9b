"""Fine-tuning: it learns, repeats, and leaves the encoder as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized

import seed_tf
from seed_tf import evaluation
from seed_tf.encoders.classifier import Classifier
from seed_tf.evaluation.fine_tune import training_view


def tiny_encoder():
    keras.utils.set_random_seed(0)
    return seed_tf.Encoder(
        keras.Sequential(
            [
                keras.Input((None, None, 3)),
                keras.layers.Conv2D(8, 3, 2, use_bias=False, name="conv"),
                keras.layers.BatchNormalization(momentum=0.5),
                keras.layers.ReLU(),
            ]
        )
    )


def pictures(count, seed=0, size=12):
    """Stripes along or across, which a mean colour does not tell apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    stripes = np.tile(np.arange(size) // 2 % 2 * 200, (size, 1))
    images = np.where(labels[:, None, None], stripes, stripes.T)[..., None]
    noise = rng.integers(0, 56, (count, size, size, 3))
    return (images + noise).astype(np.uint8), labels


OPTIONS = {"epochs": 3, "batch_size": 16, "learning_rate": 0.5}


def no_view(images, seeds):
    return images


class FineTuneTest(parameterized.TestCase):
    def test_learns_and_leaves_the_encoder(self):
        encoder, told = tiny_encoder(), []
        before = [np.copy(w) for w in encoder.get_weights()]
        encoder.trainable = False
        result = evaluation.fine_tune(
            encoder,
            pictures(96),
            pictures(60, 1),
            epochs=6,
            batch_size=16,
            learning_rate=1.0,
            log=told.append,
        )
        self.assertGreater(result.accuracy, 0.9)
        self.assertLess(result.loss, 0.6)
        for weight, kept in zip(encoder.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, kept)
        self.assertFalse(encoder.trainable)
        tuned = result.model.encoder
        # All of the backbone learns, statistics too; the head is left out.
        self.assertIsNone(tuned.head)
        for a, b in zip(
            tuned.backbone.weights, encoder.backbone.weights, strict=True
        ):
            self.assertFalse(np.allclose(a, b), a.path)
        self.assertLen(told, 6)
        self.assertRegex(told[1], r"epoch 2/6, loss 0\.\d+, \d+\.\d min left")
        self.assertIn("0.0 min left", told[5])

    def test_accuracies_are_of_the_model_that_comes_back(self):
        test = pictures(50, 1)
        test[1][:30] = 0
        result = evaluation.fine_tune(
            tiny_encoder(), pictures(40), test, **OPTIONS
        )
        logits = result.model(test[0], training=False)
        predicted = np.argmax(logits, 1)
        self.assertAlmostEqual(result.accuracy, np.mean(predicted == test[1]))
        self.assertAlmostEqual(
            result.mean_per_class,
            np.mean([np.mean(predicted[test[1] == c] == c) for c in (0, 1)]),
        )

    def test_follows_the_rule(self):
        """One step by hand: rate 0.05 * 32 / 256, no decay, no warm-up."""
        encoder, data = tiny_encoder(), pictures(32)
        result = evaluation.fine_tune(
            encoder,
            data,
            data,
            view=no_view,
            epochs=1,
            batch_size=32,
            learning_rate=0.05,
        )
        model = Classifier(encoder, 2)
        images, labels = data
        model(images[:1])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    labels, model(images, training=True)
                )
            )
        kernels = model.logits.kernel, encoder.backbone.get_layer("conv").kernel
        gradients = tape.gradient(loss, [k.value for k in kernels])
        found = (
            result.model.logits.kernel,
            result.model.encoder.backbone.get_layer("conv").kernel,
        )
        self.assertAlmostEqual(result.loss, float(loss), 5)
        for kernel, gradient, after in zip(
            kernels, gradients, found, strict=True
        ):
            expected = kernel.numpy() - 0.05 * 32 / 256 * gradient.numpy()
            np.testing.assert_allclose(after.numpy(), expected, atol=1e-6)
            self.assertFalse(np.allclose(after.numpy(), kernel.numpy()))

    @pytest.mark.slow
    def test_a_function_of_the_seed(self):
        data = pictures(40), pictures(20, 1)
        first, same, other = (
            evaluation.fine_tune(tiny_encoder(), *data, seed=seed, **OPTIONS)
            for seed in (3, 3, 4)
        )
        self.assertEqual(first.loss, same.loss)
        self.assertNotEqual(first.loss, other.loss)

    def test_every_image_once_an_epoch_in_another_order(self):
        seen = []

        def numbered(images, seeds):
            def note(numbers):
                seen.append(numbers)
                return np.float32(0)

            zero = tf.numpy_function(note, [images[:, 0, 0, 0]], tf.float32)
            return tf.cast(images, tf.float32) + tf.reshape(zero, [])

        images, labels = pictures(24)
        images[:, 0, 0, 0] = np.arange(24) + 1
        evaluation.fine_tune(
            tiny_encoder(),
            (images, labels),
            (images, labels),
            view=numbered,
            epochs=2,
            batch_size=8,
        )
        # tf.data looks at a first batch once more, for its checks.
        orders = sorted(tuple(x) for x in seen)
        self.assertGreater(len(set(orders)), 5)
        counts = np.bincount(np.concatenate(list(set(orders))))[1:]
        np.testing.assert_array_equal(counts, [2] * 24)

    @pytest.mark.slow
    def test_datasets_of_all_epochs(self):
        train, test = (
            evaluation.LabelledImages("digits", split, image_size=12)
            for split in ("train", "test")
        )
        batches, steps = train.training(
            training_view(12), epochs=3, batch_size=64
        )
        self.assertEqual(steps, 20)
        result = evaluation.fine_tune(
            tiny_encoder(),
            batches,
            test.load(),
            num_classes=10,
            learning_rate=5.0,
            epochs=3,
            steps_per_epoch=steps,
        )
        self.assertGreater(result.accuracy, 0.2)

    def test_saves_and_loads(self):
        images, labels = pictures(16)
        model = evaluation.fine_tune(
            tiny_encoder(), (images, labels), (images, labels), epochs=1
        ).model
        path = f"{self.create_tempdir().full_path}/model.keras"
        model.save(path)
        self.assertEqual(model.encoder.embedding_dim, 8)
        loaded = keras.saving.load_model(path)
        np.testing.assert_allclose(loaded(images), model(images), atol=1e-5)

    def test_divergence(self):
        data = pictures(32)
        with self.assertRaisesRegex(evaluation.DivergenceError, "rate=1e\\+30"):
            evaluation.fine_tune(
                tiny_encoder(), data, data, learning_rate=1e30, epochs=5
            )

    def test_errors(self):
        class Closed(keras.Model):
            def __init__(self, units):
                super().__init__()
                self.dense = keras.layers.Dense(units)

            def call(self, images):
                return self.dense(images[:, 0, 0])

        encoder, (images, labels) = tiny_encoder(), pictures(12)
        data = images, labels
        tune = evaluation.fine_tune
        with self.assertRaisesRegex(ValueError, "epochs=0"):
            tune(encoder, data, data, epochs=0)
        with self.assertRaisesRegex(ValueError, r"labels of shape \(11,\)"):
            tune(encoder, (images, labels[1:]), data)
        with self.assertRaisesRegex(ValueError, "not in train: 3"):
            tune(encoder, data, (images, labels * 3))
        with self.assertRaisesRegex(ValueError, "by 255"):
            tune(encoder, (images / 255.0, labels), data)
        batches = tf.data.Dataset.from_tensor_slices(data).batch(4)
        with self.assertRaisesRegex(ValueError, "`num_classes`.*Dataset"):
            tune(encoder, batches, batches)
        model = Closed(3)
        model(images.astype(np.float32))
        with self.assertRaisesRegex(ValueError, "can be saved.*Closed"):
            tune(model, data, data)


if __name__ == "__main__":
    absltest.main()
