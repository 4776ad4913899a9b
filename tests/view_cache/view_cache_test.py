"""Students trained from a teacher's stored embeddings, against the live one."""

import base64
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from helpers.damage import flips
from helpers.devices import two_logical_cpus, two_replicas
from helpers.runs import (
    command,
    pictures,
)

import seed_tf
from seed_tf import (
    datasets,
    random,
    view_cache,
)
from seed_tf.datasets import sources
from seed_tf.io import locks, progress
from seed_tf.view_cache import building, cache
from seed_tf.view_cache.cache import FixedViews, ViewCache

two_logical_cpus()
ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE, D = 8, 16


def tower(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Rescaling(1 / 255.0),
            keras.layers.Conv2D(6, 3, strides=2),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(D),
        ]
    )


def views(size=SIZE, p=0.5):
    """Views that cost little to compile."""
    return seed_tf.views.View(
        [
            seed_tf.views.RandomResizedCrop(size),
            seed_tf.views.RandomHorizontalFlip(p=p),
        ]
    )


def small_patches():
    return seed_tf.views.multi_crop(views(), views(6), num_small=2)


def model(given=None, teacher=None, **options):
    given = given or views()
    options = {"queue_size": 60, "teacher_precision": "float32", **options}
    teacher = teacher or tower(1)
    result = seed_tf.SEED(
        student=tower(2), teacher=teacher, views=given, **options
    )
    result.compile(seed_tf.training.SGD(0.1))
    return result


def build(path, data_dir, *, teacher=None, given=None, log=None, **options):
    """A cache of a few pictures."""
    options = {
        "views_per_image": 3,
        "batch_size": 12,
        "teacher_precision": "float32",
        **options,
    }
    return view_cache.build(
        path,
        "folder",
        data_dir=data_dir,
        teacher=teacher or tower(1),
        views=given or views(),
        log=log or (lambda line: None),
        **options,
    )


def batches(opened, data_dir, given=None, **options):
    options = {"batch_size": 6, "epochs": 3, **options}
    return datasets.load(
        "folder",
        data_dir=data_dir,
        views=given or views(),
        view_cache=opened,
        **options,
    )


def noise_batch():
    return {
        "images": np.zeros((2, SIZE, SIZE, 3), np.uint8),
        "keys": tf.zeros([2, 2], tf.uint32),
        "embeddings": tf.ones([2, 1, D], tf.float16),
    }


def content(path):
    return {p.name: p.read_bytes() for p in pathlib.Path(path).iterdir()}


def file_of(path, number):
    return next(pathlib.Path(path).glob(f"{number:06d}-*.npy"))


class ViewCacheTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        patch = mock.patch.object(cache, "SHARD", 8)
        patch.start()
        cls.addClassCleanup(patch.stop)
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.data = pictures(os.path.join(folder, "pictures"), 21)
        cls.path = os.path.join(folder, "cache")
        cls.teacher = tower(1)
        cls.opened = build(cls.path, cls.data, teacher=cls.teacher)

    def copy(self):
        path = os.path.join(self.create_tempdir().full_path, "cache")
        return shutil.copytree(self.path, path)

    # -- what is stored ----------------------------------------------------

    @parameterized.parameters(
        (views, (SIZE,)), (small_patches, (SIZE, 6, 6)), (None, (SIZE,))
    )
    def test_embeddings_are_the_teachers_of_the_views_students_see(
        self, make, sizes
    ):
        given, opened = (make or views)(), self.opened
        if make is not views:
            path = self.create_tempdir().full_path
            if make is None:  # whole images: the first layer is no crop
                given = seed_tf.views.View(
                    [seed_tf.views.RandomHorizontalFlip()]
                )
            options = {} if make else {"image_size": SIZE}
            opened = build(
                path, self.data, teacher=self.teacher, given=given, **options
            )
        else:
            options = {}
        self.assertEqual(opened.config["embeddings_per_view"], len(sizes))
        student = model(given, self.teacher)
        seen = set()
        for batch in batches(opened, self.data, given, **options):
            shown = student.augment(batch, 0)
            stored = student._cached_targets(batch["embeddings"])
            self.assertEqual(batch["embeddings"].dtype, tf.float16)
            self.assertLen(shown, len(stored))
            for view, targets in zip(shown, stored, strict=True):
                z = self.teacher(view, training=False)
                z = z / np.linalg.norm(z, axis=1, keepdims=True)
                np.testing.assert_allclose(targets, z, atol=6e-4)
            seen |= {tuple(key) for key in batch["keys"].numpy()}
        # Three epochs of 18 images: no view came twice.
        self.assertLen(seen, 54)

    def test_a_view_is_exactly_what_its_key_makes_of_the_image(self):
        data = datasets.describe("folder", data_dir=self.data, views=views())
        # Private: crops are not part of what a builder leaves.
        every = building._Batches(data, FixedViews(0, 3), 4, None)
        crops, keys = {}, {}
        for batch in every(0, 24):
            for i, n in enumerate(batch["index"].numpy()):
                for v in range(3):
                    key = tuple(batch["keys"][i, v].numpy())
                    crops[key] = batch["images"][i, v].numpy()
                    keys[key] = (n, v)
        self.assertLen(crops, 63)
        for batch in batches(self.opened, self.data):
            for image, key in zip(batch["images"], batch["keys"], strict=True):
                key = tuple(key.numpy())
                np.testing.assert_array_equal(image[0], crops[key])
        numbers = np.array(list(keys.values()))
        np.testing.assert_array_equal(
            FixedViews(0, 3).keys(*numbers.T), list(keys)
        )

    def test_keys_are_a_fold_of_seed_image_and_view(self):
        keys = FixedViews(5, 4).keys(np.arange(50)[:, None], np.arange(4))
        self.assertLen({tuple(x) for x in keys.numpy().reshape(-1, 2)}, 200)
        other = FixedViews(6, 4).keys(np.arange(50)[:, None], np.arange(4))
        self.assertFalse(np.any(np.all(keys == other, -1)))
        self.assertFalse(np.any(keys[:, 0] == random.image_seeds(5, 0, 50)))

    @parameterized.parameters(1, 4, 5)
    def test_all_views_are_seen_before_one_is_seen_again(self, count):
        index = np.arange(200)
        fixed = FixedViews(0, count)
        order = np.array([fixed.chosen(3, e, index) for e in range(2 * count)])
        np.testing.assert_array_equal(
            np.sort(order[:count], 0), np.arange(count)[:, None] + 0 * index
        )
        np.testing.assert_array_equal(order[:count], order[count:])
        if count > 1:  # every epoch has all numbers, about equally often
            counts = np.bincount(order[0], minlength=count)
            self.assertGreater(counts.min(), 200 / count / 2)
            other = fixed.chosen(4, 0, index).numpy()
            self.assertFalse(np.array_equal(order[0], other))

    # -- training ----------------------------------------------------------

    @parameterized.parameters(views, small_patches)
    @pytest.mark.slow
    def test_a_student_trained_from_the_live_runs_views_is_the_same(self, make):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (6, 6, 12, 12, 3), dtype=np.uint8)
        live, cached = (model(make(), self.teacher) for _ in range(2))
        stored = []
        for step, batch in enumerate(images):
            targets = live._targets(live.augment(batch, np.int64(step)))
            rows = [np.reshape(x, [-1, 6, D]) for x in targets]
            stored.append(
                {
                    "images": batch,
                    "keys": random.image_seeds(0, step, 6).numpy(),
                    "embeddings": np.concatenate(rows)
                    .transpose(1, 0, 2)
                    .astype(np.float16),
                }
            )
        stored = tf.nest.map_structure(lambda *x: np.stack(x), *stored)
        expected = live.fit(
            tf.data.Dataset.from_tensor_slices(images), verbose=0
        ).history
        with mock.patch.object(
            cached, "_targets", side_effect=AssertionError("teacher called")
        ):
            found = cached.fit(
                tf.data.Dataset.from_tensor_slices(stored), verbose=0
            ).history
        self.assertCountEqual(found, expected)
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=2e-3)
        for a, b in zip(
            live.student.weights, cached.student.weights, strict=True
        ):
            np.testing.assert_allclose(a, b, atol=2e-3)
        before = tower(2).weights
        moved = [
            np.abs(a - b).max()
            for a, b in zip(before, cached.student.weights, strict=True)
        ]
        self.assertGreater(max(moved), 0.02)
        np.testing.assert_allclose(
            live.queue.embeddings, cached.queue.embeddings, atol=6e-4
        )

    def test_resumed_workers_see_rows_of_the_same_batches(self):
        whole = list(batches(self.opened, self.data, held_out=3))
        self.assertLen(whole, 9)
        parts = [
            batches(
                *(self.opened, self.data),
                held_out=3,
                first_step=4,
                shard=(i, 2),
            )
            for i in range(2)
        ]
        for expected, *rows in zip(whole[4:], *parts, strict=True):
            found = tf.nest.map_structure(lambda *x: np.concatenate(x), *rows)
            tf.nest.map_structure(
                np.testing.assert_array_equal, expected, found
            )

    def test_two_replicas_see_the_views_of_one_device(self):
        # Keys do not depend on the replica; all else is as without a cache.
        student = model(seed_tf.views.View([views().layers[1]]), self.teacher)
        rng = np.random.default_rng(0)
        batch = {
            "images": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
            "keys": rng.integers(0, 2**32, (6, 2), dtype=np.uint32),
            "embeddings": rng.normal(size=(6, 1, D)).astype(np.float16),
        }
        expected = [x[0] for x in student._views_and_targets(batch, 0)]
        strategy = two_replicas()
        data = tf.data.Dataset.from_tensor_slices(batch).batch(6)
        (shares,) = strategy.experimental_distribute_dataset(data)

        @tf.function
        def run(shares):
            return strategy.run(student._views_and_targets, (shares, 0))

        for found, whole in zip(run(shares), expected, strict=True):
            rows = strategy.experimental_local_results(found[0])
            self.assertLen(rows, 2)
            np.testing.assert_array_equal(np.concatenate(rows), whole)
        self.assertFalse(np.array_equal(expected[0], batch["images"]))

    @pytest.mark.slow
    def test_bad_rows_take_view_and_embedding_of_another(self):
        data = shutil.copytree(
            self.data, os.path.join(self.create_tempdir().full_path, "data")
        )
        bad = os.path.join(data, "3.jpg")
        with open(bad, "r+b") as file:
            file.truncate(50)
        corrupt = datasets.CorruptFiles(0.5)
        path = self.create_tempdir().full_path
        opened = build(path, data, teacher=self.teacher, corrupt=corrupt)
        self.assertLen(corrupt.files, 1)
        stored = np.concatenate([np.load(f) for f, _ in opened._files])
        missing = ~np.isfinite(stored).all((1, 2, 3))
        self.assertEqual(missing.sum(), 1)
        student = model(teacher=self.teacher)
        # Also if it can be read by now, there is no embedding of it.
        shutil.copy(os.path.join(self.data, "3.jpg"), bad)
        sizes = []
        with mock.patch.object(ViewCache, "check_images"):
            for batch in batches(opened, data, batch_size=7):
                view = student.augment(batch, 0)[0]
                z = self.teacher(view, training=False)
                z = z / np.linalg.norm(z, axis=1, keepdims=True)
                np.testing.assert_allclose(
                    batch["embeddings"][:, 0], z, atol=6e-4
                )
                keys = {tuple(key) for key in batch["keys"].numpy()}
                sizes.append(len(keys))
        # Every epoch has one batch in which a row stands for the bad one.
        self.assertEqual(sorted(sizes), [6] * 3 + [7] * 6)

    # -- making it ---------------------------------------------------------

    @pytest.mark.slow
    def test_a_killed_process_loses_a_shard_and_leaves_the_same_files(self):
        path = os.path.join(self.create_tempdir().full_path, "cache")
        teacher = os.path.join(self.create_tempdir().full_path, "t.keras")
        self.teacher.save(teacher)
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, path, self.data, teacher],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/tests/view_cache",
            },
            capture_output=True,
            text=True,
        )
        self.assertEqual(killed.returncode, -signal.SIGKILL, killed.stderr)
        left = content(path)
        # cache.json, a shard, half of another, and the lock of the dead process
        self.assertLen(left, 4)
        self.assertLen([x for x in left if "unfinished" in x], 1)
        lines = []
        build(path, self.data, teacher=self.teacher, log=lines.append)
        self.assertIn("in 3 files, 2 missing", lines[1])
        self.assertIn("39 views to embed", lines[2])
        self.assertEqual(content(path), content(self.path))

    def test_it_tells_size_time_and_progress(self):
        lines, path = [], self.create_tempdir().full_path
        clock = mock.Mock()
        clock.monotonic.side_effect = np.arange(0.0, 1e4, 20)
        with (
            mock.patch.object(building, "time", clock),
            mock.patch.object(progress, "time", clock),
        ):
            build(
                path,
                self.data,
                teacher=self.teacher,
                views_per_image=2,
                log=lines.append,
            )
        self.assertRegex(lines.pop(0), "^Split 'train': 21 images in 1 fold")
        self.assertEqual(
            lines[0],
            "21 images, 2 views of 32 bytes each: 1.73 kB in 3 files, "
            "3 missing.",
        )
        sizes = [os.stat(file_of(path, i)).st_size for i in range(3)]
        self.assertEqual(sum(sizes), 21 * 2 * 32 + 3 * 128)
        # 20 s for each batch of four.
        self.assertRegex(lines[1], "^42 views to embed, some 1 min 45 s of ")
        self.assertIn("the same command goes on", lines[1])
        self.assertRegex(lines[-2], r"^  40/42 views  0 views/s  5 s left$")
        self.assertRegex(lines[-1], r"^  42/42 views .* 0 s left$")
        build(self.path, self.data, teacher=self.teacher, log=lines.append)
        self.assertEndsWith(lines[-1], ", 0 missing.")

    def test_damaged_files_are_named_and_made_again(self):
        path = self.copy()
        flipped, short, gone = (file_of(path, i) for i in range(3))
        data = bytearray(flipped.read_bytes())
        data[-1] ^= 1
        flipped.write_bytes(data)
        short.write_bytes(short.read_bytes()[:-2])
        gone.unlink()
        with self.assertRaises(ValueError) as caught:
            ViewCache(path)
        message = str(caught.exception)
        for expected in (
            f"'{flipped}' is damaged: its checksum is wrong; '{short}' is dam",
            "; 1 of 3 files missing. Repeat the call",
        ):
            self.assertIn(expected, message)
        gone.write_bytes(file_of(self.path, 2).read_bytes())
        lines = []
        build(path, self.data, teacher=self.teacher, log=lines.append)
        self.assertStartsWith(lines.pop(0), "Split 'train': 21 images")
        self.assertStartsWith(lines[3], "48 views to embed")
        self.assertEqual(content(path), content(self.path))
        self.assertStartsWith(lines[0], f"'{flipped}' is damaged: its checks")
        self.assertStartsWith(lines[1], f"'{short}' is damaged: ")

    def test_a_flipped_bit_anywhere_is_found(self):
        path = self.copy()
        config = ViewCache(path).config
        for file in (file_of(path, 1), pathlib.Path(path, "cache.json")):
            whole = file.read_bytes()
            for flipped in flips(whole, 30):
                file.write_bytes(flipped)
                try:
                    found = ViewCache(path).config
                except ValueError as error:
                    self.assertIn(f"'{file}' is damaged", str(error))
                else:  # white space, or the name of the JSON's checksum
                    self.assertEqual({**found, **config}, found)
            file.write_bytes(whole)

    def test_a_damaged_header_or_config_is_made_again(self):
        """NumPy reads headers as Python, and raises its errors."""
        file = file_of(self.path, 0)
        header = file.read_bytes()[:128]
        for damaged in (
            header.replace(b"}", b" "),  # TokenError
            header.replace(b"'descr'", b"'descr "),
            header.replace(b"False", b"Fals("),  # SyntaxError
            header.replace(b"<f2", b">f2"),
        ):
            path = self.copy()
            file = file_of(path, 0)
            file.write_bytes(damaged + file.read_bytes()[128:])
            with self.assertRaisesRegex(ValueError, f"'{file}' is damaged"):
                ViewCache(path)
        lines = []
        build(path, self.data, teacher=self.teacher, log=lines.append)
        self.assertTrue(any(f"'{file}' is dam" in line for line in lines))
        self.assertEqual(content(path), content(self.path))
        config = pathlib.Path(path, "cache.json")
        config.write_text(config.read_text().replace('"dim": ', '"dim": 1'))
        lines = []
        build(path, self.data, teacher=self.teacher, log=lines.append)
        self.assertIn("cache.json' is damaged", "".join(lines))
        self.assertEqual(content(path), content(self.path))

    def test_too_small_a_disk(self):
        path, usage = self.create_tempdir().full_path, shutil.disk_usage("/")
        with (
            mock.patch.object(
                shutil, "disk_usage", return_value=usage._replace(free=1000)
            ),
            self.assertRaisesRegex(OSError, "1 kB free, and 2.4 kB are needed"),
        ):
            build(path, self.data, teacher=self.teacher)
        self.assertEmpty(os.listdir(path))

    def test_it_goes_on_in_the_precision_it_began_with(self):
        with mock.patch.object(
            *(building.precision, "default_teacher_precision"),
            return_value="bfloat16",
        ):
            built = build(
                self.copy(),
                self.data,
                teacher=self.teacher,
                teacher_precision=None,
            )
        self.assertEqual(built.config["teacher_precision"], "float32")

    def test_one_process_at_a_time(self):
        path = self.copy()
        with (
            locks.folder_lock(path),
            self.assertRaisesRegex(ValueError, "Another process is writing"),
        ):
            build(path, self.data, teacher=self.teacher)
        file = os.path.join(path, "cache.json")
        with self.assertRaisesRegex(OSError, "cannot be written"):
            build(file, self.data, teacher=self.teacher)

    # -- what is refused ---------------------------------------------------

    @parameterized.parameters(
        ({"views_per_image": 0}, "`views_per_image` must be positive"),
        ({"batch_size": 0}, "`batch_size` must be positive. Received: .*=0"),
        (
            {"views_per_image": 4, "seed": 1, "teacher_precision": "bfloat16"},
            "seed: 0 there, 1 here; views_per_image: 3 there, 4 here; "
            "teacher_precision: 'float32' there, 'bfloat16' here. .* choose "
            "another folder",
        ),
    )
    def test_arguments_and_other_caches(self, options, message):
        with self.assertRaisesRegex(ValueError, message):
            build(self.path, self.data, teacher=self.teacher, **options)

    def test_another_teacher(self):
        self.opened.check_teacher(self.teacher)
        self.teacher.trainable = False
        self.opened.check_teacher(self.teacher)
        message = "of another teacher. fingerprint: .* there, .* here. Train "
        with self.assertRaisesRegex(ValueError, message):
            self.opened.check_teacher(tower(4))
        backbone = keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)]
        )
        encoder = seed_tf.Encoder(backbone, embedding_dim=D)
        config = {**self.opened.config}
        config["teacher"] = building.provenance.of_teacher(encoder)
        config["teacher"]["mean"] = [0.0, 0.0, 0.0]
        with (
            mock.patch.object(self.opened, "config", config),
            self.assertRaisesRegex(ValueError, r"teacher. mean: \[0.0, "),
        ):
            self.opened.check_teacher(encoder)

    @parameterized.parameters(
        (lambda: views(12), "layers, 1 RandomResizedCrop, size: 8 there, 12"),
        (lambda: views(p=0.3), "2 RandomHorizontalFlip, p: 0.5 there, 0.3 h"),
        (
            lambda: seed_tf.views.moco_v1(SIZE),
            "2 RandomGrayscale: '.absent.' there, {",
        ),
        (small_patches, "num_small: '.absent.' there, 2 here"),
    )
    def test_other_views(self, other, difference):
        with self.assertRaisesRegex(
            ValueError, "is of other views. "
        ) as caught:
            batches(self.opened, self.data, other())
        self.assertRegex(str(caught.exception), difference)
        self.assertIn("seed-tf cache", str(caught.exception))

    def test_squares_of_another_size(self):
        given = seed_tf.views.View([seed_tf.views.RandomHorizontalFlip()])
        config = {
            **self.opened.config,
            "views": building.provenance.of_views(given, {"size": 9, "of": 9}),
        }
        with (
            mock.patch.object(self.opened, "config", config),
            self.assertRaisesRegex(ValueError, "squares, size: 9 there, 10"),
        ):
            batches(self.opened, self.data, given, image_size=10)

    def test_views_that_keys_do_not_reach(self):
        flip = keras.layers.RandomFlip("horizontal")
        for given in (seed_tf.views.View([flip]), lambda images: images):
            with self.assertRaisesRegex(ValueError, "made again from their k"):
                batches(self.opened, self.data, given)
        batch = noise_batch()
        student = model(lambda images: tf.cast(images, tf.float32))
        with self.assertRaisesRegex(ValueError, "views that are made from `s"):
            student.augment(batch, 0)

    def test_other_images(self):
        data = shutil.copytree(
            self.data, os.path.join(self.create_tempdir().full_path, "data")
        )
        batches(self.opened, data)  # a copy is the same
        other = ViewCache(self.path)
        with open(os.path.join(data, "5.jpg"), "ab") as file:
            file.write(b"\0")
        message = "of other images. fingerprint: .* Train with the images that"
        with self.assertRaisesRegex(ValueError, message):
            batches(other, data)
        os.rename(os.path.join(data, "5.jpg"), os.path.join(data, "zz.jpg"))
        with self.assertRaisesRegex(ValueError, message):
            batches(other, data)
        os.remove(os.path.join(data, "zz.jpg"))
        with self.assertRaisesRegex(ValueError, "number: 21 there, 20 here"):
            batches(other, data)

    def test_two_views_of_an_image(self):
        with self.assertRaisesRegex(ValueError, "num_views=2. Use"):
            batches(self.opened, self.data, num_views=2)
        student = model(teacher=self.teacher, same_view=False)
        with self.assertRaisesRegex(ValueError, "`same_view=False` gives the"):
            student.test_step(noise_batch())

    def test_embeddings_that_do_not_fit_the_student(self):
        student = model(teacher=self.teacher)
        for shape in ((6, 1, D + 1), (6, 3, D)):
            with self.assertRaisesRegex(ValueError, "Expected embeddings"):
                student._cached_targets(tf.zeros(shape, tf.float16))

    def test_no_cache(self):
        path = self.create_tempdir().full_path
        with self.assertRaisesRegex(ValueError, "No view cache in .* Make one"):
            ViewCache(path)

    # -- other sources -----------------------------------------------------

    @pytest.mark.slow
    def test_every_source_numbers_and_fingerprints_its_images(self):
        folder = self.create_tempdir().full_path
        images = np.random.default_rng(0).integers(
            0, 256, (23, 9, 9, 3), dtype=np.uint8
        )
        features = {"image": tfds.features.Image(encoding_format="png")}
        tfds.dataset_builders.store_as_tfds_dataset(
            name="noise",
            version="1.0.0",
            features=tfds.features.FeaturesDict(features),
            split_datasets={
                "train": tf.data.Dataset.from_tensor_slices({"image": images})
            },
            data_dir=folder,
            download_config=tfds.download.DownloadConfig(num_shards=4),
            disable_shuffling=True,
        )
        with open(os.path.join(folder, "train.tsv"), "wb") as file:
            for image in images:
                data = base64.b64encode(tf.io.encode_png(image).numpy())
                file.write(b"key\t0\t" + data + b"\n")
        given = seed_tf.views.View([seed_tf.views.RandomHorizontalFlip()])
        for name in ("noise", "tsv"):
            numbers = Numbers()
            options = {
                "data_dir": folder,
                "views": given,
                "view_cache": numbers,
                "image_size": 9,
                "batch_size": 4,
            }
            for more in (
                {"held_out": 5, "shard": (1, 2), "first_step": 2},
                {"shuffle": False, "held_out": 5, "subset": "held_out"},
            ):
                seen = set()
                for batch in datasets.load(name, **options, **more):
                    for i, image in zip(
                        batch["index"].numpy(), batch["images"], strict=True
                    ):
                        np.testing.assert_array_equal(image, images[i])
                        seen.add(i)
                self.assertNotEmpty(seen)
            self.assertEqual(numbers.size, 23)
            self.assertRegex(numbers.fingerprint, "^[0-9a-f]{16}$")
        every, part = (
            sources.TFDS("noise", folder, split).fingerprint()
            for split in ("train", "train[5:]")
        )
        self.assertNotEqual(every, part)


class Numbers(FixedViews):
    """In place of a `ViewCache`, gives the number of each image."""

    def __init__(self):
        super().__init__(0, 1)

    def accompany(self, seed, epoch, index):
        keys = self.keys(index, tf.zeros_like(index))
        return {"keys": keys, "index": index}, tf.ones_like(index, tf.bool)

    def check_views(self, views, squares):
        del views, squares

    def check_images(self, where, size, fingerprint):
        self.size, self.fingerprint = size, fingerprint()


# Dies while it writes the second shard.
KILLED = """
import os, signal, sys
from unittest import mock
import keras, numpy as np
import view_cache_test as test

save, saved = np.save, []

def dying(file, rows):
    saved.append(file)
    if len(saved) < 2:
        return save(file, rows)
    with open(file, "wb") as f:
        f.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

path, data, teacher = sys.argv[1:]
teacher = keras.saving.load_model(teacher)
with (
    mock.patch.object(test.cache, "SHARD", 8),
    mock.patch.object(np, "save", dying),
):
    test.build(path, data, teacher=teacher)
"""


@pytest.mark.slow
class LaunchersTest(absltest.TestCase):
    def launch(self, name, *arguments, code=0):
        # Which launchers set, for their process.
        self.addCleanup(keras.mixed_precision.set_global_policy, "float32")
        return command(name, *arguments, code=code)

    @pytest.mark.slow
    def test_cache_then_distill(self):
        folder = self.create_tempdir().full_path
        path, output = (os.path.join(folder, x) for x in ("c", "s"))
        teacher = os.path.join(folder, "t.keras")
        tower(1).save(teacher)
        flags = (
            *("--dataset=digits", "--image_size=16", "--noflip"),
            f"--teacher={teacher}",
        )
        printed = self.launch(
            *("cache", *flags, "--views_per_image=2", f"--output={path}"),
        )
        self.assertIn("1,297 images, 2 views of 32 bytes each", printed)
        self.assertIn("The view cache is complete.", printed)

        train = (
            *("distill", *flags, "--queue_size=600", f"--output={output}"),
            *("--epochs=1", "--batch_size=400", f"--view_cache={path}"),
        )

        def student(recipe, teacher, **options):
            result = seed_tf.SEED(
                student=tower(2), teacher=teacher, queue_size=600, **options
            )
            mock.patch.object(
                result, "_targets", side_effect=AssertionError("called")
            ).start()
            return result

        with mock.patch.object(
            seed_tf.recipes,
            "build",
            lambda config, teacher, views: student(
                config, teacher, views=views, seed=config.seed
            ),
        ):
            printed = self.launch(*train)
            self.assertIn("Finished", printed)
            with open(os.path.join(output, "metrics.jsonl")) as file:
                lines = [json.loads(line) for line in file]
            self.assertEqual([line["step"] for line in lines], [3])
            self.assertIn("agreement", lines[-1])  # by the live teacher
            other = os.path.join(folder, "other.keras")
            tower(5).save(other)
            for flag, message in {
                f"--teacher={other}": "of another teacher",
                "--views=moco_v1": "of other views",
                "--image_size=14": "of other views",
                "--split=test": "of other images",
                "--nosame_view": "num_views=2. Use",
            }.items():
                printed = self.launch(
                    *train, flag, f"--output={output}2", code=1
                )
                self.assertRegex(printed, f"Error: .*{message}")

    def test_ctrl_c_says_how_to_go_on(self):
        with mock.patch.object(
            seed_tf.checkpoints, "load_encoder", side_effect=KeyboardInterrupt
        ):
            printed = self.launch(
                "cache", "--teacher=t", "--output=o", code=130
            )
        self.assertRegex(
            printed,
            "The same command goes on:\n"
            "  .*seed_tf cache --teacher=t --output=o|"
            "  .*seed_tf cache --output=o --teacher=t",
        )


if __name__ == "__main__":
    absltest.main()
