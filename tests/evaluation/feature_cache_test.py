"""Features on disk: embedded once, and anew when anything changes."""

import base64
import glob
import os
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from helpers.damage import flips

import seed_tf
from seed_tf import evaluation
from seed_tf.evaluation import LabelledImages
from seed_tf.evaluation.feature_cache import _load
from seed_tf.evaluation.fine_tune import training_view


def tiny_encoder(seed=0):
    keras.utils.set_random_seed(seed)
    return seed_tf.Encoder(
        keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, 2)]
        ),
        embedding_dim=6,
    )


def class_folders(root, split="train", sizes=(5, 3), seed=0):
    """Class folders of random pictures; returns the root."""
    rng = np.random.default_rng(seed)
    for label, size in enumerate(sizes):
        folder = os.path.join(root, split, f"class{label}")
        os.makedirs(folder, exist_ok=True)
        for i in range(size):
            image = rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)
            path = os.path.join(folder, f"{label}_{i:02}.png")
            keras.utils.save_img(path, image, scale=False)
    return root


class Counter:
    """Counts what a cache is told: one line per pass over images."""

    def __init__(self):
        self.passes = 0

    def __call__(self, text):
        assert "Embedding" in text
        self.passes += 1


def convolutions(stride=1, dtype="float32", names=(None, None)):
    """An encoder of the same weights, whatever the arguments."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(
        4, 3, stride, "same", dtype=dtype, name=names[0], trainable=False
    )(inputs)
    y = keras.layers.Conv2D(4, 3, padding="same", name=names[1])(x)
    encoder = seed_tf.Encoder(
        keras.Model(inputs, keras.layers.Add()([x, y])), head=None
    )
    rng = np.random.default_rng(0)
    encoder.set_weights(
        [rng.normal(size=w.shape) for w in encoder.get_weights()]
    )
    return encoder


class FeatureCacheTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.data = class_folders(self.create_tempdir().full_path)
        self.images = LabelledImages("folder", "train", self.data, 16, 3)
        self.counter = Counter()

    def cache(self):
        return evaluation.FeatureCache(self.folder, log=self.counter)

    @parameterized.parameters("features", "embeddings")
    def test_equals_embed(self, output):
        encoder = tiny_encoder()
        features, labels = self.cache().features(encoder, self.images, output)
        expected = evaluation.embed(encoder, self.images.load(), output=output)
        np.testing.assert_allclose(features, expected[0], atol=1e-5)
        np.testing.assert_array_equal(labels, [0] * 5 + [1] * 3)
        self.assertEqual(features.dtype, np.float32)
        self.assertIsInstance(features, np.memmap)

    def test_an_image_is_seen_once(self):
        encoder = tiny_encoder()
        seen, plain = [], encoder.features

        def count(n):
            seen.append(int(n))
            return np.int64(0)

        def counted(images, training=False):
            n = tf.numpy_function(count, [tf.shape(images)[0]], tf.int64)
            with tf.control_dependencies([n]):
                return plain(tf.identity(images), training=training)

        encoder.features = counted
        cache = self.cache()
        for output in ("features", "embeddings", "features"):
            cache.features(encoder, self.images, output)
        self.cache().features(encoder, self.images, "embeddings")
        self.assertEqual(seen, [3, 3, 2])
        self.assertEqual(self.counter.passes, 1)

    def test_another_encoder_or_other_images_are_embedded(self):
        cache, first = self.cache(), tiny_encoder()
        before, _ = cache.features(first, self.images)
        other, _ = cache.features(tiny_encoder(1), self.images)
        self.assertFalse(np.allclose(before, other))
        normalised = seed_tf.Encoder(
            first.backbone, embedding_dim=6, mean=(0.0, 0.0, 0.0)
        )
        normalised.head.set_weights(first.head.get_weights())
        other, _ = cache.features(normalised, self.images)
        self.assertFalse(np.allclose(before, other))
        larger = LabelledImages("folder", "train", self.data, 20, 3)
        cache.features(first, larger)
        self.assertEqual(self.counter.passes, 4)

    @parameterized.parameters({"stride": 2}, {"dtype": "mixed_bfloat16"})
    def test_another_network_of_the_same_weights(self, **change):
        first, other = convolutions(), convolutions(**change)
        for a, b in zip(first.weights, other.weights, strict=True):
            np.testing.assert_array_equal(a, b)
        cache = self.cache()
        before, _ = cache.features(first, self.images)
        after, _ = cache.features(other, self.images)
        expected = evaluation.embed(other, self.images.load())[0]
        np.testing.assert_allclose(after, expected, atol=1e-5)
        self.assertFalse(np.allclose(before, after, atol=1e-5))

    def test_the_same_network_whatever_its_layers_numbers(self):
        cache = self.cache()
        cache.features(convolutions(), self.images)
        same = convolutions()  # Keras goes on with its numbers
        cache.features(same, self.images)
        same.backbone.trainable = False
        cache.features(same, self.images)
        self.assertEqual(self.counter.passes, 1)
        named = convolutions(names=("first", "second"))
        cache.features(named, self.images)
        self.assertEqual(self.counter.passes, 2)

    def test_a_model_without_a_configuration(self):
        class Shifted(keras.Model):
            def __init__(self, by):
                super().__init__()
                self.by = by

            def call(self, images):
                return keras.ops.mean(images, (1, 2)) + self.by

            def get_config(self):
                raise NotImplementedError

        cache, first = self.cache(), Shifted(0.0)
        before, _ = cache.features(first, self.images)
        cache.features(first, self.images)
        self.assertEqual(self.counter.passes, 1)
        after, _ = cache.features(Shifted(1.0), self.images)
        np.testing.assert_allclose(after, before + 1, rtol=1e-5)

    @pytest.mark.slow
    def test_another_process_finds_it(self):
        path = os.path.join(self.create_tempdir().full_path, "tiny.keras")
        convolutions().save(path)
        program = (
            "import sys, keras, seed_tf\n"
            "from seed_tf import evaluation\n"
            "keras.layers.Conv2D(1, 1)\n"
            "folder, data, path = sys.argv[1:]\n"
            "images = evaluation.LabelledImages('folder', 'train', data, 16)\n"
            "cache = evaluation.FeatureCache(folder, log=print)\n"
            "cache.features(keras.saving.load_model(path), images)\n"
        )
        said = subprocess.run(
            [sys.executable, "-c", program, self.folder, self.data, path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        self.assertIn("Embedding", said)
        encoder = keras.saving.load_model(path)
        features, _ = self.cache().features(encoder, self.images)
        self.assertEqual(self.counter.passes, 0)
        expected = evaluation.embed(encoder, self.images.load())[0]
        np.testing.assert_allclose(features, expected, atol=1e-4)

    def test_another_process_writes_the_same(self):
        encoder = tiny_encoder()

        def meanwhile(text):
            self.counter(text)
            self.cache().features(encoder, self.images)

        cache = evaluation.FeatureCache(self.folder, log=meanwhile)
        features, _ = cache.features(encoder, self.images)
        self.assertEqual(self.counter.passes, 2)
        expected = evaluation.embed(encoder, self.images.load())[0]
        np.testing.assert_allclose(features, expected, atol=1e-5)
        self.assertLen(os.listdir(self.folder), 1)

    def test_labels_are_read_from_an_entry(self):
        self.cache().features(tiny_encoder(), self.images)
        again = LabelledImages("folder", "train", self.data, 16)
        labels = self.cache().labels(again)
        np.testing.assert_array_equal(labels, [0] * 5 + [1] * 3)
        # Private: what is cached there was read from the images.
        self.assertNotIn("labels", vars(again._source))
        (path,) = glob.glob(os.path.join(self.folder, "*", "labels.npy"))
        os.truncate(path, 10)
        labels = self.cache().labels(again)
        np.testing.assert_array_equal(labels, [0] * 5 + [1] * 3)
        self.assertIn("labels", vars(again._source))

    def test_changed_files_are_embedded(self):
        encoder = tiny_encoder()
        self.cache().features(encoder, self.images)
        # The batch size alone changes nothing.
        again = LabelledImages("folder", "train", self.data, 16, 5)
        self.cache().features(encoder, again)
        self.assertEqual(self.counter.passes, 1)
        path = os.path.join(self.data, "train", "class0", "0_01.png")
        os.utime(path, ns=(1, 1))
        touched = LabelledImages("folder", "train", self.data, 16, 3)
        self.cache().features(encoder, touched)
        self.assertEqual(self.counter.passes, 2)
        os.rename(path, path.replace("0_01", "0_x"))
        renamed = LabelledImages("folder", "train", self.data, 16, 3)
        self.cache().features(encoder, renamed)
        self.assertEqual(self.counter.passes, 3)

    @parameterized.parameters(
        "truncated", "flipped", "no_labels", "no_entry", "other_json"
    )
    @pytest.mark.slow
    def test_damage_is_computed_anew(self, damage):
        encoder = tiny_encoder()
        expected = np.array(self.cache().features(encoder, self.images)[0])
        (entry,) = glob.glob(os.path.join(self.folder, "*"))
        path = os.path.join(entry, "features.npy")
        if damage == "truncated":
            os.truncate(path, os.path.getsize(path) - 5)
        elif damage == "flipped":
            with open(path, "r+b") as file:
                file.seek(-2, os.SEEK_END)
                byte = file.read(1)[0]
                file.seek(-2, os.SEEK_END)
                file.write(bytes([byte ^ 1]))
        elif damage == "other_json":
            with open(os.path.join(entry, "entry.json"), "w") as file:
                file.write("[]")
        else:
            name = "labels.npy" if damage == "no_labels" else "entry.json"
            os.remove(os.path.join(entry, name))
        with self.assertLogs(level="WARNING") as logs:
            features, _ = self.cache().features(encoder, self.images)
        self.assertIn("Computing the features again", logs.output[0])
        self.assertEqual(self.counter.passes, 2)
        np.testing.assert_array_equal(features, expected)

    def test_a_flipped_bit_anywhere_is_found(self):
        encoder = tiny_encoder()
        expected, _ = self.cache().features(encoder, self.images)
        expected = np.array(expected)
        (entry,) = glob.glob(os.path.join(self.folder, "*"))
        names = sorted(os.listdir(entry))
        self.assertEqual(names, ["entry.json", "features.npy", "labels.npy"])
        for name in names:
            path = pathlib.Path(entry, name)
            whole = path.read_bytes()
            for flipped in flips(whole, 20):
                path.write_bytes(flipped)
                try:
                    features = _load(entry, "features")
                    np.testing.assert_array_equal(features, expected)
                    labels = _load(entry, "labels")
                    np.testing.assert_array_equal(labels, self.images.labels)
                    self.assertEqual(name, "entry.json")
                except ValueError as error:
                    self.assertIn(f"{str(path)!r} is damaged", str(error))
            path.write_bytes(whole)

    def test_a_failure_leaves_nothing(self):
        encoder = tiny_encoder()
        weight = encoder.weights[0]
        weight.assign(weight * np.nan)
        with self.assertRaisesRegex(ValueError, "must be finite"):
            self.cache().features(encoder, self.images)
        self.assertEqual(os.listdir(self.folder), [])

    def test_without_a_folder_nothing_is_left(self):
        cache = evaluation.FeatureCache(log=self.counter)
        features, _ = cache.features(tiny_encoder(), self.images)
        folder = os.path.dirname(os.path.dirname(features.filename))
        self.assertTrue(os.path.isdir(folder))
        del cache
        self.assertFalse(os.path.exists(folder))

    def test_any_model(self):
        model = keras.Sequential(
            [
                keras.Input((None, None, 3)),
                keras.layers.GlobalAveragePooling2D(),
            ]
        )
        cache = self.cache()
        both = [
            cache.features(model, self.images, output)[0]
            for output in ("features", "embeddings")
        ]
        np.testing.assert_array_equal(*both)
        self.assertEqual(self.counter.passes, 1)


class LabelledImagesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.data = class_folders(
            self.create_tempdir().full_path, sizes=(30, 10, 20)
        )
        self.images = LabelledImages("folder", "train", self.data, 16)
        self.subset = os.path.join(self.create_tempdir().full_path, "subset")

    def test_labels_and_names(self):
        labels = np.concatenate([y for _, y in self.images.load()])
        np.testing.assert_array_equal(self.images.labels, labels)
        names = {0: "class0", 1: "class1", 2: "class2"}
        self.assertEqual(self.images.class_names, names)
        self.assertLen(self.images, 60)

    def test_fraction_keeps_files_and_numbers(self):
        some = self.images.fraction(0.1, self.subset)
        np.testing.assert_array_equal(np.bincount(some.labels), [3, 1, 2])
        same = self.images.fraction(0.1, self.subset + "2")
        other = self.images.fraction(0.1, self.subset + "3", seed=1)
        pixels = [
            np.concatenate([x for x, _ in images.load()])
            for images in (some, same, other)
        ]
        np.testing.assert_array_equal(pixels[0], pixels[1])
        self.assertFalse(np.array_equal(pixels[0], pixels[2]))
        everything = {
            x.tobytes()
            for batch, _ in self.images.load()
            for x in batch.numpy()
        }
        self.assertLessEqual({x.tobytes() for x in pixels[0]}, everything)
        self.assertIs(self.images.fraction(1, self.subset), self.images)

    def test_fraction_of_images_in_memory(self):
        digits = LabelledImages("digits", "train", image_size=16)
        some = digits.fraction(0.05, self.subset)
        self.assertLen(np.unique(some.labels), 10)
        everything = {
            x.tobytes() for batch, _ in digits.load() for x in batch.numpy()
        }
        chosen = {
            x.tobytes() for batch, _ in some.load() for x in batch.numpy()
        }
        self.assertLen(chosen, len(some))
        self.assertLessEqual(chosen, everything)

    @parameterized.parameters("tsv", "tfds")
    @pytest.mark.slow
    def test_other_sources(self, source):
        root = self.create_tempdir().full_path
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
        labels = np.arange(40) % 4
        if source == "tsv":
            name = "tsv"
            with open(os.path.join(root, "train.tsv"), "wb") as file:
                for image, label in zip(images, labels, strict=True):
                    data = tf.io.encode_png(image).numpy()
                    data = base64.b64encode(data)
                    file.write(b"k\t%d\t%s\n" % (label, data))
        else:
            name = "noise"
            tfds.dataset_builders.store_as_tfds_dataset(
                name=name,
                version="1.0.0",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="png"),
                        "label": tfds.features.ClassLabel(num_classes=4),
                    }
                ),
                split_datasets={
                    "train": [
                        (i, {"image": image, "label": i % 4})
                        for i, image in enumerate(images)
                    ]
                },
                data_dir=root,
                disable_shuffling=True,
            )
        data = LabelledImages(name, "train", root, 14, 7)
        np.testing.assert_array_equal(data.labels, labels)
        self.assertEqual(data.num_classes, 4)
        names = {} if source == "tsv" else {i: str(i) for i in range(4)}
        self.assertEqual(data.class_names, names)
        self.assertLen(data.fingerprint, 16)
        sizes = LabelledImages(name, "train", root, 12, 7)
        self.assertNotEqual(data.fingerprint, sizes.fingerprint)
        some = data.fraction(0.3, self.subset)
        np.testing.assert_array_equal(some.labels, np.repeat(np.arange(4), 3))
        chosen = np.sort(evaluation.label_fraction(labels, 0.3))
        chosen = chosen[np.argsort(labels[chosen], kind="stable")]
        np.testing.assert_array_equal(some.pick(range(12)), data.pick(chosen))

    def test_fraction_of_a_class_without_examples(self):
        with self.assertRaisesRegex(ValueError, "0.04, 10 examples of class 1"):
            self.images.fraction(0.04, self.subset)

    @parameterized.parameters(0, -1, 1.5)
    def test_fractions_that_are_none(self, fraction):
        with self.assertRaisesRegex(ValueError, "`fraction`"):
            self.images.fraction(fraction, self.subset)

    def test_listed(self):
        path = self.create_tempfile(
            content="0_03.png\n2_07.png\n\n1_00.png\n"
        ).full_path
        listed = self.images.listed(path, self.subset)
        np.testing.assert_array_equal(listed.labels, [0, 1, 2])
        whole = self.images.pick([3, 30, 47])
        np.testing.assert_array_equal(listed.pick([0, 1, 2]), whole)

    def test_listed_errors(self):
        def listed(content, images=self.images):
            path = self.create_tempfile(content=content).full_path
            return images.listed(path, self.subset)

        with self.assertRaisesRegex(ValueError, "1 of 2 names.*nothing.png"):
            listed("0_03.png\nnothing.png")
        with self.assertRaisesRegex(ValueError, "no image of 2 classes"):
            listed("0_03.png")
        digits = LabelledImages("digits", "train", image_size=16)
        with self.assertRaisesRegex(ValueError, "needs a folder.*digits"):
            listed("0_03.png", digits)

    def test_training_batches(self):
        view = training_view(16)
        batches, steps = self.images.training(view, epochs=2, batch_size=25)
        self.assertEqual(steps, 2)
        shapes = [x.shape for x, _ in batches]
        self.assertEqual(shapes, [(25, 16, 16, 3)] * 4)
        again, _ = self.images.training(view, epochs=2, batch_size=25)
        for (x, y), (a, b) in zip(batches, again, strict=True):
            np.testing.assert_array_equal(x, a)
            np.testing.assert_array_equal(y, b)
        _, steps = self.images.training(view, epochs=2, batch_size=100)
        self.assertEqual(steps, 1)

    @pytest.mark.slow
    def test_training_on_a_part(self):
        view, numbers = training_view(16), []
        for subset, size in (("train", 52), ("held_out", 8)):
            batches, steps = self.images.training(
                view,
                epochs=2,
                batch_size=25,
                drop_remainder=False,
                held_out=8,
                subset=subset,
            )
            numbers.append(sum(len(y) for _, y in batches))
            self.assertEqual(numbers[-1], 2 * size)
            self.assertEqual(steps, -(-size // 25))

    def test_download(self):
        images = LabelledImages("cifar10", "train", self.data, download=True)
        with (
            mock.patch.object(
                tfds.core.DatasetBuilder,
                "download_and_prepare",
                side_effect=OSError("no network"),
            ),
            self.assertRaisesRegex(OSError, "no network"),
        ):
            images.load()

    def test_unlabelled(self):
        loose = os.path.join(self.data, "train", "loose.png")
        shutil.copy(
            os.path.join(self.data, "train", "class0", "0_00.png"), loose
        )
        images = LabelledImages("folder", "train", self.data, 16)
        for ask in (images.load, lambda: images.labels):
            with self.assertRaisesRegex(ValueError, "1 of 61.*no class folder"):
                ask()


if __name__ == "__main__":
    absltest.main()
