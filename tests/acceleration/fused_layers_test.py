"""Tests of fused training kernels, against float64 and NumPy."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.fused import Fused

from seed_tf.acceleration.fused_layers import _KERNELS
from seed_tf.grouped_batch_norm import in_groups


def train_step(layer, x, upstream):
    """Outputs and gradients as NumPy: of x, then of the trainable weights."""
    x = tf.constant(x, layer.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        total = tf.reduce_sum(tf.cast(y, upstream.dtype) * upstream)
    gradients = tape.gradient(total, [x, *layer.trainable_weights])
    return [np.array(tf.cast(v, "float64")) for v in (y, *gradients)]


def operations(function, *args):
    """Types of all operations in the graph of a function and what it calls."""
    graph = tf.function(function).get_concrete_function(*args).graph
    nodes = list(graph.as_graph_def().node)
    for inner in graph.as_graph_def().library.function:
        nodes += inner.node_def
    return [node.op for node in nodes]


def compiled_by_xla(function, *args):
    graph = tf.function(function).get_concrete_function(*args).graph
    return "_XlaMustCompile" in str(graph.as_graph_def())


class BatchNormTest(parameterized.TestCase):
    def pair(self, dtype="float32", rank=4, **options):
        """A fused layer within a model, and a plain one in float64."""
        rng = np.random.default_rng(0)
        layers = [
            keras.layers.BatchNormalization(dtype=x, **options)
            for x in (dtype, "float64")
        ]
        for layer in layers:
            layer.build((None,) * (rank - 1) + (5,))
        weights = [
            rng.uniform(0.5, 1.5, w.shape).astype("float32")
            for w in layers[0].weights
        ]
        for layer in layers:
            layer.set_weights(weights)
        return Fused(layers[0]), layers[1]

    @parameterized.parameters(
        ((8, 6, 6, 5), {}),
        ((8, 6, 6, 5), {"momentum": 0.9, "epsilon": 1e-5}),
        ((8, 6, 6, 5), {"center": False}),
        ((8, 6, 6, 5), {"scale": False, "axis": 3}),
        ((2, 1, 1, 5), {}),
        ((1, 1, 1, 5), {}),
        ((8, 5), {}),
    )
    def test_outputs_gradients_and_statistics_are_keras_own(
        self, shape, options
    ):
        fused, plain = self.pair(rank=len(shape), **options)
        rng = np.random.default_rng(1)
        for _ in range(2):
            x = rng.normal(3.0, 2.0, shape).astype("float32")
            upstream = rng.normal(size=shape)
            values = train_step(fused, x, upstream)
            expected = train_step(plain, x, upstream)
            for a, b in zip(values, expected, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
            for a, b in zip(fused.weights, plain.weights, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=a.name)

    @parameterized.parameters((6, 4, 4, 5), (6, 5))
    def test_groups_are_normalised_apart(self, *shape):
        fused, plain = self.pair(rank=len(shape))
        in_groups(fused.layer, 3)
        x = np.random.default_rng(1).normal(2, 3, shape).astype("float32")
        found = fused(x, training=True)
        expected = [plain(part, training=True) for part in np.split(x, 3)]
        np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)
        found, expected = fused(x), plain(x)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_running_statistics_that_never_move(self):
        fused, _ = self.pair(momentum=1.0)
        x = tf.ones((8, 6, 6, 5))
        found = operations(lambda x: fused(x, training=True), x)
        self.assertIn("FusedBatchNormV3", found)
        self.assertNotIn("AssignVariableOp", found)

    def test_in_16_bits_statistics_have_32(self):
        fused, plain = self.pair("mixed_bfloat16")
        x = np.random.default_rng(1).normal(3.0, 2.0, (64, 8, 8, 5))
        x = np.array(tf.cast(tf.cast(x, "bfloat16"), "float32"))
        values = train_step(fused, x, np.ones(x.shape))
        expected = train_step(plain, x, np.ones(x.shape))
        np.testing.assert_allclose(values[0], expected[0], atol=2e-2)
        for a, b in zip(fused.weights, plain.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=a.name)

    @parameterized.parameters(("bfloat16", 0.02), ("float16", 0.004))
    def test_all_weights_in_16_bits(self, policy, tolerance):
        fused, plain = self.pair(policy, momentum=0.5)
        plain.set_weights([tf.cast(w, "float32") for w in fused.weights])
        x = np.random.default_rng(1).normal(3.0, 2.0, (64, 8, 8, 5))
        x = np.array(tf.cast(tf.cast(x, policy), "float32"))
        values = train_step(fused, x, np.ones(x.shape))
        expected = train_step(plain, x, np.ones(x.shape))
        np.testing.assert_allclose(values[0], expected[0], atol=5 * tolerance)
        for a, b in zip(fused.weights, plain.weights, strict=True):
            self.assertEqual(a.dtype, policy)
            a = tf.cast(a, "float32")
            np.testing.assert_allclose(a, b, rtol=tolerance)

    @parameterized.parameters((16, False), (24, True))
    def test_widths_without_a_kernel_in_16_bits(self, width, expected):
        layer = keras.layers.BatchNormalization(dtype="mixed_bfloat16")
        layer.build((None, None, None, width))
        x = tf.zeros((2, 4, 4, width), "bfloat16")

        def train(x, accelerated=False):
            return Fused(layer, accelerated)(x, training=True)

        self.assertEqual(train(x).dtype, "bfloat16")
        self.assertEqual("Cast" in operations(train, x), expected)
        train_accelerated = functools.partial(train, accelerated=True)
        self.assertNotIn("Cast", operations(train_accelerated, x))

    def test_one_kernel_in_training(self):
        fused, _ = self.pair()
        plain = keras.layers.BatchNormalization()
        x = tf.zeros((2, 4, 4, 5))
        for training, expected in ((True, True), (False, False)):
            found = operations(lambda x, t=training: fused(x, training=t), x)
            self.assertEqual("FusedBatchNormV3" in found, expected)
            found = operations(lambda x, t=training: plain(x, training=t), x)
            self.assertNotIn("FusedBatchNormV3", found)

    def test_others_run_as_before(self):
        class Mine(keras.layers.BatchNormalization):
            def call(self, inputs, training=None, mask=None):
                return inputs + 1

        x = tf.random.stateless_normal((8, 5, 4, 4), (0, 0))
        frozen = keras.layers.BatchNormalization(momentum=0.5)
        frozen.trainable = False
        for layer in (
            Mine(),
            keras.layers.BatchNormalization(axis=1),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.BatchNormalization(dtype="float64"),
            frozen,
        ):
            copy = type(layer).from_config(layer.get_config())
            copy.trainable = layer.trainable
            layer = Fused(layer)
            found = operations(lambda x, f=layer: f(x, training=True), x)
            self.assertNotIn("FusedBatchNormV3", found)
            np.testing.assert_array_equal(
                layer(x, training=True), copy(x, training=True)
            )
        masked, plain = self.pair()
        x = np.random.default_rng(0).normal(size=(4, 3, 2, 5))
        mask = np.arange(24).reshape(4, 3, 2) % 3 > 0
        np.testing.assert_allclose(
            masked(x, training=True, mask=mask),
            plain(x, training=True, mask=mask),
            atol=1e-5,
        )

    def test_synchronised_afterwards(self):
        layer, _ = self.pair()
        layer.layer.synchronized = True
        found = operations(
            lambda x: layer(x, training=True), tf.zeros((2, 4, 4, 5))
        )
        self.assertNotIn("FusedBatchNormV3", found)


class ActivationTest(parameterized.TestCase):
    @parameterized.product(
        name=["hard_silu", "silu"], dtype=["float32", "mixed_bfloat16"]
    )
    def test_value_and_derivative(self, name, dtype):
        layer = keras.layers.Activation(name, dtype=dtype)
        layer = Fused(layer)
        x = np.linspace(-9, 9, 4 * 37).reshape(4, 1, 1, 37)
        upstream = np.random.default_rng(0).normal(size=x.shape)
        x, upstream = (
            np.array(tf.cast(tf.cast(v, layer.compute_dtype), "float64"))
            for v in (x, upstream)
        )
        y, gradient = train_step(layer, x, upstream)
        if name == "silu":
            gate = 1 / (1 + np.exp(-x))
            expected = x * gate, gate * (1 + x * (1 - gate))
        else:
            gate = np.clip(x / 6 + 0.5, 0, 1)
            slope = np.where(abs(x) < 3, x / 6, 0)
            expected = x * gate, gate + slope
        # In 16 bits results are rounded, once; 2^-8 at most for SiLU's gate.
        tight = dtype == "float32"
        np.testing.assert_allclose(
            y, expected[0], atol=1e-5, rtol=0 if tight else 2**-7
        )
        np.testing.assert_allclose(
            gradient,
            expected[1] * upstream,
            atol=1e-5,
            rtol=0 if tight else 2**-8,
        )

    def test_compiled_in_training_alone(self):
        layer = keras.layers.Activation("hard_silu")
        layer = Fused(layer)
        x = tf.zeros((2, 4, 4, 5))
        self.assertTrue(compiled_by_xla(lambda x: layer(x, training=True), x))
        # What is exported must run where there is no XLA.
        self.assertFalse(compiled_by_xla(lambda x: layer(x), x))
        for other in ("relu", "softmax"):
            layer = keras.layers.Activation(other)
            self.assertNotIn(layer.activation, _KERNELS)
            layer = Fused(layer)
            self.assertFalse(
                compiled_by_xla(lambda x, f=layer: f(x, training=True), x)
            )

    def test_within_a_compiled_step(self):
        layer = keras.layers.Activation("hard_silu")
        layer = Fused(layer)
        x = tf.random.stateless_normal((2, 4, 4, 5), (0, 0))
        compiled = tf.function(
            lambda x: layer(x, training=True), jit_compile=True
        )
        np.testing.assert_allclose(
            compiled(x), keras.activations.hard_silu(x), atol=1e-6
        )


class AverageTest(parameterized.TestCase):
    @parameterized.parameters(False, True)
    def test_in_16_bits(self, keepdims):
        layer = keras.layers.GlobalAveragePooling2D(
            keepdims=keepdims, dtype="mixed_bfloat16"
        )
        layer = Fused(layer)
        rng = np.random.default_rng(0)
        x = rng.uniform(100, 101, (3, 7, 5, 4))  # much of nearly the same
        x = np.array(tf.cast(tf.cast(x, "bfloat16"), "float64"))
        upstream = rng.integers(-8, 8, (3, 1, 1, 4)) / 1.0
        if not keepdims:
            upstream = upstream[:, 0, 0]
        y, gradient = train_step(layer, x, upstream)
        expected = x.mean((1, 2), keepdims=keepdims)
        np.testing.assert_allclose(y, expected, rtol=2**-8)
        expected = upstream.reshape(3, 1, 1, 4) / 35 * np.ones(x.shape)
        np.testing.assert_allclose(gradient, expected, rtol=2**-8)

    def test_where(self):
        def pools(maps, dtype="mixed_bfloat16", training=True, gpu=False):
            layer = keras.layers.GlobalAveragePooling2D(dtype=dtype)
            layer = Fused(layer, accelerated=gpu)
            x = tf.TensorSpec(maps, layer.compute_dtype)
            found = operations(lambda x: layer(x, training=training), x)
            return "AvgPool" in found

        self.assertTrue(pools((None, 4, 4, 3)))
        self.assertFalse(pools((None, None, None, 3)))
        self.assertFalse(pools((2, 4, 4, 3), "float32"))
        self.assertFalse(pools((2, 4, 4, 3), training=False))
        self.assertFalse(pools((2, 4, 4, 3), gpu=True))


class MaximumTest(parameterized.TestCase):
    def layer(self, *args, accelerated=True, **options):
        return Fused(keras.layers.MaxPooling2D(*args, **options), accelerated)

    @parameterized.product(
        size=[2, 3, 5],
        strides=[1, 2, 3],
        sides=[(8, 8), (9, 6), (7, 12)],
        dtype=["float32", "float64", "mixed_bfloat16"],
    )
    @pytest.mark.slow
    def test_gradient(self, size, strides, sides, dtype):
        rng = np.random.default_rng(0)
        # Much is equal: the first of a window gets its gradient.
        x = rng.integers(-3, 4, (3, *sides, 4)) / 1.0
        layer = self.layer(size, strides, dtype=dtype)
        upstream = rng.integers(-8, 8, layer(x).shape) / 1.0
        if dtype == "float64":
            upstream += 2.0**-40
        y, gradient = train_step(layer, x, upstream)
        expected = np.zeros(x.shape)
        for place in np.ndindex(y.shape):
            b, i, j, c = place
            i, j = strides * i, strides * j
            window = x[b, i : i + size, j : j + size, c]
            self.assertEqual(y[place], window.max())
            u, v = np.unravel_index(window.argmax(), window.shape)
            expected[b, i + u, j + v, c] += upstream[place]
        np.testing.assert_array_equal(gradient, expected)

    def test_where(self):
        def is_ours(maps, *args, training=True, **options):
            layer = self.layer(*args, **options)

            def gradient(x):
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = layer(x, training=training)
                return tape.gradient(y, x)

            return "MaxPoolGrad" not in operations(
                gradient, tf.TensorSpec(maps)
            )

        self.assertTrue(is_ours((None, 8, 8, 3), 3, 2))
        self.assertFalse(is_ours((2, None, None, 3), 3, 2))
        self.assertFalse(is_ours((2, 8, 8, None), 3, 2))
        self.assertFalse(is_ours((2, 8, 8, 3), 3, 2, "same"))
        self.assertFalse(is_ours((2, 8, 8, 3), (2, 3)))
        self.assertTrue(is_ours((2, 12, 12, 3), 11))
        self.assertFalse(is_ours((2, 12, 12, 3), 12))
        self.assertFalse(is_ours((2, 8, 8, 3), 3, 2, training=False))
        self.assertFalse(is_ours((2, 8, 8, 3), 3, 2, accelerated=False))

    def test_within_a_compiled_step(self):
        layer = self.layer(3, 2)
        x = np.random.default_rng(0).normal(size=(2, 9, 9, 4))
        upstream = np.ones((2, 4, 4, 4))
        compiled = tf.function(
            lambda x: tf.gradients(layer(x, training=True), x)[0],
            jit_compile=True,
        )
        np.testing.assert_allclose(
            compiled(tf.constant(x, "float32")),
            train_step(layer, x, upstream)[1],
        )


class ModelTest(absltest.TestCase):
    def test_the_file_is_that_of_a_plain_model(self):
        def build():
            return keras.Sequential(
                [
                    keras.Input((6, 6, 3)),
                    keras.layers.Conv2D(4, 3),
                    keras.layers.BatchNormalization(),
                    keras.layers.Activation("silu"),
                ],
                name="net",
            )

        plain, fused = build(), build()
        keras.backend.clear_session()
        Fused(fused)(np.zeros((2, 6, 6, 3)), training=True)
        path = self.create_tempfile("net.keras").full_path
        fused.save(path)
        loaded = keras.models.load_model(path)
        x = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
        np.testing.assert_array_equal(loaded(x), fused(x))
        for a, b, c in zip(
            plain.layers, fused.layers, loaded.layers, strict=True
        ):
            self.assertIs(type(a), type(b))
            self.assertIs(type(a), type(c))
            self.assertEqual(set(a.get_config()), set(b.get_config()), a.name)
            self.assertNotIn("call", vars(c))


if __name__ == "__main__":
    absltest.main()
