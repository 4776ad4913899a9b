"""Encoders of KerasHub, keras.applications and users, as teachers."""

import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers import hugging_face
from helpers.devices import two_replicas
from helpers.hugging_face import vector, write
from helpers.runs import command, pictures

import seed_tf
from seed_tf import teachers
from seed_tf.encoders.tokens import PoolTokens, Resize
from seed_tf.teachers import applications


def noise(size, n=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)


class HuggingFaceTest(parameterized.TestCase):
    def check(self, name, size=28):
        """A folder gives PyTorch's vector, by its own normalisation."""
        folder, model = write(name, self.create_tempdir().full_path)
        encoder = teachers.load_encoder(f"keras_hub:{folder}", image_size=size)
        images = noise(size)
        expected = vector(name, model, images)
        np.testing.assert_allclose(encoder(images), expected, atol=1e-4)
        self.assertEqual(encoder.image_size, size)
        return encoder, expected

    @parameterized.parameters("dinov2_with_registers", "clip", "siglip")
    def test_gives_the_vector_of_pytorch(self, name):
        self.check(name)

    @parameterized.parameters(
        *("dinov2", "dinov3", "vit", "vit_classifier"),
        *("clip_vision", "metaclip_2"),
    )
    @pytest.mark.slow
    def test_gives_the_vector_of_pytorch_too(self, name):
        self.check(name)

    @parameterized.parameters(
        ("dinov2", 42), ("dinov2_with_registers", 56), ("dinov3", 56)
    )
    def test_position_embeddings_are_interpolated(self, name, size):
        self.check(name, size)

    def test_other_sizes_are_resized(self):
        encoder, _ = self.check("clip_vision")
        smaller = noise(14)
        larger = tf.image.resize(
            tf.cast(smaller, tf.float32), (28, 28), "bilinear", antialias=True
        )
        np.testing.assert_allclose(encoder(smaller), encoder(larger), atol=1e-3)
        folder, _ = write("dinov2", self.create_tempdir().full_path)
        nearest = teachers.load_encoder(f"keras_hub:{folder}", image_size=32)
        self.assertEqual(nearest.image_size, 28)

    def test_poolings(self):
        folder, model = write(
            "dinov2_with_registers", self.create_tempdir().full_path
        )
        images = noise(28)
        tokens = {}
        for pooling in ("class", "mean", "class_mean"):
            encoder = teachers.load_encoder(
                f"keras_hub:{folder}", image_size=28, pooling=pooling
            )
            tokens[pooling] = np.asarray(encoder(images))
        mean, std = map(np.float32, hugging_face.ODD)
        pixels = (np.float32(images) / 255 - mean) / std
        torch = hugging_face.torch
        with torch.no_grad():
            pixels = torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
            patches = model(pixels).last_hidden_state[:, 4:].mean(1)
        np.testing.assert_allclose(tokens["mean"], patches, atol=1e-4)
        np.testing.assert_array_equal(
            tokens["class_mean"], np.hstack([tokens["class"], tokens["mean"]])
        )

    def test_missing_weights_and_other_models_are_refused(self):
        folder, _ = write("clip_vision", self.create_tempdir().full_path)
        (pathlib.Path(folder) / "model.safetensors").unlink()
        with self.assertRaisesRegex(ValueError, "model.safetensors"):
            teachers.load_encoder(f"keras_hub:{folder}")
        with self.assertRaisesRegex(ValueError, "KerasHub cannot load"):
            teachers.load_encoder("keras_hub:no_such_preset")


class LicenseTest(parameterized.TestCase):
    @parameterized.parameters(
        ("license: mit\n", "mit"),
        (
            "license: other\nlicense_name: dinov3-license\n"
            "license_link: https://example.org/l\n",
            "dinov3-license (https://example.org/l)",
        ),
        ("tags:\n- vision\n", None),
    )
    def test_of_a_card(self, head, expected):
        folder = self.create_tempdir()
        self.assertIsNone(teachers.license_of(f"keras_hub:{folder.full_path}"))
        text = f"---\n{head}---\nlicense: not this\n"
        folder.create_file("README.md", text)
        name = f"keras_hub:{folder.full_path}"
        self.assertEqual(teachers.license_of(name), expected)
        self.assertIsNone(teachers.license_of(folder.full_path))


class TrainingTest(parameterized.TestCase):
    """SEED from a teacher in Hugging Face's format."""

    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.path, _ = write("dinov2", self.folder)

    @parameterized.parameters(
        ("float32", False, False),
        ("mixed_bfloat16", True, False),
        ("mixed_bfloat16", False, True),
    )
    @pytest.mark.slow
    def test_trains(self, policy, xla, two_devices):
        strategy = tf.distribute.get_strategy()
        if two_devices:
            strategy = two_replicas()
        self.addCleanup(keras.config.set_dtype_policy, "float32")
        keras.config.set_dtype_policy(policy)
        with strategy.scope():
            teacher = teachers.load_encoder(f"keras_hub:{self.path}")
            self.assertEqual(teacher.image_size, 28)  # of the processor
            student = keras.Sequential(
                [
                    keras.Input((None, None, 3)),
                    keras.layers.Conv2D(8, 3, 2),
                    keras.layers.BatchNormalization(),
                ]
            )
            model = seed_tf.SEED(
                student=seed_tf.Encoder(student, embedding_dim=32),
                teacher=teacher,
                views=keras.layers.Identity(),
                queue_size=16,
            )
            model.compile(seed_tf.training.SGD(0.1), jit_compile=xla)
        before = teacher.get_weights()
        images = tf.data.Dataset.from_tensors(noise(36, 4)).repeat(4)
        losses = model.fit(images, verbose=0).history["loss"]
        self.assertTrue(np.isfinite(losses).all())
        for old, new in zip(before, teacher.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
        self.assertEmpty(model.acceleration.variables)  # no second copy
        # The targets are the teacher's embeddings, in float32.
        view = model.augment(noise(36, 4), 0)[0]
        np.testing.assert_allclose(
            model.embed_by_teacher(view), teacher(view), atol=1e-4
        )

    @pytest.mark.slow
    def test_is_saved_and_loaded_in_a_fresh_process(self):
        teacher = teachers.load_encoder(f"keras_hub:{self.path}")
        file = pathlib.Path(self.folder, "teacher.keras")
        teacher.save(file)
        code = f"""
            import keras, numpy as np, seed_tf
            images = np.arange(3 * 40 * 40).reshape(1, 40, 40, 3) % 256
            for load in (
                seed_tf.checkpoints.load_encoder,
                keras.models.load_model,
            ):
                print(*np.asarray(load({str(file)!r})(images))[0])
        """
        printed = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        images = np.arange(3 * 40 * 40).reshape(1, 40, 40, 3) % 256
        for line in printed.stdout.splitlines()[-2:]:
            loaded = [float(x) for x in line.split()]
            np.testing.assert_allclose(loaded, teacher(images)[0], atol=1e-5)


class LayersTest(absltest.TestCase):
    def test_resize_is_pillows(self):
        from PIL import Image

        images = noise(20, 1)
        for size in (12, 20, 28):
            expected = Image.fromarray(images[0]).resize(
                (size, size), Image.Resampling.BILINEAR
            )
            resized = tf.function(Resize(size), jit_compile=True)(
                tf.cast(images, tf.float32)
            )
            self.assertEqual(resized.shape, (1, size, size, 3))
            np.testing.assert_allclose(resized[0], expected, atol=1)

    def test_pooling_needs_a_class_token(self):
        for arguments in (("last",), ("class", 0)):
            with self.assertRaisesRegex(ValueError, "pooling.*prefix"):
                PoolTokens(*arguments)


class ApplicationsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("ResNet50", "resnet50"),  # BGR less a mean
        ("MobileNetV2", "mobilenet_v2"),  # [-1, 1]
        ("DenseNet121", "densenet"),  # ImageNet's mean and std
        ("ConvNeXtTiny", "convnext"),  # nothing: it normalises by itself
    )
    @pytest.mark.slow
    def test_preprocessing_is_kerass(self, name, module):
        network = applications.load(name, weights=False)
        images = noise(64, 2).astype("float32")
        module = getattr(keras.applications, module)
        expected = network.backbone
        if name == "ResNet50":  # our wrapper turns RGB to BGR
            expected = network.backbone.layers[-1]
        expected = expected(module.preprocess_input(images.copy()))
        embeddings = network.encoder(head=None)(images)
        np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-4)

    def test_a_wrong_name(self):
        with self.assertRaisesRegex(ValueError, "Did you mean .ConvNeXtBase"):
            teachers.load_encoder("keras_applications:ConvNextBase")


def maps():
    """A user's network of images in [0, 255], without pooling."""
    return keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Conv2D(5, 3, name="conv")]
    )


def words():
    return "no model"


class FunctionTest(absltest.TestCase):
    def test_maps_are_pooled(self):
        encoder = teachers.load_encoder(f"{__name__}:maps")
        self.assertEqual(encoder.feature_dim, 5)
        images = noise(16)
        network = encoder.backbone.layers[-1]
        expected = np.mean(network(images.astype("float32")), (1, 2))
        np.testing.assert_allclose(encoder(images), expected, rtol=1e-4)

    def test_wrong_functions(self):
        for name, message in (
            (f"{__name__}:words", "must return a keras.Model"),
            (f"{__name__}:nothing", "has no attribute 'nothing'"),
            ("no_module:nothing", "No module named 'no_module'"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                teachers.load_encoder(name)

    def test_names_and_paths(self):
        self.assertFalse(teachers.is_path("keras_hub:dinov2_small"))
        self.assertFalse(teachers.is_path("package.module:function"))
        self.assertTrue(teachers.is_path("runs/teacher"))
        self.assertEqual(teachers.absolute("a.b:c"), "a.b:c")
        self.assertTrue(teachers.absolute("runs").startswith("/"))


def small_student():
    """A network of a user's own, which normalises images by itself."""
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(6, 3, strides=4, activation="relu"),
        ],
        name="small_student",
    )


class StudentTest(absltest.TestCase):
    def test_networks_of_other_libraries_have_random_weights(self):
        folder, _ = write("clip_vision", self.create_tempdir().full_path)
        trained = teachers.load_encoder(f"keras_hub:{folder}")
        network = teachers.load_network(f"keras_hub:{folder}")
        student = network.encoder(embedding_dim=7)
        self.assertEqual(student(noise(28)).shape, (3, 7))
        shapes = [x.shape for x in trained.backbone.weights]
        self.assertEqual([x.shape for x in student.backbone.weights], shapes)
        self.assertGreater(
            np.std(trained.features(noise(28)) - student.features(noise(28))), 0
        )
        teachers.start_from(student, f"keras_hub:{folder}")
        np.testing.assert_array_equal(
            trained(noise(28)), student.features(noise(28))
        )

    def test_a_file_keeps_its_weights(self):
        file = str(pathlib.Path(self.create_tempdir().full_path, "a.keras"))
        first = teachers.load_network(f"{__name__}:small_student").encoder(
            embedding_dim=4
        )
        first.save(file)
        network = teachers.load_network(file)
        student = network.encoder(embedding_dim=5)
        np.testing.assert_array_equal(
            first.features(noise(16)), student.features(noise(16))
        )
        # The head, too, if it fits.
        other = teachers.load_network(f"{__name__}:small_student").encoder(
            embedding_dim=4
        )
        teachers.start_from(other, file)
        np.testing.assert_array_equal(first(noise(16)), other(noise(16)))
        with self.assertRaisesRegex(ValueError, "Expected a resnet18"):
            teachers.start_from(seed_tf.Encoder("resnet18"), file)

    def test_names(self):
        network = teachers.load_network("resnet18", stem="cifar")
        self.assertEqual(network.backbone.name, "resnet18")
        with self.assertRaisesRegex(ValueError, "Did you mean .resnet18"):
            teachers.load_network("resnet81")
        folder, _ = write("dinov2", self.create_tempdir().full_path)
        with self.assertRaisesRegex(ValueError, "can be no student"):
            teachers.load_network(f"keras_hub:{folder}")


class RunTest(absltest.TestCase):
    @pytest.mark.slow
    def test_from_a_folder_to_an_exported_student(self):
        folder = self.create_tempdir().full_path
        images = pictures(os.path.join(folder, "photos"), 24)
        teacher, _ = write("dinov2", folder)
        run = os.path.join(folder, "run")
        flags = (
            f"--data_dir={images}",
            f"--teacher=keras_hub:{teacher}",
            f"--student={__name__}:small_student",
            *("--image_size=16", "--teacher_image_size=28"),
            *("--batch_size=8", "--epochs=1", "--queue_size=16"),
        )
        printed = command("distill", *flags, f"--output={run}")
        self.assertIn("The teacher's license is apache-2.0", printed)
        student = seed_tf.checkpoints.load_encoder(run)
        self.assertEqual((student.image_size, student.embedding_dim), (16, 32))
        # A second run goes on with the student.
        start = f"--student_weights={run}"
        command("distill", *flags, start, f"--output={folder}/second")
        exported = os.path.join(folder, "exported")
        command("export", f"--encoder={run}", f"--output={exported}")
        model = tf.saved_model.load(f"{exported}/run/1")
        outputs = model.signatures["serving_default"](
            images=tf.constant(noise(16))
        )
        np.testing.assert_allclose(
            outputs["features"], student.features(noise(16)), atol=1e-4
        )
        card = pathlib.Path(exported, "run", "1", "README.md").read_text()
        self.assertRegex(card, r"teacher license +\| +apache-2.0")


if __name__ == "__main__":
    absltest.main()
