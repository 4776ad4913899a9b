"""Tests that what makes training fast leaves its course as it is."""

from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

import seed_tf
from seed_tf import seed as seed_module
from seed_tf.acceleration import precision

STEPS, BATCH, SIZE, D = 200, 16, 8, 4


def tower(activation, factor=1.0, stem=False):
    inputs = x = keras.Input((SIZE, SIZE, 3))
    if stem:
        x = keras.layers.Conv2D(8, 3, 2, "same", use_bias=False)(x)
        x = keras.layers.Activation(activation)(x)
        x = keras.layers.MaxPooling2D(3, 1)(keras.layers.ZeroPadding2D(2)(x))
    for layer in (
        keras.layers.Conv2D(8, 3),
        keras.layers.DepthwiseConv2D(5, 2, padding="same", use_bias=False),
        keras.layers.Conv2D(8, 1),
        keras.layers.Conv2D(8, 2),  # to a map of two pixels a side
    ):
        layer.use_bias = False
        x = keras.layers.BatchNormalization()(layer(x))
        x = keras.layers.Activation(activation)(x)
    encoder = seed_tf.Encoder(keras.Model(inputs, x), embedding_dim=D)
    encoder.set_weights([factor * w for w in encoder.get_weights()])
    return encoder


def plain_loss(
    student, teacher, queue, *, student_temperature, teacher_temperature
):
    """The paper's equations 3 to 5, one after the other."""
    student, teacher, queue = (
        tf.math.l2_normalize(x, -1) for x in (student, teacher, queue)
    )

    def logits(z, temperature):
        own = tf.reduce_sum(z * teacher, -1, keepdims=True)
        others = tf.matmul(z, queue, transpose_b=True)
        return tf.concat([own, others], -1) / temperature

    target = tf.stop_gradient(
        tf.nn.softmax(logits(teacher, teacher_temperature))
    )
    predicted = tf.nn.log_softmax(logits(student, student_temperature))
    return -tf.reduce_sum(target * predicted, -1)


def curve(
    activation="hard_silu",
    policy="float32",
    plain=False,
    stem=False,
    **options,
):
    """The loss at each step, float64 `[STEPS]`."""
    keras.utils.set_random_seed(0)
    teacher = tower(activation, factor=2.0, stem=stem)
    keras.config.set_dtype_policy(policy)
    try:
        student = tower(activation, stem=stem)
    finally:
        keras.config.set_dtype_policy("float32")
    student.set_weights(tower(activation, stem=stem).get_weights())
    if plain:
        options["objective"] = plain_loss
    changed = (
        {"fuse": lambda model: None, "FoldedTeacher": Plain} if plain else {}
    )
    with mock.patch.dict(vars(seed_module), changed):
        model = seed_tf.SEED(
            student,
            teacher,
            views=seed_tf.views.moco_v2(SIZE),
            queue_size=64,
            teacher_temperature=0.01,
            **options,
        )
    model.compile(seed_tf.training.SGD(0.05))
    losses = []
    # Patches of colour, which a teacher tells apart better than noise.
    images = np.random.default_rng(0).integers(
        0, 256, (4 * BATCH, 3, 3, 3), np.uint8
    )
    images = images.repeat(4, 1).repeat(4, 2)
    model.fit(
        images,
        batch_size=BATCH,
        epochs=STEPS // 4,
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda _, logs: losses.append(logs["loss"])
            )
        ],
    )
    return np.array(losses)


class Plain:
    """A teacher as it is."""

    def __init__(self, model, dtype):
        self._model = model

    def __call__(self, images):
        return self._model(images, training=False)

    def update(self):
        pass


class SameCourseTest(parameterized.TestCase):
    """200 steps against towers and a loss as Keras computes them."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.plain = {
            activation: curve(
                activation, plain=True, teacher_precision="float32"
            )
            for activation in ("hard_silu", "silu")
        }

    @parameterized.parameters("hard_silu", "silu")
    def test_kernels_folding_and_loss(self, activation):
        actual = curve(activation, teacher_precision="float32")
        self.assertLen(actual, STEPS)
        np.testing.assert_allclose(actual, self.plain[activation], rtol=1e-4)

    def test_what_accelerators_gain_by(self):
        options = {"stem": True, "teacher_precision": "float32"}
        expected = curve(plain=True, **options)
        self.assertLess(expected[-20:].mean(), 0.95 * expected[:20].mean())
        with mock.patch.object(precision, "accelerated", lambda: True):
            actual = curve(**options)
        np.testing.assert_allclose(actual, expected, rtol=1e-4)

    @parameterized.parameters(
        {"teacher_precision": "bfloat16"},
        {"policy": "mixed_bfloat16", "teacher_precision": "float32"},
    )
    def test_16_bits(self, **options):
        expected = self.plain["hard_silu"]
        # The course is one of learning, and sharp targets.
        self.assertLess(expected[-20:].mean(), 0.85 * expected[:20].mean())
        actual = curve(**options)
        self.assertGreater(np.abs(actual - expected).max(), 1e-3)
        actual, expected = (
            x.reshape(-1, 20).mean(1) for x in (actual, expected)
        )
        np.testing.assert_allclose(actual, expected, rtol=0.02)


if __name__ == "__main__":
    absltest.main()
