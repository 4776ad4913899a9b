"""Every backbone against a PyTorch network with the same random weights."""

import contextlib
import math
from unittest import mock

import keras
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from helpers.published import as_torch, normalised, random_images

from seed_tf import encoders

try:
    import torch
    from helpers import torch_layouts

    from seed_tf.conversion import torch_networks
except ImportError:
    torch = None


@contextlib.contextmanager
def fast_initializers():
    """Random weights at a tenth of the time that Keras takes."""
    rng = np.random.default_rng(0)
    values = rng.uniform(-(3**0.5), 3**0.5, 1_000_003)

    def draw(self, shape, dtype=None):
        start, fan_in = rng.integers(len(values)), np.prod(shape[:-1])
        scaled = np.roll(values, start) * fan_in**-0.5
        return np.resize(scaled.astype(keras.config.floatx()), shape)

    initializers = keras.initializers
    with (
        mock.patch.object(initializers.RandomNormal, "__call__", draw),
        mock.patch.object(initializers.RandomUniform, "__call__", draw),
    ):
        yield


def randomise(model, images, *parts):
    """Gives biases, gammas and running statistics values that tell.

    The statistics are near those of some images, since by others a deep
    random network maps all images to about the same point.
    """
    rng = np.random.default_rng(1)
    layers = [layer for part in parts for layer in part.layers]
    norms = [
        (layer, layer.momentum)
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in layers:
        for weight in layer.weights:
            center = float(weight.path.endswith("gamma"))
            if len(weight.shape) == 1:
                weight.assign(rng.normal(center, 0.2, weight.shape))
    for norm, _ in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in norms:
        norm.momentum = momentum
        mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        noise = rng.random(mean.shape)
        norm.moving_mean.assign(mean + (noise - 0.5) * variance**0.5)
        norm.moving_variance.assign(variance * (0.5 + noise))


def pooled(features):
    """NumPy features `[B, C]` of what a backbone gives."""
    if len(features.shape) == 4:
        features = keras.ops.mean(features, axis=(1, 2))
    return features.numpy()


@absltest.skipIf(torch is None, "needs PyTorch: pip install seed_tf[torch]")
class EncodersTorchTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        keras.utils.clear_session(free_memory=True)
        self.addCleanup(self.set_precision, "float32")

    def set_precision(self, dtype):
        # The policy follows `floatx` only until somebody asked for it.
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)

    def assert_near(self, actual, expected, tolerance):
        """Relative to the spread over images, which a constant would miss."""
        self.assertEqual(actual.shape, expected.shape)
        scale = np.linalg.norm(expected - expected.mean(0))
        self.assertGreater(scale, 0.02 * np.linalg.norm(expected))
        error = np.linalg.norm(actual - expected) / scale
        self.assertLess(error, tolerance)

    # In float64, since deep networks with BatchNorm and random weights are
    # chaotic: through EfficientNet-B1 rounding to float32 grows to 0.2, for
    # PyTorch as for Keras. Where an architecture differs, float64 tells.
    @parameterized.parameters(
        ("resnet18", 30, "cifar"),
        ("mobilenet_v3_large", 40, "cifar"),
        ("efficientnet_b0", 32, "cifar"),
    )
    def test_inference(self, name, size, stem="imagenet", dtype="float64"):
        self.check_inference(name, size, stem, dtype)

    @parameterized.parameters(
        ("resnet18", 224),
        ("resnet34", 48),
        ("resnet50", 48),
        ("resnet101", 48),
        ("resnet50w2", 48),
        ("resnet50w4", 32, "imagenet", "float32"),  # to save memory
        ("mobilenet_v3_large", 224),
        ("efficientnet_b0", 224),
        ("efficientnet_b1", 96),
    )
    @pytest.mark.slow
    def test_inference_of_every_network(
        self, name, size, stem="imagenet", dtype="float64"
    ):
        self.check_inference(name, size, stem, dtype)

    def check_inference(self, name, size, stem, dtype):
        self.set_precision(dtype)
        images = normalised(random_images(3, size)).astype(dtype)
        with fast_initializers():
            model = encoders.backbone(name, stem=stem)
        randomise(model, images, model)
        net = torch_networks.backbone(name, stem)
        torch_layouts.load_keras_weights(net, model)
        self.assertEqual(
            sum(math.prod(v.shape) for v in model.trainable_variables),
            sum(parameter.numel() for parameter in net.parameters()),
        )
        with torch.no_grad():
            expected = net.eval()(as_torch(images)).numpy()
        tolerance = 1e-4 if dtype == "float32" else 1e-7
        self.assert_near(pooled(model(images)), expected, tolerance)

    @parameterized.parameters(
        ("resnet18", 64),
        ("mobilenet_v3_large", 96),
        ("efficientnet_b0", 96),
    )
    def test_training(self, name, size):
        """Outputs by batch statistics, and the running statistics after."""
        self.set_precision("float64")
        images = normalised(random_images(8, size)).astype("float64")
        with fast_initializers():
            model = encoders.backbone(name)
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        randomise(model, normalised(random_images(8, size, seed=1)), model)
        old = {v.path: v.numpy() for v in model.weights}
        net = torch_networks.backbone(name)
        pairs = torch_layouts.load_keras_weights(net, model)

        counts = {}  # values that each BatchNorm averages over
        for key, module in net.named_modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, torch.nn.BatchNorm2d):
                module.register_forward_hook(
                    lambda _, inputs, output, key=key: counts.update(
                        {key: output[:, 0].numel()}
                    )
                )
        with torch.no_grad():
            expected = net.train()(as_torch(images)).numpy()
        actual = pooled(model(images, training=True))
        self.assert_near(actual, expected, 1e-7)

        moved, state = 0, net.state_dict()
        for key, variable in pairs:
            before, (module, _, kind) = old[variable.path], key.rpartition(".")
            if not kind.startswith("running"):
                np.testing.assert_array_equal(variable, before)
                continue
            expected = state[key].numpy()
            if kind == "running_var":
                # PyTorch moves towards the variance over n - 1, Keras over n.
                n, m = counts[module], 1 - net.get_submodule(module).momentum
                expected = before * m + (expected - before * m) * (n - 1) / n
            self.assertGreater(np.abs(expected - before).max(), 1e-6)
            np.testing.assert_allclose(variable, expected, 1e-9, 1e-9)
            moved += 1
        self.assertEqual(moved, 2 * len(counts))

    @parameterized.parameters("linear", "mlp", "mlp_bn")
    @pytest.mark.slow
    def test_encoder(self, head):
        """Normalisation, pooling and heads, in float32 from uint8 images."""
        images = random_images(4, 32)
        with fast_initializers():
            encoder = encoders.Encoder(
                "resnet18",
                stem="cifar",
                head=head.removesuffix("_bn"),
                hidden_dim=None if head == "linear" else 64,
                head_batch_norm=head == "mlp_bn",
                embedding_dim=16,
            )
        randomise(encoder, images, encoder.backbone, encoder.head)
        net = torch_layouts.encoder("resnet18", "cifar", head)
        torch_layouts.load_keras_weights(net, encoder.backbone, encoder.head)
        with torch.no_grad():
            expected = net.eval()(as_torch(normalised(images))).numpy()
            net.fc = torch.nn.Identity()
            features = net(as_torch(normalised(images))).numpy()
        self.assert_near(encoder(images).numpy(), expected, 1e-4)
        self.assert_near(encoder.features(images).numpy(), features, 1e-4)

    def test_leftovers_are_refused(self):
        model = encoders.backbone("resnet18")
        net = torch_networks.backbone("resnet18")
        del net.layer2[0].downsample
        with self.assertRaisesRegex(ValueError, "layer2_0_downsample_0/kernel"):
            torch_layouts.load_keras_weights(net, model)
        net = torch_networks.backbone("resnet18")
        net.layer2[0].add_module("shortcut", torch.nn.Linear(1, 1))
        with self.assertRaisesRegex(ValueError, "layer2_0_shortcut"):
            torch_layouts.load_keras_weights(net, model)


if __name__ == "__main__":
    absltest.main()
