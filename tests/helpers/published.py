"""Published networks with random weights, and what compares them with ours."""

import os
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

import seed_tf

try:
    import torch
    from helpers import torch_layouts
except ImportError:
    torch = None

needs_torch = absltest.skipIf(
    torch is None, "needs PyTorch: pip install seed_tf[torch]"
)


def random_images(batch, size, seed=0):
    """uint8 images with structure at every scale, none like another."""
    rng = np.random.default_rng(seed)
    images = np.zeros((batch, size, size, 3))
    for cell in (1, 4, 16):
        side = -(-size // cell)
        cells = rng.normal(0, 40, (batch, side, side, 3))
        images += cells.repeat(cell, 1).repeat(cell, 2)[:, :size, :size]
    return np.clip(images + 128, 0, 255).astype("uint8")


def normalised(images):
    """What torchvision's ToTensor and Normalize make of images."""
    mean = np.array([0.485, 0.456, 0.406], "float32")
    std = np.array([0.229, 0.224, 0.225], "float32")
    return (images / np.float32(255) - mean) / std


def as_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2))


def tiny_encoder():
    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)]
    )
    return seed_tf.Encoder(backbone, embedding_dim=8)


def pixels(images):
    """`normalised`, rounded as the encoder's own normalisation is.

    Through networks as chaotic as random ones another rounding would show.
    """
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    scale, offset = (1 / (255 * std)).astype("f4"), (-mean / std).astype("f4")
    values = images * scale + offset
    np.testing.assert_allclose(values, normalised(images), atol=1e-6)
    return values


class PublishedTestCase(parameterized.TestCase):
    """What the classes share that compare with PyTorch."""

    def setUp(self):
        super().setUp()
        keras.utils.clear_session(free_memory=True)
        self.addCleanup(self.set_precision, "float32")
        self.path = os.path.join(self.create_tempdir(), "checkpoint.pth.tar")
        # What is loaded does not depend on what was there, and this is fast.
        for name in ("RandomNormal", "RandomUniform"):
            self.enter_context(
                mock.patch.object(
                    getattr(keras.initializers, name),
                    "__call__",
                    lambda self, shape, dtype=None: keras.ops.zeros(shape),
                )
            )

    def set_precision(self, dtype):
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)

    def network(self, name, head, **kwargs):
        images = as_torch(normalised(random_images(4, 64, seed=1)))
        return torch_layouts.Network(name, head, images, **kwargs)

    def save(self, contents, **kwargs):
        torch.save(contents, self.path, **kwargs)
        return self.path

    def assert_near(self, actual, expected, tolerance=1e-4):
        """Relative to the spread over images, which a constant would miss."""
        actual, expected = np.asarray(actual), np.asarray(expected)
        self.assertEqual(actual.shape, expected.shape)
        scale = np.linalg.norm(expected - expected.mean(0))
        self.assertGreater(scale, 0.005 * np.linalg.norm(expected))
        error = np.linalg.norm(actual - expected) / scale
        self.assertLess(error, tolerance)

    def assert_same(self, encoder, net, sizes=(224, 96), tolerance=1e-4):
        """Features and embeddings are the network's."""
        dtype = next(net.parameters()).dtype
        for size in sizes:
            images = random_images(2, size)
            with torch.inference_mode():
                x = as_torch(pixels(images)).to(dtype)
                features = net.backbone(x)
                embeddings = net.head(features)
            if encoder.head is None:
                embeddings = features
            self.assert_near(encoder.features(images), features, tolerance)
            self.assert_near(encoder(images), embeddings, tolerance)


class SimCLR:
    """ResNet-50 as google-research/simclr builds and saves it.

    Written from its description: variables are numbered as they are made, a
    projection before the block's own convolutions; strided convolutions are
    padded by (k - 1) // 2 before and k - 1 less that after, the max-pooling by
    "SAME"; BatchNorm has epsilon 1e-5; images are in [0, 1].
    """

    def __init__(self, images, width=64):
        self.random = np.random.default_rng(0)
        self.width, self.variables = width, {}
        self.features(images, training=True)

    def features(self, images, training=False):
        self.training, self.convs, self.norms = training, 0, 0
        x = tf.cast(images * np.float32(1 / 255), keras.config.floatx())
        x = tf.nn.relu(self.norm(self.conv(x, self.width, 7, 2)))
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        for stage, depth in enumerate((3, 4, 6, 3)):
            width = self.width * 2**stage
            for i in range(depth):
                stride = 2 if stage and not i else 1
                shortcut = x
                if i == 0:
                    shortcut = self.norm(self.conv(x, 4 * width, 1, stride))
                x = tf.nn.relu(self.norm(self.conv(x, width, 1, 1)))
                x = tf.nn.relu(self.norm(self.conv(x, width, 3, stride)))
                x = self.norm(self.conv(x, 4 * width, 1, 1)) + shortcut
                x = tf.nn.relu(x)
        return tf.reduce_mean(x, (1, 2))

    def conv(self, x, filters, size, stride):
        name = self.name("conv2d", self.convs)
        self.convs += 1
        if self.training:
            shape = size, size, x.shape[-1], filters
            kernel = self.random.normal(0, 1, shape) / np.prod(shape[:3]) ** 0.5
            self.variables[f"{name}/kernel"] = kernel.astype("f4")
        if stride > 1:
            before = (size - 1) // 2
            pads = [before, size - 1 - before]
            x = tf.pad(x, [[0, 0], pads, pads, [0, 0]])
        kernel = tf.cast(self.variables[f"{name}/kernel"], x.dtype)
        return tf.nn.conv2d(
            x, kernel, stride, "VALID" if stride > 1 else "SAME"
        )

    def norm(self, x):
        name = self.name("batch_normalization", self.norms)
        self.norms += 1
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        if self.training:
            c, random = x.shape[-1], self.random
            mean, variance = (v.numpy() for v in tf.nn.moments(x, (0, 1, 2)))
            mean += (random.random(c) - 0.5) * variance**0.5
            values = (
                random.normal(1, 0.2, c),
                random.normal(0, 0.2, c),
                mean,
                variance * (0.5 + random.random(c)),
            )
            for part, value in zip(parts, values, strict=True):
                self.variables[f"{name}/{part}"] = value.astype("f4")
        gamma, beta, mean, variance = (
            tf.cast(self.variables[f"{name}/{part}"], x.dtype) for part in parts
        )
        return (x - mean) * gamma / (variance + 1e-5) ** 0.5 + beta

    @staticmethod
    def name(kind, number):
        return f"base_model/{kind}{f'_{number}' if number else ''}"

    def save(self, prefix, **others):
        dense = "head_supervised/linear_layer/dense"
        variables = self.variables | {
            "global_step": np.int64(225206),
            f"{dense}/kernel": np.zeros((self.width * 32, 10), "f4"),
            f"{dense}/bias": np.zeros(10, "f4"),
            "base_model/conv2d/kernel/Momentum": np.zeros(3, "f4"),
            **others,
        }
        names = list(variables)
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[variables[name] for name in names],
        )
