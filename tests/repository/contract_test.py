"""The public names that scripts elsewhere rely on, each called as promised.

A test that fails here is a break for users. More keywords may be added.
"""

import importlib
import inspect
import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.published import PublishedTestCase, needs_torch
from helpers.runs import pictures

import seed_tf

try:
    from helpers import torch_layouts
except ImportError:
    torch_layouts = None

COMMANDS = (
    "advise",
    "cache",
    "convert",
    "detect",
    "distill",
    "evaluate",
    "export",
    "pretrain",
    "quickstart",
    "report",
    "search",
)


def network(seed=0):
    """A backbone of a few weights."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(6, 3, strides=4, activation="relu"),
        ]
    )


def encoder(seed=0):
    return seed_tf.Encoder(network(seed), embedding_dim=8)


def some_images(count=8, size=16):
    shape = count, size, size, 3
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def unit_vectors(count, dim=8, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")


class ContractTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.folder = pathlib.Path(self.enterContext(folder))

    def check_defaults(self, function, **defaults):
        if inspect.isclass(function):
            function = function.__init__
        parameters = inspect.signature(function).parameters
        for name, default in defaults.items():
            self.assertEqual(parameters[name].default, default, name)
            kind = parameters[name].kind
            self.assertEqual(kind, inspect.Parameter.KEYWORD_ONLY, name)

    def test_encoder(self):
        model = seed_tf.Encoder(network())
        self.assertEqual(model(some_images(2)).shape, (2, 128))
        model = seed_tf.Encoder(
            network(), embedding_dim=8, head="mlp", hidden_dim=12
        )
        self.assertEqual(model(some_images(2)).shape, (2, 8))
        self.assertEqual(model.features(some_images(2)).shape, (2, 6))
        self.check_defaults(
            seed_tf.Encoder, embedding_dim=None, head="mlp", hidden_dim=None
        )

    def test_backbone(self):
        model = seed_tf.backbone("resnet18", stem="imagenet")
        self.assertEqual(model.output_shape[-1], 512)
        self.check_defaults(seed_tf.backbone, stem="imagenet")

    def test_embedding_queue(self):
        queue = seed_tf.EmbeddingQueue(8, 4)
        self.assertEqual(queue.embeddings.shape, (8, 4))
        queue.enqueue(unit_vectors(6, 4))
        self.assertEqual(int(queue.enqueued), 6)
        self.assertEqual(int(queue.cursor), 6)
        self.assertAlmostEqual(float(queue.filled), 6 / 8)

    def test_similarity_distillation(self):
        loss = seed_tf.losses.similarity_distillation(
            unit_vectors(4),
            unit_vectors(4, seed=1),
            unit_vectors(16, seed=2),
            student_temperature=0.2,
            teacher_temperature=0.01,
        )
        self.assertEqual(loss.shape, (4,))
        self.check_defaults(
            seed_tf.losses.similarity_distillation,
            student_temperature=0.2,
            teacher_temperature=0.01,
        )

    def test_info_nce(self):
        loss = seed_tf.losses.info_nce(
            unit_vectors(4),
            unit_vectors(4, seed=1),
            unit_vectors(16, seed=2),
            temperature=0.2,
        )
        self.assertEqual(loss.shape, (4,))
        self.check_defaults(seed_tf.losses.info_nce, temperature=0.2)

    def test_seed(self):
        views = seed_tf.views.moco_v2(size=16)
        student, teacher = encoder(0), encoder(1)
        model = seed_tf.SEED(student=student, teacher=teacher, views=views)
        self.check_defaults(
            seed_tf.SEED,
            queue_size=65536,
            student_temperature=0.2,
            teacher_temperature=0.01,
        )
        with self.assertRaisesRegex(TypeError, "student="):
            seed_tf.SEED(student, teacher, views=views)
        model = seed_tf.SEED(
            student=student,
            teacher=teacher,
            views=views,
            queue_size=16,
            student_temperature=0.2,
            teacher_temperature=0.01,
        )
        model.compile(seed_tf.training.SGD(0.03))
        data = tf.data.Dataset.from_tensors(some_images(4))
        history = model.fit(data, verbose=0).history
        self.assertTrue(np.isfinite(history["loss"]).all())

    def test_moco(self):
        model = seed_tf.MoCo(
            encoder(),
            views=seed_tf.views.moco_v2(16),
            queue_size=16,
            temperature=0.2,
            momentum=0.999,
        )
        model.compile(
            seed_tf.training.SGD(0.03, momentum=0.9, weight_decay=1e-4)
        )
        data = tf.data.Dataset.from_tensors(some_images(16))
        history = model.fit(data, verbose=0).history
        self.assertTrue(np.isfinite(history["loss"]).all())
        self.check_defaults(
            seed_tf.MoCo, queue_size=65536, temperature=0.2, momentum=0.999
        )

    @parameterized.parameters("moco_v2", "moco_v1", "simclr", "swav")
    def test_views(self, name):
        function = getattr(seed_tf.views, name)
        size = inspect.signature(function).parameters["size"]
        self.assertEqual(size.default, 224)
        function(size=16)

    def test_multi_crop(self):
        global_view, small_view = seed_tf.views.swav(32), seed_tf.views.swav(16)
        seed_tf.views.multi_crop(global_view, small_view, num_small=6)
        seed_tf.views.multi_crop(global_view, small_view)

    def test_checkpoints(self):
        path = str(self.folder / "encoder.keras")
        encoder().save(path)
        model = seed_tf.checkpoints.load_encoder(path, source="auto")
        self.assertIsInstance(model, seed_tf.Encoder)
        model = seed_tf.checkpoints.load_teacher(path)
        self.assertIsInstance(model, seed_tf.Encoder)

    def test_evaluation(self):
        rows = unit_vectors(40), np.arange(40) % 2
        train = test = rows
        seed_tf.evaluation.knn(train, test, k=10)
        seed_tf.evaluation.linear_probe(train, test, epochs=1)
        images = some_images(16), np.arange(16) % 2
        data = tf.data.Dataset.from_tensor_slices(images).batch(8)
        seed_tf.evaluation.fine_tune(
            encoder(), data, data, num_classes=2, epochs=1
        )
        self.assertTrue(callable(seed_tf.evaluation.evaluate))

    @pytest.mark.slow
    def test_saved_model(self):
        path = str(self.folder / "model")
        trained = encoder()
        trained.image_size = 16
        seed_tf.export.saved_model(trained, path)
        seed_tf.export.saved_model(trained, path, image_size=32)
        self.assertCountEqual(os.listdir(path), ["1", "2"])

    def test_litert_and_onnx(self):
        images = some_images()
        path = str(self.folder / "model.tflite")
        seed_tf.export.litert(encoder(), path, images=images)
        path = str(self.folder / "model.onnx")
        seed_tf.export.onnx(encoder(), path, images=images)

    def test_datasets(self):
        pictures(str(self.folder / "photos"), 4)
        images = seed_tf.datasets.load(
            "folder",
            data_dir=str(self.folder / "photos"),
            image_size=16,
            batch_size=4,
        )
        self.assertEqual(next(iter(images)).shape, (4, 16, 16, 3))

    @parameterized.parameters("recipes", "view_cache", "search")
    def test_modules(self, name):
        self.assertEqual(getattr(seed_tf, name).__name__, f"seed_tf.{name}")
        self.assertIn(name, seed_tf.__all__)

    @parameterized.parameters("distill", "pretrain")
    def test_runs(self, name):
        """See tests/runs_test.py for a whole run."""
        with self.assertRaisesRegex(ValueError, "`output` must be given"):
            getattr(seed_tf, name)(data="photos", epochs=1)


@needs_torch
class PublishedTest(PublishedTestCase):
    def test_load_student(self):
        net = self.network("resnet18", "mlp", width=8)
        self.save(torch_layouts.seed_file(net))
        encoder = seed_tf.checkpoints.load_student(self.path, head=False)
        self.assertEqual(encoder.features(some_images(2, 32)).shape[0], 2)
        self.assertIsNone(encoder.head)
        teacher = seed_tf.checkpoints.load_encoder(self.path)
        self.assertIsInstance(teacher, seed_tf.Encoder)


class CommandsTest(parameterized.TestCase):
    @parameterized.parameters(*COMMANDS)
    def test_launcher(self, name):
        """python -m experiments.<name> exists, and so does its command."""
        self.assertTrue(importlib.util.find_spec(f"experiments.{name}"))
        self.assertTrue(importlib.util.find_spec(f"seed_tf.cli.{name}"))

    def test_help_lists_the_commands(self):
        """What `seed-tf` runs is the same."""
        result = subprocess.run(
            [sys.executable, "-m", "seed_tf", "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        for name in COMMANDS:
            self.assertRegex(result.stdout, rf"(?m)^\s+{name}\s+\w")


if __name__ == "__main__":
    absltest.main()
