"""Tests that acceleration leaves the course of a training as it is."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.light_views import crop_and_flip

import seed_tf
from seed_tf.acceleration import Hardware, Plan

BATCH, SIZE, D = 16, 8, 4
# Relative difference of losses after 200 steps: rounding grows from step to
# step, to 2e-4 on processors with AMX. A wrong kernel differs by far more.
COURSE = 1e-3
SHARED = {"views": seed_tf.views.moco_v2(SIZE), "queue_size": 64}
LIGHT = crop_and_flip(SIZE)
PROCESSOR, GPU = Plan(Hardware()), Plan(Hardware(accelerated=True))


def network(activation, factor=1.0, stem=False):
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


def seed_model(activation="hard_silu", policy="float32", stem=False, **options):
    keras.utils.set_random_seed(0)
    teacher = network(activation, factor=2.0, stem=stem)
    keras.config.set_dtype_policy(policy)
    try:
        student = network(activation, stem=stem)
    finally:
        keras.config.set_dtype_policy("float32")
    student.set_weights(network(activation, stem=stem).get_weights())
    return seed_tf.SEED(
        student=student,
        teacher=teacher,
        **{**SHARED, "teacher_temperature": 0.01, **options},
    )


def moco_model(activation="hard_silu", stem=False, **options):
    keras.utils.set_random_seed(0)
    return seed_tf.MoCo(
        network(activation, stem=stem),
        **{**SHARED, "momentum": 0.9, "shuffle_groups": 4, **options},
    )


def train(model, steps):
    """Returns the loss at each step, float64 `[steps]`."""
    model.compile(seed_tf.training.SGD(0.05))
    losses = []
    # Patches of colour, which a teacher separates better than noise.
    images = np.random.default_rng(0).integers(
        0, 256, (4 * BATCH, 3, 3, 3), np.uint8
    )
    images = tf.data.Dataset.from_tensor_slices(
        images.repeat(4, 1).repeat(4, 2)
    )
    model.fit(
        images.batch(BATCH, drop_remainder=True).repeat(),
        steps_per_epoch=steps,
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda _, logs: losses.append(logs["loss"])
            )
        ],
    )
    return np.array(losses)


@functools.cache  # plain Keras is what several plans are compared with
def trained(build, acceleration, steps, activation, **options):
    """Returns the model that `build` gives, trained, and its losses."""
    options |= {"acceleration": acceleration, "activation": activation}
    model = build(**options)
    return model, train(model, steps)


class PlainKerasTest(parameterized.TestCase):
    """`acceleration=None` gives what "auto" gives, in float32."""

    def check(self, build, plan, *course, **options):
        model, losses = trained(build, plan, *course, **options)
        plain, expected = trained(build, None, *course, **options)
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
        for one, other in zip(model.variables, plain.variables, strict=True):
            np.testing.assert_allclose(
                one, other, rtol=1e-3, atol=1e-4, err_msg=other.path
            )

    @parameterized.parameters(seed_model, moco_model)
    def test_3_steps(self, build):
        def as_they_are(images):
            return tf.cast(images[:, :SIZE, :SIZE], "float32")

        self.check(build, PROCESSOR, 3, "relu", views=as_they_are)

    @parameterized.product(
        build=[seed_model, moco_model],
        plan=[PROCESSOR, GPU],
        activation=["hard_silu", "silu"],
    )
    @pytest.mark.slow  # beneath, or parameterized would drop it
    def test_50_steps(self, build, plan, activation):
        self.check(build, plan, 50, activation, stem=True, views=LIGHT)


@pytest.mark.slow
class SameCourseTest(parameterized.TestCase):
    """200 steps against plain Keras and the paper's equations as they stand."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.plain = {
            activation: cls.plain_course(activation)
            for activation in ("hard_silu", "silu")
        }

    @staticmethod
    def plain_course(activation="hard_silu", **options):
        options = {"objective": plain_loss, "acceleration": None, **options}
        return train(seed_model(activation, **options), 200)

    @parameterized.parameters("hard_silu", "silu")
    def test_kernels_folding_and_loss(self, activation):
        actual = train(seed_model(activation, acceleration=PROCESSOR), 200)
        np.testing.assert_allclose(actual, self.plain[activation], rtol=COURSE)

    def test_kernels_of_accelerators(self):
        expected = self.plain_course(stem=True)
        self.assertLess(expected[-20:].mean(), 0.97 * expected[:20].mean())
        actual = train(seed_model(stem=True, acceleration=GPU), 200)
        np.testing.assert_allclose(actual, expected, rtol=COURSE)

    @parameterized.parameters(
        {"teacher_precision": "bfloat16"},
        {"policy": "mixed_bfloat16", "teacher_precision": "float32"},
    )
    def test_16_bits(self, **options):
        expected = self.plain["hard_silu"]
        # The course is one of learning, and sharp targets.
        self.assertLess(expected[-20:].mean(), 0.85 * expected[:20].mean())
        actual = train(seed_model(**options), 200)
        self.assertGreater(np.abs(actual - expected).max(), 1e-3)
        actual, expected = (
            x.reshape(-1, 20).mean(1) for x in (actual, expected)
        )
        np.testing.assert_allclose(actual, expected, rtol=0.02)


if __name__ == "__main__":
    absltest.main()
