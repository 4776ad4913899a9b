"""Tests of faster ways to the same convolutions, against float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.fused import Fused

import seed_tf
from seed_tf.acceleration import FoldedTeacher, Hardware
from seed_tf.keras_internals import all_layers

WIDTH, FILTERS = 6, 5


def build(kind, dtype="float32", **options):
    if kind is keras.layers.Conv2D:
        options = {"filters": FILTERS, **options}
    return kind(dtype=dtype, **options)


def pair(kind, maps, accelerated=False, **options):
    """A fused layer, and a plain one in float64 with the same weights."""
    fused, plain = (build(kind, x, **options) for x in ("float32", "float64"))
    rng = np.random.default_rng(0)
    for layer in (fused, plain):
        layer.build(maps)
    weights = [rng.normal(size=w.shape) for w in fused.weights]
    for layer in (fused, plain):
        layer.set_weights(weights)
    return Fused(fused, accelerated), plain


def outputs_and_gradients(layer, x, upstream):
    x = tf.constant(x, layer.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        total = tf.reduce_sum(y * tf.cast(upstream, y.dtype))
    return [y, *tape.gradient(total, [x, *layer.trainable_weights])]


def convolutions(function, maps):
    """How many operations of a function are convolutions."""
    spec = tf.TensorSpec(maps, "float32")
    graph = tf.function(function).get_concrete_function(spec).graph
    graph = graph.as_graph_def()
    nodes = list(graph.node)
    for inner in graph.library.function:
        nodes += inner.node_def
    return sum("Conv" in node.op for node in nodes)


def gradient_operations(layer, maps):
    """Nodes of the graph of a layer and all its gradients."""

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, [x, *layer.trainable_weights])

    spec = tf.TensorSpec(maps, layer.compute_dtype)
    graph = tf.function(gradient).get_concrete_function(spec).graph
    return list(graph.as_graph_def().node)


def filter_gradients(layer, maps):
    nodes = gradient_operations(layer, maps)
    return [x for x in nodes if x.op == "Conv2DBackpropFilter"]


def depthwise_gradients(layer, maps):
    """Attributes of the operations that give them, by "Input", "Filter"."""
    name = "DepthwiseConv2dNativeBackprop"
    return {
        node.op.removeprefix(name): node.attr
        for node in gradient_operations(layer, maps)
        if node.op.startswith(name)
    }


def paddings_of_gradient(layer, maps):
    """Of the operation that gives a depthwise kernel its gradient, a set."""
    attributes = depthwise_gradients(layer, maps)["Filter"]
    return {attributes["padding"].s.decode()}


def trained(layer):
    return lambda x: layer(x, training=True)


class LayersTest(parameterized.TestCase):
    def check(self, kind, sides, **options):
        maps = (3, *sides, WIDTH)
        fused, plain = pair(kind, maps, **options)
        rng = np.random.default_rng(1)
        x = rng.normal(size=maps)
        upstream = rng.normal(size=plain(x).shape)
        found = outputs_and_gradients(fused, x, upstream)
        expected = outputs_and_gradients(plain, x, upstream)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        return convolutions(trained(fused), maps), fused, maps

    @parameterized.parameters(
        ((1, 1), {"kernel_size": 3, "padding": "same"}),
        ((2, 2), {"kernel_size": 3, "padding": "same"}),
        ((1, 2), {"kernel_size": 5, "padding": "same", "use_bias": False}),
        ((2, 2), {"kernel_size": 1, "padding": "same"}),
        ((2, 1), {"kernel_size": 1, "activation": "relu"}),
        ((4, 4), {"kernel_size": 3, "strides": 2}),
        ((6, 5), {"kernel_size": 3, "strides": 2}),
        ((4, 4), {"kernel_size": 3}),
        ((3, 4), {"kernel_size": 1, "strides": 2}),
        ((5, 4), {"kernel_size": 1}),
        ((5, 4), {"kernel_size": 1, "padding": "same", "use_bias": False}),
    )
    def test_a_convolution_is_a_matrix_product(self, sides, options):
        count, fused, maps = self.check(keras.layers.Conv2D, sides, **options)
        self.assertEqual(count, 0)
        # What is exported computes as ever.
        self.assertEqual(convolutions(lambda x: fused(x), maps), 1)

    @parameterized.parameters(
        ((1, 1), {"kernel_size": 5, "padding": "same", "use_bias": False}),
        ((6, 6), {"kernel_size": 5, "strides": 2, "use_bias": False}),
        ((3, 2), {"kernel_size": 2, "strides": 2, "use_bias": False}),
    )
    def test_a_depthwise_one_is_a_product(self, sides, options):
        kind = keras.layers.DepthwiseConv2D
        count, fused, maps = self.check(kind, sides, **options)
        self.assertEqual(count, 0)
        self.assertEqual(convolutions(lambda x: fused(x), maps), 1)

    @parameterized.parameters(
        ((3, 2), {"kernel_size": 3, "padding": "same"}),
        ((2, 2), {"kernel_size": 2, "padding": "same"}),
        ((2, 2), {"kernel_size": 3, "padding": "same", "strides": 2}),
        ((2, 2), {"kernel_size": (3, 1), "padding": "same"}),
        ((4, 4), {"kernel_size": 3, "strides": (2, 1)}),
        ((2, 2), {"kernel_size": 3, "padding": "same", "dilation_rate": 2}),
        ((2, 2), {"kernel_size": 3, "padding": "same", "groups": 2}),
    )
    def test_other_convolutions_stay(self, sides, options):
        if options.get("groups"):
            options = {**options, "filters": 4}
        count, *_ = self.check(keras.layers.Conv2D, sides, **options)
        self.assertGreater(count, 0)

    @parameterized.product(
        kernel_size=[3, 5],
        strides=[1, 2],
        padding=["valid", "same"],
        sides=[(8, 6), (7, 5), (9, 8)],
    )
    def test_gradients_of_depthwise_ones(self, sides, **options):
        options["use_bias"] = False
        kind = keras.layers.DepthwiseConv2D
        _, fused, maps = self.check(kind, sides, **options)
        self.assertEqual(
            paddings_of_gradient(fused, maps),
            {"EXPLICIT"}
            if options["kernel_size"] == 5
            else {options["padding"].upper()},
        )
        self.assertEqual(
            paddings_of_gradient(Fused(fused.layer, True), maps),
            {options["padding"].upper()},
        )

    def test_of_maps_smaller_than_the_kernel(self):
        kind = keras.layers.DepthwiseConv2D
        options = {"kernel_size": 3, "padding": "same", "use_bias": False}
        for side, expected in ((2, "EXPLICIT"), (3, "SAME")):
            _, fused, maps = self.check(kind, (side, side), **options)
            self.assertEqual(paddings_of_gradient(fused, maps), {expected})

    def check_in_16_bits(self, kind, maps, **options):
        """Returns the fused layer."""
        layers = [
            build(kind, dtype, use_bias=False, **options)
            for dtype in ("mixed_bfloat16", "float64")
        ]
        # Small integers, whose sums 16 bits hold without rounding.
        rng = np.random.default_rng(0)
        x = rng.integers(-2, 3, maps).astype("float64")
        for layer in layers:
            layer.build(maps)
        kernel = rng.integers(-1, 2, layers[0].kernel.shape)
        for layer in layers:
            layer.set_weights([kernel])
        layers[0] = Fused(layers[0])
        upstream = rng.integers(-1, 2, layers[1](x).shape)
        found, expected = (
            outputs_and_gradients(layer, x, upstream) for layer in layers
        )
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(tf.cast(a, "float64"), b)
        return layers[0]

    @parameterized.product(
        sides=[(3, 3), (7, 7), (5, 6)],
        kernel_size=[3, 5],
        strides=[1, 2],
        padding=["same", "valid"],
        left_over=[False, True],
    )
    def test_gradients_to_small_maps_in_16_bits(
        self, sides, kernel_size, strides, padding, left_over
    ):
        cut = kernel_size - strides if padding == "valid" else 0
        if left_over and strides > 1:
            # A row that no window sees, or more padding at the top.
            cut += 1 if padding == "valid" else -1
        maps = (2, *(strides * side + cut for side in sides), WIDTH)
        options = {
            "kernel_size": kernel_size,
            "strides": strides,
            "padding": padding,
        }
        kind = keras.layers.Conv2D
        fused = self.check_in_16_bits(kind, maps, **options)
        self.assertEqual(fused(tf.zeros(maps)).shape[1:3], sides)
        self.assertEqual(filter_gradients(fused, maps), [])
        self.assertLen(filter_gradients(Fused(fused.layer, True), maps), 1)

    @parameterized.parameters(
        (8, "mixed_bfloat16", {}),
        (7, "float32", {}),
        (21, "mixed_bfloat16", {"strides": 3}),
        (7, "mixed_bfloat16", {"dilation_rate": 2}),
        (None, "mixed_bfloat16", {}),
    )
    def test_other_gradients_stay(self, side, dtype, options):
        layer = keras.layers.Conv2D(
            4, 3, padding="same", dtype=dtype, **options
        )
        maps = 2, side, side, WIDTH
        layer.build(maps)
        self.assertLen(filter_gradients(Fused(layer), maps), 1)

    @parameterized.product(kernel_size=[3, 5], strides=[1, 2])
    def test_gradients_of_depthwise_ones_in_16_bits(self, **options):
        maps = 2, 8, 8, WIDTH
        fused = self.check_in_16_bits(
            keras.layers.DepthwiseConv2D, maps, padding="same", **options
        )
        computed_in = {
            name: tf.as_dtype(attributes["T"].type).name
            for name, attributes in depthwise_gradients(fused, maps).items()
        }
        slow = {
            "Input": options["strides"] > 1,
            "Filter": options["kernel_size"] > 3,
        }
        self.assertEqual(
            computed_in,
            {k: "float32" if v else "bfloat16" for k, v in slow.items()},
        )

    @parameterized.parameters(
        ((1, 1), {"kernel_size": 3, "padding": "same"}),
        (
            (1, 1),
            {
                "kernel_size": 3,
                "padding": "same",
                "use_bias": False,
                "depth_multiplier": 2,
            },
        ),
        (
            (1, 1),
            {
                "kernel_size": 3,
                "padding": "same",
                "use_bias": False,
                "activation": "relu",
            },
        ),
    )
    def test_other_depthwise_ones_stay(self, sides, options):
        count, *_ = self.check(keras.layers.DepthwiseConv2D, sides, **options)
        self.assertGreater(count, 0)

    def test_maps_of_unknown_size_are_convolved(self):
        layer = build(keras.layers.Conv2D, kernel_size=3, padding="same")
        layer = Fused(layer)
        maps = (None, None, None, WIDTH)
        self.assertEqual(convolutions(trained(layer), maps), 1)

    def test_any_batch_size(self):
        layer = build(keras.layers.Conv2D, kernel_size=3, padding="same")
        layer = Fused(layer)
        maps = (None, 2, 2, WIDTH)
        self.assertEqual(convolutions(trained(layer), maps), 0)


class BlocksTest(parameterized.TestCase):
    def widths(self, maps, dtype="float32", width=None, **options):
        """Channels that a fused layer's convolutions see, a list."""
        layer = build(keras.layers.Conv2D, dtype, **options)
        layer.build((None, None, None, width or maps[3]))
        layer = Fused(layer, accelerated=True)
        spec = tf.TensorSpec(maps, layer.compute_dtype)
        function = tf.function(trained(layer)).get_concrete_function(spec)
        return [
            operation.inputs[1].shape[2]
            for operation in function.graph.get_operations()
            if operation.type == "Conv2D"
        ]

    @parameterized.product(
        kernel_size=[3, 4, 7],
        padding=["same", "valid"],
        sides=[(16, 16), (15, 18), (9, 7)],
    )
    def test_of_images(self, sides, **options):
        maps = 2, *sides, 3
        options = {"filters": FILTERS, "strides": 2, **options}
        fused, plain = pair(keras.layers.Conv2D, maps, True, **options)
        rng = np.random.default_rng(1)
        x = rng.normal(size=maps)
        upstream = rng.normal(size=plain(x).shape)
        found = outputs_and_gradients(fused, x, upstream)
        expected = outputs_and_gradients(plain, x, upstream)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        self.assertEqual(self.widths(maps, **options), [4 * 3])

    @parameterized.parameters((3, 16), (1, 8))
    def test_whole_lanes_in_16_bits(self, width, expected):
        found = self.widths(
            (2, 32, 32, width), "mixed_bfloat16", kernel_size=7, strides=2
        )
        self.assertEqual(found, [expected])

    @parameterized.parameters(
        (3, {"kernel_size": 3}),
        (3, {"kernel_size": 2, "strides": 2}),
        (3, {"kernel_size": 5, "strides": 3}),
        (3, {"kernel_size": (3, 5), "strides": 2}),
        (8, {"kernel_size": 3, "strides": 2}),
        (4, {"kernel_size": 3, "strides": 2}),
    )
    def test_others_stay(self, width, options):
        found = self.widths((2, 16, 16, width), **options)
        self.assertEqual(found, [width])

    def test_groups_stay(self):
        options = {"filters": 6, "kernel_size": 3, "strides": 2, "groups": 3}
        maps = 2, 16, 16, 3
        fused, plain = pair(keras.layers.Conv2D, maps, True, **options)
        x = np.random.default_rng(1).normal(size=maps)
        np.testing.assert_allclose(
            fused(tf.constant(x, "float32"), training=True),
            plain(x),
            rtol=1e-5,
            atol=1e-5,
        )

    @parameterized.parameters(
        (2, None, None, 3), (2, 16, None, 3), (2, 16, 16, None)
    )
    def test_images_of_unknown_size(self, *maps):
        found = self.widths(maps, width=3, kernel_size=3, strides=2)
        self.assertNotIn(12, found)

    def test_batches_of_any_size(self):
        found = self.widths((None, 16, 16, 3), kernel_size=3, strides=2)
        self.assertEqual(found, [12])

    def test_of_a_teacher(self):
        keras.utils.set_random_seed(0)
        encoder = seed_tf.Encoder("efficientnet_b0")
        frozen = FoldedTeacher(encoder, hardware=Hardware(accelerated=True))
        images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3))
        images = images.astype("float32")
        np.testing.assert_allclose(
            frozen(images), encoder(images), rtol=1e-4, atol=1e-4
        )
        spec = tf.TensorSpec(images.shape)
        graph = tf.function(frozen).get_concrete_function(spec).graph
        first = [x for x in graph.get_operations() if x.type == "Conv2D"][0]
        self.assertEqual(first.inputs[1].shape, (2, 2, 12, 32))


class NetworksTest(parameterized.TestCase):
    @parameterized.parameters("resnet18", "mobilenet_v3_large")
    @pytest.mark.slow
    def test_less_is_convolved_of_small_images(self, name):
        encoder = Fused(seed_tf.Encoder(name))
        large, small = (
            convolutions(trained(encoder), (2, size, size, 3))
            for size in (224, 32)
        )
        self.assertLess(small, large)
        # Nor 1x1 at any size.
        convolved = [
            layer
            for layer in all_layers(encoder.layer)
            if "Conv" in type(layer).__name__
            and (layer.kernel_size != (1, 1) or layer.strides != (1, 1))
        ]
        self.assertLen(convolved, large)
        encoder = Fused(encoder.layer, accelerated=True)
        found = convolutions(trained(encoder), (2, 224, 224, 3))
        self.assertEqual(found > large, name == "mobilenet_v3_large")

    def test_a_teacher_too(self):
        keras.utils.set_random_seed(0)
        encoder = seed_tf.Encoder("resnet18")
        frozen = FoldedTeacher(encoder)
        images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
        images = images.astype("float32")
        np.testing.assert_allclose(
            frozen(images), encoder(images), rtol=1e-4, atol=1e-4
        )
        maps = images.shape
        self.assertLess(
            convolutions(lambda x: frozen(x), maps),
            convolutions(lambda x: encoder(x), maps),
        )


if __name__ == "__main__":
    absltest.main()
