"""Optimiser and schedule against the rules they follow; what a run prints."""

import math
import os

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from seed_tf.io.units import duration
from seed_tf.training import SGD, Progress, warmup_cosine


class TorchSGD:
    """torch.optim.SGD's documented rule, float64."""

    def __init__(self, weights, momentum, weight_decay):
        self.weights = [w.astype("float64") for w in weights]
        self.buffers = [np.zeros_like(w) for w in self.weights]
        self.momentum, self.weight_decay = momentum, weight_decay

    def step(self, gradients, rate):
        for w, v, g in zip(self.weights, self.buffers, gradients, strict=True):
            v[:] = self.momentum * v + (g + self.weight_decay * w)
            w -= rate * v


def random_gradients(shapes, steps):
    rng = np.random.default_rng(0)
    return [
        [rng.standard_normal(shape).astype("float32") for shape in shapes]
        for _ in range(steps)
    ]


class SGDTest(parameterized.TestCase):
    @parameterized.product(momentum=[0.0, 0.9], weight_decay=[0.0, 1e-2])
    def test_fifty_steps_follow_pytorch_under_a_schedule(
        self, momentum, weight_decay
    ):
        shapes = [(5, 3), (3,)]
        schedule = warmup_cosine(
            batch_size=256,
            steps_per_epoch=10,
            epochs=5,
            warmup_epochs=1,
            rate_per_256=0.5,
        )
        variables = [keras.Variable(np.ones(s, "float32")) for s in shapes]
        optimizer = SGD(schedule, momentum, weight_decay)
        reference = TorchSGD(
            [np.ones(s) for s in shapes], momentum, weight_decay
        )
        for step, gradients in enumerate(random_gradients(shapes, 50)):
            rate = 0.5 * (
                step / 10
                if step < 10
                else (1 + math.cos(math.pi * (step - 10) / 40)) / 2
            )
            optimizer.apply(
                [keras.ops.convert_to_tensor(g) for g in gradients], variables
            )
            reference.step(gradients, rate)
        for ours, theirs in zip(variables, reference.weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_adds_in_one_order(self):
        """Not in that of an AddN, which depends on what memory is free."""
        shape, decay, momentum = (100, 30), np.float32(1e-2), np.float32(0.9)
        weights, velocity = np.ones(shape, "f4"), np.zeros(shape, "f4")
        variable = keras.Variable(weights)
        optimizer = SGD(0.1, momentum=0.9, weight_decay=1e-2)
        optimizer.build([variable])
        step = tf.function(lambda x: optimizer.apply([x], [variable]))
        for (gradient,) in random_gradients([shape], 5):
            gradient = gradient.astype("f4")
            step(tf.constant(gradient))
            velocity = momentum * velocity + (gradient + decay * weights)
            weights = weights - np.float32(0.1) * velocity
        np.testing.assert_array_equal(optimizer.velocities[0], velocity)

    def test_keras_sgd_does_not(self):
        """Why the class exists: remove it when Keras's own rule passes."""
        gradients = random_gradients([(5, 3)], 50)
        variable = keras.Variable(np.ones((5, 3), "float32"))
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-2)
        reference = TorchSGD([np.ones((5, 3))], 0.9, 1e-2)
        for (gradient,) in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
            reference.step([gradient], 0.1)
        difference = np.abs(variable.numpy() - reference.weights[0]).max()
        self.assertGreater(difference, 0.05)

    def test_saved_in_the_middle_it_goes_on(self):
        def model():
            keras.utils.set_random_seed(0)
            inputs = keras.Input((4,))
            model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
            model.compile(SGD(0.1, momentum=0.9, weight_decay=1e-2), loss="mse")
            return model

        x, y = np.ones((8, 4)), np.zeros((8, 2))
        whole, first = model(), model()
        whole.fit(x, y, epochs=4, verbose=0)
        first.fit(x, y, epochs=2, verbose=0)
        path = os.path.join(self.create_tempdir(), "model.keras")
        first.save(path)
        rest = keras.models.load_model(path)
        rest.fit(x, y, epochs=2, verbose=0)
        for a, b in zip(whole.get_weights(), rest.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)

    @parameterized.parameters(
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001"),
    )
    def test_refuses_what_is_out_of_range(self, kwargs, message):
        with self.assertRaisesRegex(ValueError, message):
            SGD(0.1, **kwargs)


class WarmupCosineTest(parameterized.TestCase):
    def test_the_papers_recipe(self):
        # 200 epochs of ImageNet in batches of 256: 5,004 steps each.
        rate = warmup_cosine(batch_size=256, steps_per_epoch=5004, epochs=200)
        for step, expected in (
            (0, 0.0),
            (5004, 0.03 / 5),
            (5 * 5004, 0.03),
            ((5 * 5004 + 200 * 5004) // 2, 0.015),
            (200 * 5004, 0.0),
        ):
            self.assertAlmostEqual(float(rate(step)), expected, places=6)

    def test_scales_with_the_batch_and_may_start_without_warm_up(self):
        rate = warmup_cosine(
            batch_size=1024, steps_per_epoch=10, epochs=10, warmup_epochs=0
        )
        self.assertAlmostEqual(float(rate(0)), 0.12, places=6)
        self.assertAlmostEqual(float(rate(50)), 0.06, places=6)

    @parameterized.parameters(
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 3}, "warmup_epochs=5, epochs=3"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"rate_per_256": -0.1}, "rate_per_256.*-0.1"),
    )
    def test_refuses_what_is_out_of_range(self, kwargs, message):
        kwargs = {"batch_size": 256, "steps_per_epoch": 5, "epochs": 9} | kwargs
        with self.assertRaisesRegex(ValueError, message):
            warmup_cosine(**kwargs)


class CallbacksTest(parameterized.TestCase):
    def test_progress_prints_metrics_rate_and_time_left(self):
        lines = []
        progress = Progress(30, 16, every=0.0, show=["loss"], log=lines.append)
        for step in range(30):
            progress.on_train_batch_end(step, {"loss": 1.25, "other": 3})
        self.assertLen(lines, 30)
        self.assertEqual(lines[0], "  step 1/30  loss 1.250")
        self.assertRegex(
            lines[-1], r"step 30/30  loss 1.250  \d+ images/s  0 s left"
        )

    def test_progress_says_little_but_always_beginning_and_end(self):
        lines = []
        progress = Progress(30, 16, every=1000.0, log=lines.append)
        for step in range(30):
            progress.on_train_batch_end(step, {"loss": 1.25})
        self.assertLen(lines, 2)

    @parameterized.parameters(
        (0.4, "0 s"), (59, "59 s"), (425, "7 min 05 s"), (12000, "3 h 20 min")
    )
    def test_duration(self, seconds, expected):
        self.assertEqual(duration(seconds), expected)


if __name__ == "__main__":
    absltest.main()
