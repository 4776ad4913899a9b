"""Index and search of images: values, updates, crashes, and the server."""

import concurrent.futures
import http.client
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zlib
from unittest import mock

import keras
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from helpers.damage import flips
from helpers.runs import (
    command,
    pictures,
    tiny_teacher,
)
from PIL import Image

import seed_tf
from seed_tf import search
from seed_tf.datasets.decoding import EncodedImage
from seed_tf.evaluation.features import embedder
from seed_tf.io import locks
from seed_tf.io.fingerprints import identity
from seed_tf.search import building, server, vectors
from seed_tf.search.drawing import draw
from seed_tf.search.image_files import (
    ImageFiles,
    Lines,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = 32
FILES = ("embeddings.npy", "paths.txt", "keys.npy", "index.faiss")


def build(index, images, encoder, **options):
    """`search.build`, and the lines that it wrote."""
    lines = []
    options = {"image_size": SIZE, "batch_size": 8, **options}
    found = search.build(index, images, encoder, log=lines.append, **options)
    return found, "\n".join(lines)


def contents(index):
    return {name: (pathlib.Path(index) / name).read_bytes() for name in FILES}


def picture(seed, size=(40, 36)):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return Image.fromarray(pixels).resize(size)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_index(path, rows):
    """An index of given embeddings, whose images are nowhere."""
    os.makedirs(path)
    count, dim = rows.shape
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(os.path.join(path, "embeddings.npy"), rows.astype(np.float32))
    names = [f"{i}.jpg" for i in range(count)]
    np.save(os.path.join(path, "keys.npy"), np.array(names, "S16"))
    with open(os.path.join(path, "paths.txt"), "w") as f:
        f.write("\n".join(names) + "\n")
    with open(os.path.join(path, "index.json"), "w") as f:
        texts = ("encoder", "fingerprint", "images")
        config = {"count": count, "dim": dim, "image_size": 28, "resize": 32}
        config |= dict.fromkeys(texts, "/nowhere")
        config |= {"output": "features", "search": "exact", "corrupt": {}}
        json.dump(config, f)  # without checksums, as version 0.1
    vectors.write(
        rows.astype(np.float32), os.path.join(path, "index.faiss"), str
    )
    return search.Index(path)


class Folder(parameterized.TestCase):
    """Photos of several kinds, an encoder and an empty place for an index."""

    def setUp(self):
        super().setUp()
        self.fill(self.create_tempdir().full_path)

    def fill(self, folder):
        self.folder = pathlib.Path(folder)
        self.photos = self.folder / "photos"
        pictures(str(self.photos), 12, size=40)
        pictures(str(self.photos / "b" / "c"), 9, size=50)
        (self.photos / "b" / "Ä b.PNG").write_bytes(encoded(picture(5)))
        (self.photos / "broken.jpg").write_bytes(b"no image")
        (self.photos / "a\nb.jpg").write_bytes(encoded(picture(6), "JPEG"))
        self.encoder = tiny_teacher(str(self.folder / "teacher.keras"))
        self.index = str(self.folder / "index")

    def build(self, index=None, **options):
        return build(
            index or self.index, str(self.photos), self.encoder, **options
        )


class ListingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def make(self, *names):
        for name in names:
            path = os.path.join(os.fsencode(self.folder), os.fsencode(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w"):
                pass

    def test_which_files_in_which_order(self):
        self.make(
            *("b.jpg", "a.PNG", "z/2.webp", "z/1.gif", "m/n/o.bmp", "ö.jpeg"),
            *("words.txt", ".hidden.jpg", ".cache/x.jpg", "jpg"),
        )
        os.symlink(self.folder, self.folder / "z" / "loop")
        os.symlink(self.folder / "m", self.folder / "linked")
        os.symlink(self.folder / "gone", self.folder / "gone.jpg")
        listing = ImageFiles(str(self.folder))
        self.assertEqual(
            list(listing.paths),
            [
                *("a.PNG", "b.jpg", "gone.jpg", "ö.jpeg", "linked/n/o.bmp"),
                *("m/n/o.bmp", "z/1.gif", "z/2.webp"),
            ],
        )
        self.assertEqual(listing.refused, {})

    def test_names_that_are_no_line_are_refused(self):
        self.make("good.jpg", "a\nb.jpg", "c\r.jpg", "d\u2028.jpg", b"\xff.jpg")
        listing = ImageFiles(str(self.folder))
        self.assertEqual(list(listing.paths), ["good.jpg"])
        self.assertCountEqual(
            listing.refused.values(),
            ["its name has a line break"] * 3 + ["its name is not UTF-8"],
        )
        self.assertIn("'a\\nb.jpg'", listing.refused)

    def test_files_are_known_again(self):
        self.make("a.jpg", "b.jpg", "c.jpg", "d.jpg")
        before = ImageFiles(str(self.folder))
        (self.folder / "b.jpg").write_text("another size")
        os.utime(self.folder / "c.jpg", ns=(1, 1))
        (self.folder / "a.jpg").unlink()
        after = ImageFiles(str(self.folder))
        np.testing.assert_array_equal(after.find(before.keys), [-1, -1, -1, 2])
        np.testing.assert_array_equal(after.find(after.keys), [0, 1, 2])
        np.testing.assert_array_equal(after.find(np.array([], "S16")), [])

    def test_lines_across_blocks(self):
        lines = ["é" * (i % 7) + str(i) for i in range(100)]
        file = self.folder / "lines"
        file.write_text("".join(f"{line}\n" for line in lines))
        with (
            open(file, "rb") as f,
            mock.patch.object(Lines, "_block", 13),
        ):
            found = Lines(f)
        self.assertLen(found, 100)
        self.assertEqual([found[i] for i in range(100)], lines)

    def test_folders_without_images(self):
        with self.assertRaisesRegex(ValueError, "No images in .*jpeg"):
            ImageFiles(str(self.folder))
        with self.assertRaisesRegex(OSError, "none"):
            ImageFiles(str(self.folder / "none"))


class BuildTest(Folder):
    def test_index_of_a_folder(self):
        found, written = self.build()
        names = sorted(f"{i}.jpg" for i in range(12)) + ["b/Ä b.PNG"]
        names += [f"b/c/{i}.jpg" for i in range(9)]
        text = pathlib.Path(self.index, "paths.txt").read_bytes().decode()
        self.assertEqual(text.split("\n"), [*names, ""])
        # By PIL and Keras alone.
        model = keras.saving.load_model(self.encoder)
        squares = []
        for name in names:
            image = Image.open(self.photos / name).convert("RGB")
            scale = 37 / min(image.size)
            width, height = (int(side * scale + 1e-6) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, top = (round((side - SIZE) / 2) for side in image.size)
            box = (left, top, left + SIZE, top + SIZE)
            squares.append(np.asarray(image.crop(box)))
        features = np.array(model.features(np.stack(squares)))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        rows = np.load(os.path.join(self.index, "embeddings.npy"), "r")
        self.assertEqual(rows.dtype, np.float32)
        np.testing.assert_allclose(rows, features, atol=1e-5)
        with open(os.path.join(self.index, "index.json")) as f:
            config = json.load(f)
        self.assertEqual(
            {k: v for k, v in config.items() if k not in ("created", "crc32")},
            {
                "checksums": {
                    name: f"{zlib.crc32(data):08x}"
                    for name, data in contents(self.index).items()
                },
                "encoder": self.encoder,
                "fingerprint": identity(model),
                "output": "features",
                "image_size": 32,
                "resize": 37,
                "images": str(self.photos),
                "count": 22,
                "dim": 6,
                "corrupt": {
                    "'a\\nb.jpg'": "its name has a line break",
                    "broken.jpg": "not a JPEG, PNG, WebP, GIF, BMP, TIFF, "
                    "AVIF or HEIC image",
                },
                "search": "exact",
            },
        )
        self.assertIn("23 images in", written)
        self.assertIn("23 to embed, 0 in the index", written)
        self.assertRegex(written, "23/23 images .* images/s  .* left")
        self.assertIn("22 images in the index, 6 numbers each", written)
        self.assertCountEqual(os.listdir(self.index), [*FILES, "index.json"])
        self.assertEqual(found.file(3), str(self.photos / names[3]))

    def test_only_what_is_new_is_embedded(self):
        self.build()
        before = contents(self.index)
        _, written = self.build()
        self.assertIn("23 images in", written)
        self.assertIn(": 1 to embed, 22 in the index", written)  # the broken
        self.assertEqual(contents(self.index), before)

        first = search.Index(self.index)
        old = dict(zip(first.paths, np.array(first.embeddings), strict=True))
        (self.photos / "broken.jpg").write_bytes(encoded(picture(1)))
        (self.photos / "3.jpg").write_bytes(encoded(picture(2), "JPEG"))
        (self.photos / "b" / "new.jpg").write_bytes(encoded(picture(3)))
        shutil.rmtree(self.photos / "b" / "c")
        second, written = self.build()
        self.assertIn(": 3 to embed, 12 in the index", written)
        self.assertIn("3 new or changed, 10 dropped.", written)
        anew, _ = self.build(str(self.folder / "anew"))
        self.assertEqual(list(second.paths), list(anew.paths))
        self.assertLen(second, 15)
        np.testing.assert_allclose(
            second.embeddings, anew.embeddings, atol=1e-6
        )
        for row, name in enumerate(second.paths):
            if name not in ("broken.jpg", "3.jpg", "b/new.jpg"):
                np.testing.assert_array_equal(second.embeddings[row], old[name])
        self.assertNotAlmostEqual(
            float(
                second.embeddings[second_row(second, "3.jpg")] @ old["3.jpg"]
            ),
            1.0,
            places=5,
        )
        self.assertEqual(list(second.config["corrupt"]), ["'a\\nb.jpg'"])

    def test_embeddings(self):
        found, _ = self.build(output="embeddings")
        self.assertEqual(found.embeddings.shape, (22, 16))
        images = search.ImageSearch(found)
        similarities, rows = images.search(
            (self.photos / "b/c/4.jpg").read_bytes(), 1
        )
        self.assertEqual(found.paths[rows[0]], "b/c/4.jpg")
        self.assertGreaterEqual(similarities[0], 1 - 1e-6)

    def test_what_does_not_mix_is_refused(self):
        self.build()
        keras.utils.set_random_seed(8)
        other = str(self.folder / "other.keras")
        layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(6, 3)]
        seed_tf.Encoder(keras.Sequential(layers)).save(other)
        with self.assertRaisesRegex(
            ValueError,
            "(?s)teacher.keras.*other.keras.*fingerprint: '.{25}' there, "
            "'.{25}' here. .*choose another folder",
        ):
            build(self.index, str(self.photos), other)
        with self.assertRaisesRegex(
            ValueError, "image_size: 32 there, 40 here; resize: 37 there"
        ):
            self.build(image_size=40)
        with self.assertRaisesRegex(
            ValueError, "output: 'features' there, 'embeddings' here"
        ):
            self.build(output="embeddings")
        self.assertLen(search.Index(self.index), 22)

    def test_size_that_the_encoder_was_trained_at(self):
        model = seed_tf.checkpoints.load_encoder(self.encoder)
        with self.assertRaisesRegex(ValueError, "`image_size` is needed"):
            self.build(image_size=None)
        model.image_size = 24
        model.save(self.encoder)
        found, _ = self.build(image_size=None)
        self.assertEqual(found.config["image_size"], 24)

    def test_bad_arguments(self):
        for name in ("image_size", "batch_size"):
            with self.assertRaisesRegex(ValueError, f"{name}=0"):
                self.build(**{name: 0})
        with self.assertRaisesRegex(ValueError, "Expected a .keras file"):
            build(self.index, str(self.photos), "/nowhere.keras")
        with self.assertRaisesRegex(ValueError, "`images` must be an exist"):
            build(self.index, str(self.photos / "none"), self.encoder)
        with self.assertRaisesRegex(ValueError, '"features" or "embeddings"'):
            self.build(output="logits")
        (self.folder / "file").touch()
        with self.assertRaisesRegex(OSError, "cannot be written"):
            self.build(str(self.folder / "file" / "index"))
        for path in self.photos.rglob("*.*"):
            path.write_text("no image")
        with self.assertRaisesRegex(
            ValueError, "All 23 images .* are damaged. The first: .* \\("
        ):
            self.build()
        with self.assertRaisesRegex(ValueError, "unfinished"):
            search.Index(self.index)

    def test_one_process_at_a_time(self):
        with (
            locks.folder_lock(self.index),
            self.assertRaisesRegex(ValueError, "Another process is writing"),
        ):
            self.build()

    def test_full_disk(self):
        usage = mock.Mock(free=1000)
        with (
            mock.patch.object(shutil, "disk_usage", return_value=usage),
            self.assertRaisesRegex(OSError, "No space left.* 1 kB free"),
        ):
            self.build()

    def test_damaged_index_is_made_anew(self):
        self.build()
        whole = contents(self.index)
        for name in FILES:
            with self.subTest(name):
                path = pathlib.Path(self.index, name)
                path.write_bytes(path.read_bytes()[:-60])
                with self.assertRaisesRegex(ValueError, "is damaged"):
                    search.Index(self.index)
                _, written = self.build()
                self.assertIn("is damaged", written)
                self.assertEqual(contents(self.index), whole)

    def test_a_flipped_bit_anywhere_is_found(self):
        """Each file is read back whole, or named as damaged."""
        found, _ = self.build()
        config = found.config
        for name in (*FILES, "index.json"):
            path = pathlib.Path(self.index, name)
            whole = path.read_bytes()
            for flipped in flips(whole, 12):
                path.write_bytes(flipped)
                try:
                    read = search.Index(self.index).config
                    # White space, or the name of the JSON's own checksum.
                    self.assertEqual({**read, **config}, read)
                    self.assertEqual(name, "index.json")
                except ValueError as error:
                    self.assertIn(str(path), str(error))
            path.write_bytes(whole)
        search.Index(self.index)

    def test_damaged_settings_are_made_anew(self):
        self.build()
        whole = contents(self.index)
        path = pathlib.Path(self.index, "index.json")
        text = path.read_text()
        for damaged in (
            *("[]", text[:-9], text.replace('"resize": 37', '"resize": 38')),
        ):
            path.write_text(damaged)
            with self.assertRaisesRegex(ValueError, "index.json' is damaged"):
                search.Index(self.index)
            _, written = self.build()
            self.assertIn("index.json' is damaged", written)
            self.assertEqual(contents(self.index), whole)

    def test_values_without_a_checksum_are_checked(self):
        """An index of version 0.1 has none."""
        self.build()
        path = pathlib.Path(self.index, "index.json")
        old = json.loads(path.read_text())
        del old["checksums"], old["crc32"]
        for name, value in {
            **{"resize": 38, "image_size": 0, "count": 21, "dim": 7},
            **{"images": 3, "output": "logits", "search": [], "corrupt": 1},
        }.items():
            path.write_text(json.dumps({**old, name: value}))
            with self.assertRaisesRegex(ValueError, "is damaged"):
                search.Index(self.index)
        path.write_text(json.dumps(old))
        self.assertLen(search.Index(self.index), 22)
        self.build()  # adds checksums
        self.assertLen(search.Index(self.index).config["checksums"], 4)

    def test_damaged_shards_are_embedded_again(self):
        shards = pathlib.Path(self.index, "shards")
        with (
            mock.patch.object(building, "SHARD", 8),
            mock.patch.object(
                building._Builder, "_assemble", side_effect=OSError
            ),
            self.assertRaises(OSError),
        ):
            self.build()
        first, second, third = sorted(shards.glob("*.npz"))
        data = bytearray(first.read_bytes())
        data[len(data) // 2] ^= 4
        first.write_bytes(data)
        second.write_bytes(b"no shard")
        _, written = self.build()
        self.assertIn(f"{str(first)!r} is damaged", written)
        self.assertIn(f"{str(second)!r} is damaged", written)
        self.assertIn("16 to embed, 0 in the index, 7 from", written)
        anew, _ = self.build(str(self.folder / "anew"))
        self.assertEqual(contents(self.index), contents(anew.path))

    def test_faiss_is_missing(self):
        with (
            mock.patch.dict(sys.modules, {"faiss": None}),
            self.assertRaisesRegex(ValueError, r"seed_tf\[search\]"),
        ):
            self.build()


def second_row(index, name):
    return list(index.paths).index(name)


class CrashTest(Folder):
    def setUp(self):
        super().setUp()
        shard = mock.patch.object(building, "SHARD", 8)
        shard.start()
        self.addCleanup(shard.stop)

    @pytest.mark.slow
    def test_killed_while_embedding(self):
        whole, _ = self.build(str(self.folder / "whole"), batch_size=4)
        script = (
            "import sys, time\n"
            "from seed_tf.search import building\n"
            "building.SHARD = 8\n"
            "class Progress(building.Progress):\n"
            "    def __call__(self, done):\n"
            "        print(done, flush=True)\n"
            "        time.sleep(600 if done >= 20 else 0)\n"
            "building.Progress = Progress\n"
            "building.build(*sys.argv[1:], image_size=32, batch_size=4)\n"
        )
        arguments = [self.index, str(self.photos), self.encoder]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with process:
            for line in process.stdout:
                if line == "20\n":  # two shards, and a half
                    process.kill()
        self.assertEqual(process.returncode, -signal.SIGKILL)
        with self.assertRaisesRegex(ValueError, "no index yet: it is unfini"):
            search.Index(self.index)
        with self.assertRaisesRegex(ValueError, "image_size: 32 there, 64"):
            self.build(image_size=64)
        found, written = self.build(batch_size=4)
        # Of 16 files one is broken, which is not tried again, but told of.
        self.assertIn("7 to embed, 0 in the index, 15 from an inter", written)
        self.assertEqual(found.config["corrupt"], whole.config["corrupt"])
        self.assertEqual(contents(self.index), contents(whole.path))

    @pytest.mark.slow
    def test_crash_at_any_step_on_disk(self):
        """Each change of a name may be the last thing that happens."""
        self.build()
        (self.photos / "0.jpg").unlink()
        (self.photos / "new.jpg").write_bytes(encoded(picture(4), "JPEG"))
        start = str(self.folder / "start")
        shutil.copytree(self.index, start)
        model = seed_tf.checkpoints.load_encoder(self.encoder)
        embed = embedder(model)
        flush = mock.patch.object(os, "fsync")  # nobody pulls the plug here
        flush.start()
        self.addCleanup(flush.stop)
        for name, same in (("load_encoder", model), ("embedder", embed)):
            patch = mock.patch.object(building, name, return_value=same)
            patch.start()
            self.addCleanup(patch.stop)
        before = contents(start)
        self.build()
        after = contents(self.index)
        steps = []
        for step in range(100):
            shutil.rmtree(self.index)
            shutil.copytree(start, self.index)
            calls = iter(range(100))

            def change(real, calls=calls, step=step):
                def changed(*arguments, **options):
                    if next(calls) == step:
                        raise KeyboardInterrupt
                    return real(*arguments, **options)

                return changed

            names = ("replace", "rename", "rmdir")
            patches = [
                mock.patch.object(os, name, change(getattr(os, name)))
                for name in names
            ]
            for patch in patches:
                patch.start()
            try:
                self.build()
                break
            except KeyboardInterrupt:
                steps.append(step)
            finally:
                for patch in patches:
                    patch.stop()
            try:  # what is left is the old index, the new one, or refused
                search.Index(self.index)
                self.assertIn(contents(self.index), (before, after))
            except ValueError as error:
                self.assertRegex(str(error), "damaged or being replaced")
            self.build()
            self.assertEqual(contents(self.index), after, step)
            self.assertCountEqual(
                os.listdir(self.index), [*FILES, "index.json"]
            )
        self.assertGreater(len(steps), 10)


class IndexTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.rng = np.random.default_rng(0)

    def index(self, rows):
        return write_index(os.path.join(self.folder, "index"), rows)

    def test_neighbours_are_numpys(self):
        rows = self.rng.standard_normal((300, 12))
        rows[17] = rows[170]
        index = self.index(rows)
        queries = self.rng.standard_normal((5, 12)) * 40
        queries[1] = rows[17]
        similarities, found = index.search(queries, 20)
        unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        products = unit @ np.array(index.embeddings, np.float64).T
        order = np.argsort(-products, axis=1, kind="stable")[:, :20]
        np.testing.assert_array_equal(found[:1], order[:1])
        np.testing.assert_array_equal(found[2:], order[2:])
        np.testing.assert_array_equal(found[1][:2], [17, 170])  # equals
        np.testing.assert_allclose(
            similarities, np.take_along_axis(products, order, 1), atol=1e-6
        )

    def test_all_and_more(self):
        index = self.index(self.rng.standard_normal((7, 3)))
        similarities, rows = index.search(np.ones((2, 3)), 50)
        self.assertEqual(rows.shape, (2, 7))
        self.assertTrue((np.diff(similarities) <= 0).all())
        self.assertLen(set(rows[0]), 7)

    def test_others(self):
        rows = self.rng.standard_normal((30, 5))
        rows[3:9] = rows[3]
        index = self.index(rows)
        for row in (2, 3, 8):
            similarities, found = index.others(row, 4)
            self.assertLen(found, 4)
            self.assertNotIn(row, found)
            if row > 2:
                np.testing.assert_allclose(similarities, 1, atol=1e-6)

    def test_bad_arguments(self):
        index = self.index(self.rng.standard_normal((9, 4)))
        for queries in (np.ones((2, 5)), np.ones(4)):
            with self.assertRaisesRegex(ValueError, r"\[Q, 4\]. Received: sh"):
                index.search(queries)
        with self.assertRaisesRegex(ValueError, "k=0"):
            index.search(np.ones((1, 4)), 0)
        with self.assertRaisesRegex(ValueError, "holds no index. Make one"):
            search.Index(self.folder)

    def test_large_indexes_are_searched_in_part(self):
        """Few of the exact neighbours are missed, none made up."""
        centres = self.rng.standard_normal((40, 24))
        rows = np.repeat(centres, 150, 0)
        rows += 0.7 * self.rng.standard_normal(rows.shape)
        with mock.patch.object(vectors, "EXACT", 5000):
            index = self.index(rows)
        self.assertEqual(vectors.method(vectors.EXACT + 1), "approximate")
        size = os.path.getsize(os.path.join(index.path, "index.faiss"))
        self.assertLess(size, 0.6 * index.embeddings.nbytes)
        queries = rows[::60] + 0.1
        similarities, found = index.search(queries, 10)
        exact, wanted = seed_tf.evaluation.nearest_neighbours(
            index.embeddings, queries, 10
        )
        recall = np.mean(
            [np.isin(a, b).mean() for a, b in zip(found, wanted, strict=True)]
        )
        self.assertGreater(recall, 0.9)
        unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        for i, row in enumerate(found):
            np.testing.assert_allclose(
                similarities[i], index.embeddings[row] @ unit[i], atol=1e-6
            )
        # More than lie in the clusters that are looked at.
        similarities, found = index.search(queries[:2], 6000)
        self.assertLen(set(found[1]), 6000)
        np.testing.assert_allclose(similarities[:, :10], exact[:2], atol=1e-6)


class ImageSearchTest(Folder):
    def setUp(self):
        super().setUp()
        self.found, _ = self.build()

    def test_an_image_of_the_index_finds_itself(self):
        images = search.ImageSearch(self.found)
        for row, name in enumerate(self.found.paths):
            data = (self.photos / name).read_bytes()
            similarities, rows = images.search(data, 3)
            self.assertEqual(rows[0], row)
            self.assertGreaterEqual(similarities[0], 1 - 1e-6)
            np.testing.assert_allclose(
                images.embed(data), self.found.embeddings[row], atol=1e-6
            )

    def test_what_is_no_image(self):
        images = search.ImageSearch(self.found)
        for data, why in {
            b"": "the file is empty",
            b"words": "not a JPEG",
            encoded(picture(0))[:-40]: "",
        }.items():
            with self.assertRaisesRegex(ValueError, f"readable image: .*{why}"):
                images.embed(data)

    def test_encoder_is_gone_or_another(self):
        moved = str(self.folder / "moved.keras")
        os.rename(self.encoder, moved)
        with self.assertRaisesRegex(ValueError, "pass its path as `encoder`"):
            search.ImageSearch(self.found)
        search.ImageSearch(self.found, moved)
        model = keras.saving.load_model(moved)
        model.weights[0].assign(model.weights[0] + 1)
        model.save(self.encoder)
        with self.assertRaisesRegex(
            ValueError, "with fingerprint .{25}. Received: .* fingerprint"
        ):
            search.ImageSearch(self.found)
        model = keras.saving.load_model(moved)  # only no weight differs
        other = seed_tf.Encoder(model.backbone, head=None, mean=(0.5,) * 3)
        other.save(self.encoder)
        with self.assertRaisesRegex(ValueError, "with fingerprint"):
            search.ImageSearch(self.found)

    def test_an_index_that_is_replaced_while_it_is_searched(self):
        images = search.ImageSearch(self.found)
        data = (self.photos / "b/c/4.jpg").read_bytes()
        before = images.search(data, 22)
        paths = list(self.found.paths)
        for path in self.photos.glob("[0-9].jpg"):
            path.unlink()
        second, _ = self.build()
        self.assertLen(second, 12)
        np.testing.assert_array_equal(images.search(data, 22), before)
        self.assertEqual(list(self.found.paths), paths)
        _, rows = search.ImageSearch(second).search(data, 1)
        self.assertEqual(second.paths[rows[0]], "b/c/4.jpg")

    def test_drawing(self):
        names = [str(self.photos / name) for name in ("$^$.jpg", "broken.jpg")]
        results = [self.found.others(3, 4), self.found.others(5, 2)]
        (self.photos / self.found.paths[results[0][1][1]]).unlink()
        file = io.BytesIO()
        draw(names, results, self.found).savefig(file)
        width, height = Image.open(file).size
        self.assertGreater(width, 1.8 * height)


def png_header(width, height):
    """A PNG file that announces a size, and holds next to nothing."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


class ServerTest(Folder):
    """One server, and so one trace, for all tests."""

    shared = None

    def fill(self, folder):
        if self.shared is None:
            keep = tempfile.TemporaryDirectory()
            self.addClassCleanup(keep.cleanup)
            super().fill(keep.name)
            found, _ = self.build()
            made = search.make_server(lambda: search.ImageSearch(found), port=0)
            thread = threading.Thread(target=made.serve_forever)
            thread.start()
            for end in (thread.join, made.server_close, made.shutdown):
                self.addClassCleanup(end)
            more = {"found": found, "server": made, "port": made.server_port}
            names = ("folder", "photos", "encoder", "index")
            type(self).shared = more | {x: getattr(self, x) for x in names}
        vars(self).update(self.shared)

    def restore(self, path):
        """Undoes, in the end, what a test does to a file."""
        self.addCleanup(path.write_bytes, path.read_bytes())

    def ask(self, path, data=None, method=None, headers=None):
        """Status, headers and body of an answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=data,
            method=method,
            headers=headers or {},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def json(self, path, data=None, status=200):
        code, headers, body = self.ask(path, data)
        self.assertEqual(code, status, body)
        self.assertEqual(headers["Content-Type"], "application/json")
        return json.loads(body)

    def refused(self, status, pattern, *arguments, **options):
        code, headers, body = self.ask(*arguments, **options)
        self.assertEqual(code, status)
        self.assertRegex(json.loads(body)["error"], pattern)
        self.json("/api/info")  # the next request is answered
        return headers

    def raw(self, data):
        """What comes back for bytes until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as client:
            client.sendall(data)
            return b"".join(iter(lambda: client.recv(1 << 16), b""))

    def statuses(self, *requests):
        """The statuses of the answers on one connection."""
        answers = self.raw(b"".join(requests))
        return [int(x) for x in re.findall(rb"HTTP/1.1 (\d{3}) ", answers)]

    def test_page_and_headers(self):
        for path, kind in {
            "/": "text/html",
            "/?image=3": "text/html",
            "/page.css": "text/css",
            "/page.js": "text/javascript",
            "/icon.svg": "image/svg",
        }.items():
            status, headers, body = self.ask(path)
            self.assertEqual(status, 200)
            self.assertStartsWith(headers["Content-Type"], kind)
            self.assertNotIn(b"http://", body.replace(b"http://www.w3", b""))
            self.assertNotIn(b"https://", body)
            policy = headers["Content-Security-Policy"]
            self.assertStartsWith(policy, "default-src 'none'")
            self.assertNotIn("unsafe", policy)
            self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
        self.assertNotIn("Python", headers["Server"])
        self.assertEqual(self.server._listener.getsockname()[0], "127.0.0.1")

    def test_info_and_random(self):
        info = self.json("/api/info")
        self.assertEqual(info["count"], 22)
        self.assertEqual(info["encoder"], self.encoder)
        images = self.json("/api/random?count=9")["images"]
        self.assertLen({image["number"] for image in images}, 9)
        images = self.json("/api/random?count=200")["images"]
        self.assertCountEqual([x["number"] for x in images], range(22))
        for image in images:
            path = self.found.paths[image["number"]]
            self.assertEqual(image["path"], path)

    def test_neighbours(self):
        found = self.json("/api/neighbours/4?k=6")
        self.assertEqual(found["query"]["path"], self.found.paths[4])
        self.assertCountEqual(found["milliseconds"], ["search"])
        products = self.found.embeddings @ self.found.embeddings[4]
        order = [i for i in np.argsort(-products, kind="stable") if i != 4]
        shown = [x["number"] for x in found["neighbours"]]
        self.assertEqual(shown, order[:6])
        np.testing.assert_allclose(
            [x["similarity"] for x in found["neighbours"]],
            products[shown],
            atol=2e-6,
        )

    def test_upload(self):
        data = (self.photos / self.found.paths[7]).read_bytes()
        found = self.json("/api/search?k=3", data)
        self.assertEqual(found["neighbours"][0]["number"], 7)
        self.assertGreaterEqual(found["neighbours"][0]["similarity"], 0.999999)
        self.assertCountEqual(found["milliseconds"], ["embed", "search"])
        for value in found["milliseconds"].values():
            self.assertGreater(value, 0)

    def test_thumbnails(self):
        big = picture(8, (900, 600))
        exif = Image.Exif()
        exif[0x0112] = 6
        gone = self.photos / self.found.paths[2]
        for path in (self.photos / "0.jpg", self.photos / "1.jpg", gone):
            self.restore(path)
        (self.photos / "0.jpg").write_bytes(encoded(big, "JPEG", exif=exif))
        image = self.json("/api/neighbours/0")["query"]
        self.assertEqual(image["path"], "0.jpg")
        status, headers, body = self.ask(image["thumbnail"])
        self.assertEqual(status, 200)
        self.assertIn("immutable", headers["Cache-Control"])
        shown = Image.open(io.BytesIO(body))
        self.assertEqual((shown.format, shown.size), ("JPEG", (256, 256)))
        upright = big.rotate(-90, expand=True)
        wanted = upright.crop((0, 150, 600, 750)).resize((256, 256))
        self.assertLess(np.abs(np.int32(shown) - np.int32(wanted)).mean(), 4)
        tag = headers["ETag"]
        status, headers, body = self.ask(
            image["thumbnail"], headers={"If-None-Match": tag}
        )
        self.assertEqual((status, body), (304, b""))
        # Another index is another address.
        (self.photos / "1.jpg").write_bytes(encoded(picture(3), "JPEG"))
        other, _ = self.build(self.create_tempdir().full_path)
        self.assertNotEqual(other.keys[1], self.found.keys[1])
        gone.unlink()
        self.refused(404, "gone or damaged", "/thumbnail/2")

    def test_only_numbers_name_files(self):
        for path in (
            *("/etc/passwd", "/thumbnail/../index.json", "/page.html"),
            *("/thumbnail/%2e%2e%2findex.json", "/thumbnail/0/../1", "/api"),
            *("/thumbnail/-1", "/thumbnail/1.5", "/thumbnail/", "/é%00"),
            *("/thumbnail/٣", "/page/page.css", "/api/neighbours/x"),
        ):
            with self.subTest(path):
                path = urllib.parse.quote(path, safe="/%.")
                self.refused(404, "no such page", path)
        for path in ("/thumbnail/22", f"/api/neighbours/{10**17}"):
            self.refused(404, "There is no image .* has 22", path)

    def test_uploads_that_are_no_picture(self):
        good = encoded(picture(0, (300, 200)), "JPEG")
        for data, pattern in (
            (b"", "the file is empty"),
            (b"\0" * 1000, "not a JPEG, PNG, WebP, GIF, BMP, TIFF"),
            (np.random.default_rng(0).bytes(100_000), "not a JPEG"),
            (good[: len(good) // 4 * 3], "truncated"),
            (png_header(12_000, 9_000), "12000 x 9000 pixels, more than"),
            (png_header(20_000, 20_000), "400000000 pixels"),
            (b"<script>alert(1)</script>", "not a JPEG"),
        ):
            with self.subTest(pattern):
                self.refused(400, pattern, "/api/search", data)
        self.assertLen(self.json("/api/search?k=5", good)["neighbours"], 5)

    def test_uploads_that_are_too_large(self):
        with mock.patch.object(server, "MAX_UPLOAD", 1_000_000):
            self.refused(
                413,
                "2.0 MB. Expected at most 1.0",
                "/api/search",
                bytes(2_000_000),
            )
        answer = self.raw(
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 99999999999\r\n\r\n123"
        )
        self.assertStartsWith(answer, b"HTTP/1.1 413 ")

    def test_no_body_is_taken_for_a_request(self):
        hidden = b"GET /thumbnail/0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        length = b"Content-Length: %d\r\n" % len(hidden)
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden)
        local, chunked = (
            b"Host: localhost\r\n",
            b"Transfer-Encoding: chunked\r\n",
        )
        last = b"GET /page.css HTTP/1.1\r\nHost: localhost\r\n"
        last += b"Connection: close\r\n\r\n"
        for line, headers, body, expected in (
            (b"POST /api/search?k=0", local + length, hidden, [400, 200]),
            (b"POST /api/search", local + length, hidden, [400, 200]),
            (b"POST /api/search", local + chunked, chunks, [400, 200]),
            (b"POST /nowhere", local + length, hidden, [404, 200]),
            (b"PUT /api/search", local + length, hidden, [405, 200]),
            (b"GET /page.css", local + length, hidden, [200, 200]),
            (b"GET /page.css", local + chunked, chunks, [200, 200]),
            (b"GET /nowhere", local + length, hidden, [404, 200]),
            (b"GET /", b"Host: a.example\r\n" + length, hidden, [403, 200]),
            (
                b"POST /api/search",
                local + length + b"Origin: http://a.example\r\n",
                hidden,
                [403, 200],
            ),
            # Whatever may be understood in two ways ends the connection.
            (b"POST /api/search", local + length + chunked, chunks, [400]),
            (b"POST /api/search", local + chunked + length, hidden, [400]),
            (b"GET /", local + chunked + length, hidden, [400]),
            (
                b"POST /api/search",
                local + length + b"Content-Length: 0\r\n",
                hidden,
                [400],
            ),
            (
                b"POST /api/search",
                local + b"Content-Length: 0, 5\r\n",
                hidden,
                [400],
            ),
            (b"POST /api/search", local + 2 * chunked, chunks, [400]),
            (
                b"POST /api/search",
                local + b"Transfer-Encoding: identity\r\n" + length,
                hidden,
                [400],
            ),
            (b"GET /page.css", local + b"Host: a.example\r\n", b"", [400]),
            (b"GET /page.css", 2 * local, b"", [400]),
            (b"GET /page.css", b"", b"", [400]),
        ):
            with self.subTest(line + headers):
                request = b"%s HTTP/1.1\r\n%s\r\n%s" % (line, headers, body)
                self.assertEqual(self.statuses(request, last), expected)

    def test_bad_requests(self):
        start = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
        get = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
        for data in (
            b"nonsense\r\n\r\n",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",  # TLS
            b"GET /" + b"a" * 70_000,
            b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET / / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            get + b"X: " + b"a" * 70_000,
            get + b"X : 1\r\n\r\n",
            get + b"X: \0\r\n\r\n",
            start + b"Content-Length: -5\r\n\r\n",
            start + b"Content-Length: +5\r\n\r\nabcde",
            start + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
            start + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
            start + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        ):
            with (
                self.subTest(data[:70]),
                self.assertLogs(level="WARNING") as logs,
            ):
                self.assertEqual(self.statuses(data), [400])
                (line,) = logs.output
                self.assertNotIn("\n", line)
        for target in (b"*", b"//a.example/", b"http://localhost/", b"/%0d%0a"):
            with self.subTest(target), self.assertNoLogs(level="WARNING"):
                request = b"GET %s HTTP/1.1\r\nHost: localhost\r\n" % target
                request += b"Connection: close\r\n\r\n"
                self.assertEqual(self.statuses(request), [404])
        self.json("/api/info")
        for query in ("k=0", "k=201", "k=x", "k=-1", "k=1e3", "k=" + "9" * 50):
            self.refused(
                400, "number from 1 to 200", f"/api/neighbours/1?{query}"
            )
        self.refused(400, "`count`", "/api/random?count=0")
        self.refused(404, "no such", f"/api/neighbours/{'9' * 5000}")

    def test_hang_ups(self):
        start = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
        length = b"Content-Length: 50\r\n\r\n"
        for data in (
            *(b"", b"GET", start, start + length, start + length + b"short"),
            b"GET /thumbnail/1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ):
            with self.subTest(data), self.assertNoLogs(level="WARNING"):
                for reset in (False, True):
                    client = socket.create_connection(("127.0.0.1", self.port))
                    client.sendall(data)
                    if reset:
                        client.setsockopt(
                            *(socket.SOL_SOCKET, socket.SO_LINGER),
                            struct.pack("ii", 1, 0),
                        )
                    client.close()
                    self.json("/api/info")

    def test_slow_clients(self):
        """A slow client is ended, and meanwhile holds nobody up."""
        start = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
        with mock.patch.object(server, "TIMEOUT", 0.3):
            clients = []
            for data in 50 * (b"G", start + b"Content-Length: 9\r\n\r\n1"):
                client = socket.create_connection(("127.0.0.1", self.port), 30)
                self.addCleanup(client.close)
                client.sendall(data)
                clients.append(client)
            data = (self.photos / self.found.paths[7]).read_bytes()
            self.json("/api/search?k=3", data)
            for client in clients[1::2]:
                answer = b"".join(iter(lambda c=client: c.recv(1 << 16), b""))
                self.assertStartsWith(answer, b"HTTP/1.1 408 ")

    def test_large_pictures_hold_nobody_up(self):
        data = (self.photos / self.found.paths[7]).read_bytes()
        square, started = EncodedImage.square, threading.Event()
        release = threading.Event()
        self.addCleanup(release.set)

        def slow(image, *sizes):
            if image.width == 90:
                started.set()
                release.wait(60)
            return square(image, *sizes)

        large = encoded(picture(0, (90, 80)))
        with (
            mock.patch.object(EncodedImage, "square", slow),
            mock.patch("seed_tf.search.index.LARGE", 80 * 80),
            concurrent.futures.ThreadPoolExecutor(6) as pool,
        ):
            asked = [
                pool.submit(self.json, "/api/search", large) for _ in range(6)
            ]
            started.wait(60)
            self.json("/api/search?k=3", data)
            release.set()
            for answer in asked:
                self.assertLen(answer.result()["neighbours"], 22)

    def test_scans_of_a_jpeg_are_bounded(self):
        good = encoded(picture(0, (4000, 3000)), "JPEG", progressive=True)
        place = good.rfind(b"\xff\xda")
        scan = good[place : good.rfind(b"\xff\xd9")]
        bomb = good[:place] + 1000 * scan + b"\xff\xd9"
        self.refused(400, "scans of 4000 x 3000", "/api/search", bomb)
        self.json("/api/search", good)

    def test_methods(self):
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            headers = self.refused(405, method, "/", method=method)
            self.assertCountEqual(headers["Allow"].split(", "), ["GET", "HEAD"])
        status, headers, body = self.ask("/", method="HEAD")
        self.assertEqual((status, body), (200, b""))
        self.refused(405, "Expected POST", "/api/search")
        self.refused(405, "Expected GET", "/api/info", b"data")

    def test_other_sites(self):
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil:1"):
            self.refused(
                403, "this machine only", "/api/info", headers={"Host": host}
            )
        for host in ("localhost", "localhost:1234", "127.0.0.1"):
            for origin in ({}, {"Origin": f"http://{host}"}):
                headers = {"Host": host, **origin}
                status, _, _ = self.ask("/api/info", headers=headers)
                self.assertEqual(status, 200)
        here = f"http://localhost:{self.port}"
        for origin in ("http://evil.example", "null", "http://localhost", here):
            self.refused(
                *(403, "other sites", "/api/search", b"a picture"),
                headers={"Origin": origin},
            )

    def test_failures_inside_are_answered(self):
        with mock.patch.object(
            self.found, "others", side_effect=RuntimeError("secret")
        ):
            status, _, body = self.ask("/api/neighbours/1")
        self.assertEqual(status, 500)
        self.assertNotIn(b"secret", body)
        self.json("/api/neighbours/1")

    def test_many_at_once(self):
        wanted = {
            row: self.json(f"/api/neighbours/{row}")["neighbours"]
            for row in range(22)
        }
        data = {
            row: (self.photos / self.found.paths[row]).read_bytes()
            for row in wanted
        }

        def visit(i):
            row = i % 22
            kind = i % 4
            if kind == 0:
                found = self.json("/api/search?k=2", data[row])
                return found["neighbours"][0]["number"] == row
            if kind == 1:
                return self.ask(f"/thumbnail/{row}")[0] == 200
            if kind == 2:
                return self.ask("/api/search", b"rubbish")[0] == 400
            found = self.json(f"/api/neighbours/{row}")
            return found["neighbours"] == wanted[row]

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            self.assertTrue(all(pool.map(visit, range(200))))

    def test_one_connection_for_several_requests(self):
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.addCleanup(client.close)
        for _ in range(2):
            for method, path, data, status in (
                ("GET", "/api/info", None, 200),
                ("POST", "/api/search", b"rubbish", 400),
                ("GET", "/thumbnail/1", None, 200),
            ):
                client.request(method, path, data)
                answer = client.getresponse()
                answer.read()
                self.assertEqual(answer.status, status)

    def test_port_is_taken(self):
        with self.assertRaisesRegex(OSError, f"Port {self.port} .*`port`"):
            search.make_server(
                lambda: self.fail("loaded before the port was tried"),
                self.port,
            )


class LauncherTest(Folder):
    @pytest.mark.slow
    def test_index_and_query_and_errors(self):
        index, image = f"--index={self.index}", f"--image={self.photos}/2.jpg"
        drawing = self.folder / "neighbours.png"
        made = command(
            *("search", "index", index, f"--data_dir={self.photos}"),
            *(f"--encoder={self.encoder}", "--image_size=32"),
        )
        self.assertIn("22 images in the index", made)
        self.assertRegex(
            made,
            "2 files cannot be read and were left out:\n"
            "  'a.*nb.jpg': its name has a line break\n"
            "  broken.jpg: not a JPEG",
        )
        found = command(
            *("search", "query", index, image, "--k=3"),
            *(f"--image={self.photos}/b/c/1.jpg", f"--output={drawing}"),
        )
        self.assertRegex(
            found,
            r"(?s)2.jpg\n\nrank +similarity +path\n.*1 +1.0000 +2.jpg\n.*"
            r"1.jpg\n\n.*1 +1.0000 +b/c/1.jpg\n2 +\d",
        )
        width, height = Image.open(drawing).size
        self.assertBetween(width / height, 1.2, 2)
        for words, wanted in [
            ([], "Expected one of index, query, serve"),
            (["find"], "'find'.* Expected one of index, query, serve"),
            (["querry"], "Did you mean 'query'"),
            (["query", "serve", index, image], "only flags.*'serve'"),
            (["index", index], "--data_dir and --encoder must be given"),
            (["query"], "--index and --image must be given"),
            (["serve"], "--index must be given"),
            (["serve", f"--index={self.folder}"], "holds no index"),
            (
                ["query", index, f"--image={self.photos}/broken.jpg"],
                "'.*broken.jpg': Not a readable image: not a JPEG",
            ),
            (
                ["query", index, "--image=/nowhere.jpg"],
                "No such file.*nowhere.jpg",
            ),
        ]:
            printed = command("search", *words, code=1)
            self.assertRegex(printed, f"Error: .*{wanted}")

    @pytest.mark.slow
    def test_serve_until_interrupted(self):
        self.build()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "seed_tf", "search", "serve"),
                *(f"--index={self.index}", "--port=0"),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # Where the tests run in the background it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.addCleanup(process.kill)
        with process:
            url = process.stdout.readline().split()[0]
            data = (self.photos / "4.jpg").read_bytes()
            with urllib.request.urlopen(f"{url}api/search", data) as answer:
                found = json.load(answer)
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=60)
        self.assertEqual(found["neighbours"][0]["path"], "4.jpg")
        self.assertEqual(printed, "\nStopped.\n")
        self.assertEqual(process.returncode, 0)


if __name__ == "__main__":
    absltest.main()
