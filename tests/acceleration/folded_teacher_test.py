"""Tests of the rewritten teacher."""

import keras
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from helpers.light_views import crop_and_flip

import seed_tf
from seed_tf.acceleration.folded_teacher import FoldedTeacher
from seed_tf.embeddings import l2_normalise
from seed_tf.keras_internals import all_layers


def randomise(model, seed=0):
    """BatchNorm as after training: statistics and weights of its own."""
    rng = np.random.default_rng(seed)
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            for w in layer.weights:
                low, high = (
                    (-0.3, 0.3)
                    if w.name in ("beta", "moving_mean")
                    else (0.7, 1.3)
                )
                w.assign(rng.uniform(low, high, w.shape))


def images(n=4, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3)).astype("float32")


def network(layers, size=8):
    """A functional model of layers, each a function of the one before."""
    x = inputs = keras.Input((size, size, 3))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def norms(frozen):
    return [
        layer.name
        for layer in frozen._copy.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


class EncoderTest(parameterized.TestCase):
    @parameterized.parameters(
        ("resnet18", {}),
        ("resnet50", {"stem": "cifar", "head": "linear"}),
        ("mobilenet_v3_large", {"head": None}),
        ("efficientnet_b0", {"head_batch_norm": True}),
    )
    @pytest.mark.slow
    def test_gives_the_same_embeddings(self, name, options):
        keras.utils.set_random_seed(0)
        encoder = seed_tf.Encoder(name, **options)
        randomise(encoder)
        frozen = FoldedTeacher(encoder)
        self.assertEmpty(norms(frozen))
        expected = np.array(encoder(images(), training=False))
        found = np.array(frozen(images()))
        scale = abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=2e-5 * scale)
        self.assertEqual(frozen.dtype, "float32")

    def test_in_16_bits(self):
        keras.utils.set_random_seed(0)
        encoder = seed_tf.Encoder("resnet18", stem="cifar")
        frozen = FoldedTeacher(encoder, "bfloat16")
        self.assertEqual(frozen.dtype, "bfloat16")
        self.assertEqual(encoder.backbone.layers[3].compute_dtype, "float32")
        found = frozen(images())
        self.assertEqual(found.dtype, "float32")
        expected = np.array(encoder(images()))
        error = np.linalg.norm(found - expected, axis=1)
        self.assertBetween(
            error.max() / np.linalg.norm(expected, axis=1).min(), 1e-5, 0.02
        )

    def test_global_policy(self):
        """Of the student: it must reach no teacher, built or loaded."""
        keras.utils.set_random_seed(0)
        encoder = seed_tf.Encoder("resnet18", stem="cifar")
        expected = np.array(encoder(images()))
        path = self.create_tempfile("teacher.keras").full_path
        encoder.save(path)
        self.addCleanup(keras.mixed_precision.set_global_policy, "float32")
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
        loaded = seed_tf.checkpoints.load_encoder(path)
        for teacher in (
            encoder,
            loaded,
            FoldedTeacher(encoder),
            FoldedTeacher(loaded),
        ):
            found = np.array(teacher(images()))
            np.testing.assert_allclose(found, expected, atol=1e-5)
        self.assertEqual(FoldedTeacher(loaded, "bfloat16").dtype, "bfloat16")
        policy = keras.mixed_precision.global_policy()
        self.assertEqual(policy.name, "mixed_bfloat16")

    def test_follows_the_weights_on_update(self):
        keras.utils.set_random_seed(0)
        encoder = seed_tf.Encoder("resnet18", stem="cifar")
        other = seed_tf.Encoder("resnet18", stem="cifar")
        randomise(other)
        frozen = FoldedTeacher(encoder)
        before = np.array(frozen(images()))
        encoder.set_weights(other.get_weights())
        np.testing.assert_array_equal(frozen(images()), before)
        frozen.update()
        np.testing.assert_allclose(frozen(images()), other(images()), atol=1e-4)


class AnyModelTest(parameterized.TestCase):
    def check(self, model, remaining):
        randomise(model)
        frozen = FoldedTeacher(model)
        np.testing.assert_allclose(
            frozen(images(size=8) / 255),
            model(images(size=8) / 255),
            atol=1e-4,
        )
        self.assertLen(norms(frozen), remaining)

    def test_what_can_be_folded(self):
        bn, layers = keras.layers.BatchNormalization, keras.layers
        self.check(
            network(
                [
                    layers.Conv2D(8, 3, bias_initializer="normal"),
                    bn(epsilon=0.1),
                    layers.DepthwiseConv2D(3, depth_multiplier=2),
                    bn(scale=False),
                    layers.Conv2D(8, 1, groups=2, use_bias=False),
                    bn(center=False),
                ]
            ),
            remaining=0,
        )
        self.check(
            keras.Sequential(
                [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), bn()]
            ),
            remaining=0,
        )

    def test_what_cannot(self):
        bn, layers = keras.layers.BatchNormalization, keras.layers
        twice = layers.Conv2D(3, 3, padding="same")
        shared = bn()
        for parts in (
            [layers.Conv2D(4, 3, activation="relu"), bn()],
            [layers.Conv2D(4, 3), layers.ReLU(), bn()],
            [layers.Conv2D(4, 3), bn(axis=1)],
            [layers.Conv2DTranspose(4, 3), bn()],
            [twice, bn(), twice],
            [layers.Conv2D(3, 3), shared, layers.ReLU(), shared],
            [bn(), layers.Conv2D(4, 3)],
        ):
            self.check(network(parts), remaining=1)

    def test_a_convolution_with_two_users(self):
        inputs = keras.Input((8, 8, 3))
        y = keras.layers.Conv2D(4, 3)(inputs)
        z = keras.layers.BatchNormalization()(y)
        self.check(keras.Model(inputs, keras.layers.Add()([y, z])), remaining=1)
        self.check(keras.Model(inputs, z), remaining=0)

    def test_a_model_within_the_model(self):
        inner = network([keras.layers.Conv2D(4, 3), keras.layers.ReLU()])
        self.check(
            network([inner, keras.layers.BatchNormalization()]), remaining=1
        )

    def test_a_model_of_a_call_of_its_own_runs_as_it_is(self):
        class Mine(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(4)

            def call(self, x):
                return self.dense(x[:, 0, 0])

        class Doubled(keras.Model):
            def call(self, x):
                return 2 * super().call(x)

        inputs = keras.Input((8, 8, 3))
        doubled = Doubled(inputs, keras.layers.Conv2D(4, 3)(inputs))
        for model in (Mine(), doubled):
            with self.assertLogs(level="WARNING") as logs:
                frozen = FoldedTeacher(model, "bfloat16")
            self.assertIn("runs as it is", logs.output[0])
            frozen.update()
            np.testing.assert_array_equal(
                frozen(images(size=8)), model(images(size=8))
            )

    def test_16_bits_only_where_they_are_safe(self):
        plain = network([keras.layers.Conv2D(4, 3)])
        self.assertEqual(FoldedTeacher(plain, "bfloat16").dtype, "bfloat16")
        for own in (
            keras.layers.Rescaling(1 / 255),
            keras.layers.LayerNormalization(),
        ):
            model = network([own, keras.layers.Conv2D(4, 3)])
            self.assertEqual(FoldedTeacher(model, "bfloat16").dtype, "float32")
        model = network([keras.layers.Conv2D(4, 3, dtype="float64")])
        self.assertEqual(FoldedTeacher(model, "bfloat16").dtype, "float64")


class InTrainingTest(absltest.TestCase):
    def model(self, **options):
        keras.utils.set_random_seed(0)

        def tower():
            conv = network(
                [
                    keras.layers.Conv2D(8, 3, use_bias=False),
                    keras.layers.BatchNormalization(),
                    keras.layers.Activation("hard_silu"),
                ]
            )
            return seed_tf.Encoder(conv, embedding_dim=4)

        model = seed_tf.SEED(
            student=tower(),
            teacher=tower(),
            views=crop_and_flip(8),
            queue_size=64,
            teacher_temperature=0.05,
            **options,
        )
        model.compile(seed_tf.training.SGD(0.05))
        return model

    def test_targets_are_those_of_the_teachers_weights(self):
        model = self.model(teacher_precision="float32")
        randomise(model.teacher)
        batch = images(8, 10)
        (view,) = model.augment(batch, 0)
        expected = l2_normalise(model.teacher(view))
        model.train_on_batch(batch)
        np.testing.assert_allclose(
            model.queue.embeddings[:8], expected, atol=1e-5
        )

    def test_the_copy_is_no_weight_of_the_model(self):
        model = self.model()
        count = model.student.count_params() + model.teacher.count_params()
        self.assertEqual(model.count_params(), count + 64 * 4 + 2)
        again = seed_tf.SEED.from_config(model.get_config())
        self.assertEqual(again.count_params(), model.count_params())

    def test_refuses_an_unknown_precision(self):
        with self.assertRaisesRegex(ValueError, "teacher_precision='half'"):
            self.model(teacher_precision="half")


if __name__ == "__main__":
    absltest.main()
