"""Backbones by name, and what Encoder promises of its inputs and outputs."""

import copy
import math
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized

from seed_tf.encoders import Encoder, backbone

# Trainable weights without the classifier, as published: torchvision's
# ResNets, MobileNetV3 with its 1280-wide layer, EfficientNets.
PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
    "mobilenet_v3_large": 2_971_952 + 961 * 1280,
    "efficientnet_b0": 4_007_548,
    "efficientnet_b1": 6_513_184,
}


def random_images(batch=4, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


def count(variables):
    return sum(math.prod(v.shape) for v in variables)


def user_backbone():
    """Something small with BatchNorm and dropout, gives [B, h, w, 8]."""
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(8, 3, strides=2),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.ReLU(),
        ]
    )


def identity():
    """A backbone that gives the normalised image."""
    return keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Activation("linear")]
    )


class BackboneTest(parameterized.TestCase):
    @parameterized.parameters(*PARAMETERS.items())
    def test_published_number_of_parameters(self, name, parameters):
        self.assertEqual(count(backbone(name).trainable_variables), parameters)

    # The map before pooling: 32 pixels on a side over the network's stride.
    @parameterized.parameters(
        ("resnet18", "imagenet", None, 1),
        ("resnet18", "cifar", None, 4),
        ("resnet50", "cifar", None, 4),
        ("mobilenet_v3_large", "imagenet", "avgpool", 1),
        ("mobilenet_v3_large", "cifar", "avgpool", 2),
        ("efficientnet_b0", "imagenet", "avg_pooling", 1),
        ("efficientnet_b1", "cifar", "avg_pooling", 2),
    )
    @pytest.mark.slow
    def test_stems(self, name, stem, pooling, side):
        model = backbone(name, stem=stem)
        maps = model.get_layer(pooling).input if pooling else model.output
        model = keras.Model(model.input, maps)
        shape = model.compute_output_shape((2, 32, 32, 3))
        self.assertEqual(shape[:3], (2, side, side))

    def test_a_cifar_stem_has_a_small_kernel(self):
        model = backbone("resnet18", stem="cifar")
        self.assertEqual(model.get_layer("conv1").kernel.shape, (3, 3, 3, 64))
        self.assertNotIn("maxpool", [layer.name for layer in model.layers])

    def test_initial_weights(self):
        """He's normal for ResNet, PyTorch's uniform for EfficientNet."""
        kernel = backbone("resnet18").get_layer("layer4_0_conv1").kernel
        std = (2 / (9 * 512)) ** 0.5  # fan-out
        self.assertAlmostEqual(float(np.std(kernel)) / std, 1, delta=0.01)
        self.assertGreater(float(np.max(kernel)), 4 * std)  # not truncated
        model = backbone("efficientnet_b0")
        kernel = model.get_layer("conv_head").kernel
        self.assertAlmostEqual(float(np.max(kernel)), 320**-0.5, delta=1e-5)
        kernel = model.get_layer("blocks_12_depthwise_conv").kernel
        self.assertAlmostEqual(float(np.max(kernel)), 1 / 5, delta=1e-3)
        self.assertLess(float(np.max(np.abs(kernel))), 1 / 5)

    @parameterized.parameters("resnet18", "mobilenet_v3_large")
    def test_every_weight_gets_a_gradient(self, name):
        model = backbone(name)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(tf.random.normal((2, 32, 32, 3))) ** 2)
        for variable, gradient in zip(
            model.trainable_variables,
            tape.gradient(loss, model.trainable_variables),
            strict=True,
        ):
            self.assertIsNotNone(gradient, variable.path)

    @parameterized.parameters("mobilenet_v3_large", "efficientnet_b0")
    @pytest.mark.slow
    def test_dropout_in_training_only(self, name):
        model, images = backbone(name), tf.random.normal((4, 32, 32, 3))
        for layer in model.layers:  # Else batch statistics differ, too.
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
        np.testing.assert_array_equal(model(images), model(images))
        train = tf.function(lambda x: model(x, training=True))
        first, second = train(images).numpy(), train(images).numpy()
        # The last layer drops one value in five, each time others.
        self.assertAlmostEqual(np.mean(first == 0), 0.2, delta=0.03)
        self.assertFalse(np.array_equal(first == 0, second == 0))

    @parameterized.parameters(False, True)
    def test_drop_connect_drops_whole_branches(self, jit_compile):
        model = backbone("efficientnet_b0")
        rates = {
            layer.name: layer.rate
            for layer in model.layers
            if layer.name.endswith("drop_connect")
        }
        # Blocks with a shortcut, of 16.
        blocks = (2, 4, 6, 7, 9, 10, 12, 13, 14)
        expected = {f"blocks_{i}_drop_connect": 0.2 * i / 16 for i in blocks}
        self.assertEqual(rates, expected)

        layer = model.get_layer("blocks_14_drop_connect")
        ones = np.ones((2000, 2, 2, 3), "float32")
        drop = tf.function(
            lambda x: layer(x, training=True), jit_compile=jit_compile
        )
        first, second = drop(ones).numpy(), drop(ones).numpy()
        kept = first[:, :1, :1, :1]
        np.testing.assert_array_equal(first, kept * ones)
        self.assertAlmostEqual(np.mean(kept == 0), layer.rate, delta=0.03)
        np.testing.assert_allclose(kept[kept > 0], 1 / (1 - layer.rate), 1e-6)
        self.assertFalse(np.array_equal(first, second))
        np.testing.assert_array_equal(layer(ones, training=False), ones)

    def test_unknown_names(self):
        with self.assertRaisesRegex(
            ValueError,
            'mobilenet_v3_large, .*resnet-18.*Did you mean "resnet18"',
        ):
            backbone("resnet-18")
        with self.assertRaisesRegex(ValueError, r"one of .*name=None\.$"):
            backbone(None)
        with self.assertRaisesRegex(ValueError, '"cifar".*stem=.mnist'):
            backbone("resnet18", stem="mnist")


class EncoderTest(parameterized.TestCase):
    def tearDown(self):
        keras.config.set_dtype_policy("float32")
        super().tearDown()

    def assert_same_outputs(self, actual, expected):
        images = random_images()
        np.testing.assert_allclose(actual(images), expected(images), 1e-5)
        np.testing.assert_allclose(
            actual.features(images), expected.features(images), 1e-5
        )

    @parameterized.parameters(("resnet18", 512), ("mobilenet_v3_large", 1280))
    def test_outputs(self, name, width):
        encoder, images = Encoder(name), random_images(size=64)
        embeddings, features = encoder(images), encoder.features(images)
        self.assertEqual(embeddings.shape, (4, 128))
        self.assertEqual(features.shape, (4, width))
        self.assertEqual((embeddings.dtype, features.dtype), ("float32",) * 2)
        self.assertEqual(encoder.embedding_dim, 128)
        self.assertEqual(encoder.feature_dim, width)
        np.testing.assert_array_equal(
            embeddings, encoder(images.astype("float32"))
        )
        np.testing.assert_allclose(
            encoder.predict(images, verbose=0), embeddings, 1e-3, 1e-5
        )

    def test_normalisation(self):
        images = random_images()
        encoder = Encoder(identity(), head=None)
        expected = (images / 255 - [0.485, 0.456, 0.406]) / [
            *(0.229, 0.224, 0.225)
        ]
        np.testing.assert_allclose(
            encoder.features(images), expected.mean((1, 2)), 1e-4, 1e-5
        )
        raw = Encoder(identity(), head=None, mean=(0, 0, 0), std=(1 / 255,) * 3)
        np.testing.assert_allclose(
            raw.features(images), images.mean((1, 2)), 1e-5
        )

    def test_weights_exist_at_once(self):
        encoder = Encoder("resnet18", embedding_dim=16)
        head = 512 * 512 + 512 + 512 * 16 + 16
        self.assertEqual(
            count(encoder.trainable_variables), PARAMETERS["resnet18"] + head
        )
        encoder.summary(print_fn=lambda *args, **kwargs: None)

    @parameterized.parameters(
        ({"head": "linear"}, ["fc_0"], [(8, 128)]),
        ({}, ["fc_0", "fc_1", "fc_2"], [(8, 8), (8, 128)]),
        (
            {"hidden_dim": 32, "head_batch_norm": True, "embedding_dim": 5},
            ["fc_0", "fc_1", "fc_2", "fc_3"],
            [(8, 32), (32, 5)],
        ),
    )
    def test_heads(self, settings, names, kernels):
        encoder = Encoder(user_backbone(), **settings)
        layers = encoder.head.layers
        self.assertEqual([layer.name for layer in layers], names)
        dense = [x for x in layers if isinstance(x, keras.layers.Dense)]
        self.assertEqual([tuple(x.kernel.shape) for x in dense], kernels)
        norms = [
            x.name
            for x in layers
            if isinstance(x, keras.layers.BatchNormalization)
        ]
        has_norm = settings.get("head_batch_norm", False)
        self.assertEqual(norms, ["fc_1"] if has_norm else [])
        for layer in dense:  # PyTorch's default initialisation
            bound = layer.kernel.shape[0] ** -0.5
            for weight in (layer.kernel, layer.bias):
                largest = np.abs(weight).max()
                self.assertLess(largest, bound)
                self.assertGreater(largest, 0.5 * bound)

    def test_without_a_head(self):
        encoder, images = Encoder(user_backbone(), head=None), random_images()
        self.assertEqual(encoder.embedding_dim, 8)
        Encoder(user_backbone(), head=None, embedding_dim=8)
        np.testing.assert_array_equal(encoder(images), encoder.features(images))

    def test_training_mode(self):
        encoder, images = Encoder(user_backbone()), random_images()
        mean = encoder.backbone.layers[1].moving_mean
        before = mean.numpy()
        features = encoder.features(images)
        encoder(images)
        np.testing.assert_array_equal(mean, before)

        class Probe(keras.Model):
            def call(self, images):
                return encoder.features(images)

        np.testing.assert_array_equal(Probe()(images, training=True), features)
        np.testing.assert_array_equal(mean, before)
        encoder(images, training=True)
        self.assertFalse(np.allclose(mean, before))
        self.assertFalse(
            np.allclose(encoder.features(images, training=True), features)
        )

    @parameterized.parameters(False, True)
    def test_in_a_graph(self, jit_compile):
        encoder = Encoder("resnet18", stem="cifar")
        images = random_images(2)
        for function in (encoder, encoder.features):
            expected = function(images)
            compiled = tf.function(function, jit_compile=jit_compile)
            np.testing.assert_allclose(compiled(images), expected, 1e-3, 1e-5)

    def test_as_part_of_a_functional_model(self):
        encoder, images = Encoder(user_backbone()), random_images()
        inputs = keras.Input((32, 32, 3), dtype="uint8")
        model = keras.Model(inputs, [encoder(inputs), encoder.features(inputs)])
        embeddings, features = model(images)
        np.testing.assert_array_equal(embeddings, encoder(images))
        np.testing.assert_array_equal(features, encoder.features(images))

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    @pytest.mark.slow
    def test_mixed_precision(self, policy):
        images = random_images()
        keras.utils.set_random_seed(0)
        expected = Encoder("resnet18", stem="cifar")
        keras.config.set_dtype_policy(policy)
        encoder = Encoder("resnet18", stem="cifar")
        encoder.set_weights(expected.get_weights())
        narrow = policy.removeprefix("mixed_")
        for layer in (*encoder.backbone.layers, *encoder.head.layers):
            self.assertEqual(layer.compute_dtype, narrow)
        for narrow, wide in (
            (encoder(images), expected(images)),
            (encoder.features(images), expected.features(images)),
        ):
            self.assertEqual(narrow.dtype, "float32")
            error = np.linalg.norm(narrow - wide) / np.linalg.norm(wide)
            self.assertBetween(error, 1e-6, 0.05)
        # bfloat16 would round 124.1 to 124.
        encoder = Encoder(identity(), head=None)
        image = np.full((1, 8, 8, 3), 124.1, "float32")
        red = encoder.features(image)[0, 0]
        self.assertAlmostEqual(
            float(red), (124.1 / 255 - 0.485) / 0.229, delta=1e-4
        )

    @parameterized.named_parameters(
        ("by_name", lambda: Encoder("resnet18", stem="cifar", head="linear")),
        (
            "of_a_user",
            lambda: Encoder(
                user_backbone(),
                hidden_dim=16,
                head_batch_norm=True,
                embedding_dim=4,
                mean=(0.5, 0.4, 0.3),
                std=(0.2, 0.3, 0.4),
                name="student",
            ),
        ),
        ("headless", lambda: Encoder(user_backbone(), head=None)),
        (
            "with_fixed_size",
            lambda: Encoder(
                keras.Sequential(
                    [keras.Input((32, 32, 3)), keras.layers.Conv2D(8, 3)]
                )
            ),
        ),
    )
    def test_saving_and_cloning(self, build):
        encoder, images = build(), random_images()
        encoder(images, training=True)  # running statistics move
        path = os.path.join(self.create_tempdir(), "encoder.keras")
        encoder.save(path)
        loaded = keras.saving.load_model(path)
        self.assertIsInstance(loaded, Encoder)
        self.assert_same_outputs(loaded, encoder)
        config, expected = loaded.get_config(), encoder.get_config()
        del config["backbone"], expected["backbone"]
        self.assertEqual(config, expected)

        clone = Encoder.from_config(encoder.get_config())
        weights, fresh = encoder.get_weights(), clone.get_weights()
        self.assertEqual([w.shape for w in weights], [w.shape for w in fresh])
        self.assertFalse(np.allclose(encoder(images), clone(images)))
        clone.set_weights(weights)
        self.assert_same_outputs(clone, encoder)

    def test_policy_and_trainability_are_saved(self):
        keras.config.set_dtype_policy("mixed_bfloat16")
        encoder = Encoder(user_backbone(), head_batch_norm=True)
        encoder.trainable = False
        path = os.path.join(self.create_tempdir(), "encoder.keras")
        encoder.save(path)
        keras.config.set_dtype_policy("float32")
        loaded = keras.saving.load_model(path)
        self.assert_same_outputs(loaded, encoder)
        for layer in (*loaded.backbone.layers, *loaded.head.layers):
            self.assertEqual(layer.dtype_policy.name, "mixed_bfloat16")
            self.assertFalse(layer.trainable)

    @parameterized.parameters("float32", "mixed_bfloat16", "mixed_float16")
    def test_keras_takes_it_fresh_and_loaded(self, policy):
        keras.config.set_dtype_policy(policy)
        encoder = Encoder(user_backbone(), embedding_dim=4, image_size=32)
        keras.config.set_dtype_policy("float32")
        path = os.path.join(self.create_tempdir(), "encoder.keras")
        encoder.save(path)
        for model in (encoder, keras.saving.load_model(path)):
            lines = []
            model.summary(print_fn=lambda line, lines=lines: lines.append(line))
            self.assertIn("head", "".join(lines))
            self.assertNotIn("unbuilt", "".join(lines))

            copied = copy.deepcopy(model)
            self.assert_same_outputs(copied, encoder)
            self.assertEqual(copied.image_size, 32)
            for ours, theirs in zip(copied.weights, model.weights, strict=True):
                self.assertIsNot(ours, theirs)

            clone = keras.models.clone_model(model)
            self.assertIsInstance(clone, Encoder)
            self.assertEqual(clone.image_size, 32)
            self.assertIsNot(clone.backbone, model.backbone)
            clone.set_weights(model.get_weights())
            self.assert_same_outputs(clone, encoder)
            for layer in (*clone.backbone.layers, *clone.head.layers):
                self.assertEqual(layer.dtype_policy.name, policy)

    def test_export_of_keras_before_the_first_call(self):
        encoder = Encoder(user_backbone(), embedding_dim=4)
        path = os.path.join(self.create_tempdir(), "exported")
        encoder.export(path, verbose=False)
        exported = tf.saved_model.load(path)
        for size in (32, 40):
            images = random_images(size=size).astype("float32")
            np.testing.assert_allclose(
                exported.serve(images), encoder(images), 1e-4, 1e-5
            )

    def test_remembers_the_size_of_its_images(self):
        encoder = Encoder(user_backbone())
        self.assertIsNone(encoder.image_size)
        encoder.image_size = 96
        path = os.path.join(self.create_tempdir(), "encoder.keras")
        encoder.save(path)
        self.assertEqual(keras.saving.load_model(path).image_size, 96)
        config = encoder.get_config()
        del config["image_size"]  # an encoder saved before it existed
        self.assertIsNone(Encoder.from_config(config).image_size)
        with self.assertRaisesRegex(ValueError, "`image_size`.*=0"):
            encoder.image_size = 0

    def test_a_backbone_not_yet_built(self):
        encoder = Encoder(keras.Sequential([keras.layers.Conv2D(5, 3)]))
        self.assertEqual(encoder.feature_dim, 5)
        self.assertLen(encoder.weights, 6)

    @parameterized.parameters((2, 8, 8, 1), (8, 8, 3), (2, 3, 8, 8))
    def test_refuses_images_without_three_channels(self, *shape):
        encoder = Encoder(user_backbone())
        message = r"\[B, H, W, 3\].*" + str(shape).replace("(", r"\(")[:-1]
        for function in (encoder, encoder.features):
            with self.assertRaisesRegex(ValueError, message):
                function(np.zeros(shape))

    @parameterized.parameters(
        (r'"linear", "mlp" or None.*cosine', {"head": "cosine"}),
        (r"`embedding_dim` must be a positive.*0", {"embedding_dim": 0}),
        (r"`hidden_dim` must be a positive.*-2", {"hidden_dim": -2}),
        (r'head="mlp".*hidden_dim=4', {"head": "linear", "hidden_dim": 4}),
        (r'head="mlp".*linear', {"head": "linear", "head_batch_norm": True}),
        (r"width 8.*=64", {"head": None, "embedding_dim": 64}),
        (r"width 8.*=128", {"head": None, "embedding_dim": 128}),
        (r"`image_size` must be a positive.*2.5", {"image_size": 2.5}),
        (r"`std` positive.*\(1, 0, 1\)", {"std": (1, 0, 1)}),
        (r"three floats.*\(1, 2\)", {"mean": (1, 2)}),
        (r"`stem` is for a backbone given by name", {"stem": "cifar"}),
        (r"Did you mean \"resnet34\"", {"backbone": "resnet_34"}),
        (r"a name or a keras.Model.*None", {"backbone": None}),
    )
    def test_refuses_arguments(self, message, arguments):
        with self.assertRaisesRegex(ValueError, message):
            Encoder(**{"backbone": user_backbone(), **arguments})

    def test_refuses_backbones_without_features(self):
        inputs = keras.Input((None, None, 3))
        rows = keras.Model(inputs, keras.ops.mean(inputs, axis=1), name="rows")
        with self.assertRaisesRegex(ValueError, r"\[B, h, w, C\].*rows"):
            Encoder(rows)
        pair = keras.Model(inputs, [inputs, inputs], name="pair")
        with self.assertRaisesRegex(ValueError, "one tensor.*pair"):
            Encoder(pair)


if __name__ == "__main__":
    absltest.main()
