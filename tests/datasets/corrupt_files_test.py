"""Bad files among good ones: skipped, counted, named, and never too many."""

import base64
import io
import os
import struct
import tempfile
import zipfile
import zlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from PIL import Image

from seed_tf import datasets, views

GOOD = 1000


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(seed, side=48):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.BICUBIC)


def numbered(i):
    """An 8 x 8 PNG of one colour, which tells its number."""
    colour = (i // 256, i % 256, 77)
    return encoded(Image.new("RGB", (8, 8), colour), "PNG")


def numbers(images):
    """The numbers of images made by `numbered`."""
    flat = np.asarray(images).reshape(len(images), -1, 3).astype(int)
    return flat[:, 0, 0] * 256 + flat[:, 0, 1]


def png_header(width, height):
    """A PNG file that announces a size, and holds next to nothing."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(bytes(1000))),
            chunk(b"IEND", b""),
        ]
    )


def zip_file():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", b"not here")
    return file.getvalue()


def bad_files():
    """Names, contents, and what the reason must say."""
    jpeg, png = encoded(picture(0), "JPEG"), encoded(picture(0), "PNG")
    noise = np.random.default_rng(0).bytes(5000).replace(b"\xff\xd9", b"")
    start = jpeg.index(b"\xff\xda") + 12
    return {
        "empty.jpg": (b"", "empty"),
        "truncated.jpg": (jpeg[: len(jpeg) * 3 // 4], "truncated"),
        "truncated.png": (png[: len(png) // 2], "truncated"),
        "text.jpg": (b"These are words.", "not a JPEG"),
        "page.png": (b"<!DOCTYPE html><html>404</html>", "not a JPEG"),
        "archive.webp": (zip_file(), "not a JPEG"),
        "bomb.png": (png_header(60000, 60000), "pixels"),
        "noise.jpg": (jpeg[:start] + noise, "truncated"),
    }


class ManyFilesTest(parameterized.TestCase):
    """A folder of 1,000 good files and 8 bad ones, made once."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = folder.name
        files = {f"{i:04}.png": numbered(i) for i in range(GOOD)}
        files |= {name: data for name, (data, _) in bad_files().items()}
        for name, data in files.items():
            with open(os.path.join(cls.root, name), "wb") as file:
                file.write(data)

    def load(self, **options):
        options = {"image_size": 8, "batch_size": 24} | options
        return datasets.load("folder", data_dir=self.root, **options)

    def assert_names_the_bad_files(self, corrupt):
        found = {os.path.basename(k): v for k, v in corrupt.files.items()}
        expected = bad_files()
        self.assertSameElements(found, expected)
        for name, (_, reason) in expected.items():
            self.assertIn(reason, found[name], name)
        corrupt.check()

    def test_evaluation_leaves_them_out(self):
        corrupt = datasets.CorruptFiles()
        dataset = self.load(shuffle=False, corrupt=corrupt)
        with self.assertLogs("absl", "WARNING") as logs:
            batches = list(dataset)
        images = np.concatenate(batches)
        np.testing.assert_array_equal(numbers(images), np.arange(GOOD))
        self.assertLen(batches, int(dataset.cardinality()))
        self.assert_names_the_bad_files(corrupt)
        skipped = [x for x in logs.output if "Skipped" in x]
        self.assertLen(skipped, 8)

    def test_training_uses_all_others_and_keeps_its_shapes(self):
        corrupt = datasets.CorruptFiles()
        dataset = self.load(corrupt=corrupt, epochs=2)
        self.assertEqual(dataset.element_spec.shape, (24, 8, 8, 3))
        with self.assertLogs("absl", "WARNING") as logs:
            images = [numbers(batch) for batch in dataset]
        self.assertLen(images, 2 * 42)
        for epoch in (images[:42], images[42:]):
            self.assertSameElements(np.concatenate(epoch), range(GOOD))
        self.assert_names_the_bad_files(corrupt)
        # Once per file, not once per epoch.
        self.assertLen([x for x in logs.output if "Skipped" in x], 8)

    def test_a_bad_row_gives_way_to_the_next_good_one(self):
        """Nothing else in the batches moves; and so it is after a resume."""
        plain = [x.numpy() for x in self.load(labels=False)]
        order = [numbers(x) for x in plain]
        moved = 0
        for batch in order:
            repeated = np.flatnonzero(batch == np.roll(batch, -1))
            moved += len(repeated)
            self.assertLen(set(batch), 24 - len(repeated))
        self.assertEqual(moved, 8)
        resumed = list(self.load(first_step=30))
        np.testing.assert_array_equal(resumed, plain[30:])

    def test_crops(self):
        corrupt = datasets.CorruptFiles()
        crops = self.load(
            views=views.moco_v2(8), num_views=2, corrupt=corrupt, labels=False
        )
        self.assertEqual(crops.element_spec.shape, (24, 2, 8, 8, 3))
        images = np.concatenate(list(crops))
        for view in (0, 1):
            self.assertSameElements(numbers(images[:, view]), range(GOOD))
        self.assert_names_the_bad_files(corrupt)

    def test_too_many(self):
        corrupt = datasets.CorruptFiles(max_fraction=0.005)
        message = (
            r"6 of 1008 images cannot be read, more than the 0.500% allowed: "
            r".*\.(jpg|png|webp) \(.*`max_corrupt_fraction`"
        )
        dataset = self.load(corrupt=corrupt, shuffle=False)
        with self.assertRaises(tf.errors.InvalidArgumentError) as raised:
            for _ in dataset:
                pass
        # A line that a person can read, not a Python traceback.
        self.assertIn("images cannot be read, more", str(raised.exception))
        self.assertNotIn("Traceback", str(raised.exception))
        with self.assertRaisesRegex(
            ValueError, message.replace("6 of", r"[678] of")
        ):
            corrupt.check()

    def test_without_a_counter_the_default_limit_holds(self):
        # 8 of 208 is more than 1 %.
        dataset = self.load(
            held_out=800, batch_size=8, shuffle=False, drop_remainder=False
        )
        self.assertEqual(int(dataset.cardinality()), 26)
        for _ in dataset:  # but the data set is all 1,008
            pass


class FewFilesTest(parameterized.TestCase):
    def write(self, files):
        root = self.create_tempdir().full_path
        for name, data in files.items():
            with open(os.path.join(root, name), "wb") as file:
                file.write(data)
        return root

    def load(self, files, **options):
        options = {
            "image_size": 8,
            "shuffle": False,
            "corrupt": datasets.CorruptFiles(max_fraction=1.0),
        } | options
        self.corrupt = options["corrupt"]
        return datasets.load("folder", data_dir=self.write(files), **options)

    def reasons(self):
        files = self.corrupt.files.items()
        return {os.path.basename(k): v for k, v in files}

    @parameterized.named_parameters(
        ("png", "a.png", png_header(9460, 9460)),
        ("gif", "a.gif", b"GIF89a\xff\xff\xff\xff\x00\x00\x00"),
        (
            "webp",
            "a.webp",
            b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0"
            + b"\xff\x3f\0\xff\x3f\0"
            + b"VP8 \0\0\0\0",
        ),
        (
            "bmp",
            "a.bmp",
            b"BM"
            + struct.pack("<IHHI", 54, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, 30000, 30000, 1, 24, *[0] * 6),
        ),
    )
    def test_decompression_bombs_are_not_decoded(self, name, data):
        dataset = self.load({name: data, "b.png": numbered(1)})
        before = peak_mb()
        (images,) = dataset
        self.assertLen(images, 1)
        self.assertIn(name, self.reasons())
        self.assertLess(peak_mb() - before, 100)

    def test_the_limit_is_pils(self):
        # 8,946 pixels too many, and none: both are damaged, one is looked at.
        bad = {
            f"{name}.png": png_header(side, side)
            for name, side in (("a", 9460), ("b", 9459))
        }
        list(self.load({**bad, "c.png": numbered(1)}))
        self.assertIn("89,478,485", self.reasons()["a.png"])
        self.assertNotIn("89,478,485", self.reasons()["b.png"])

    def test_a_link_to_nowhere_and_a_folder_named_like_an_image(self):
        root = self.write({"c.png": numbered(3)})
        os.mkdir(os.path.join(root, "a.jpg"))
        os.symlink("nowhere", os.path.join(root, "b.jpg"))
        corrupt = datasets.CorruptFiles(1.0)
        (images,) = datasets.load(
            "folder",
            data_dir=root,
            image_size=8,
            shuffle=False,
            corrupt=corrupt,
        )
        np.testing.assert_array_equal(numbers(images), [3])
        self.assertSameElements(
            [os.path.basename(x) for x in corrupt.files], ["a.jpg", "b.jpg"]
        )

    def test_a_batch_without_a_good_image(self):
        files = {"a.jpg": b"", "b.jpg": b"", "c.png": numbered(1)}
        dataset = self.load(files, batch_size=2, drop_remainder=True)
        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError, "No image of a batch"
        ):
            list(dataset)
        # In evaluation such a batch is empty, and the number of batches holds.
        batches = list(self.load(files, batch_size=2))
        self.assertEqual([len(x) for x in batches], [0, 1])

    def test_labels_stay_with_their_images(self):
        root = self.create_tempdir().full_path
        for label in range(3):
            os.mkdir(os.path.join(root, str(label)))
            for i in range(4):
                data = b"" if i == label else numbered(10 * label + i)
                path = os.path.join(root, str(label), f"{i}.png")
                with open(path, "wb") as file:
                    file.write(data)
        for drop_remainder, n in ((True, 12), (False, 9)):
            dataset = datasets.load(
                "folder",
                data_dir=root,
                image_size=8,
                batch_size=6,
                labels=True,
                drop_remainder=drop_remainder,
                corrupt=datasets.CorruptFiles(1.0),
            )
            images, labels = zip(*dataset, strict=True)
            labels = np.concatenate(labels)
            self.assertLen(labels, n)
            np.testing.assert_array_equal(
                numbers(np.concatenate(images)) // 10, labels
            )


def peak_mb():
    with open("/proc/self/status") as file:
        line = next(x for x in file if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


class OtherSourcesTest(parameterized.TestCase):
    def test_tsv(self):
        root = self.create_tempdir().full_path
        rows = [
            b"k\t%d\t%s\n" % (i, base64.b64encode(numbered(i)))
            for i in range(6)
        ]
        rows[2] = b"k\t2\t" + base64.b64encode(b"words") + b"\n"
        rows[3] = b"k\n"
        rows[4] = b"k\tfour\t" + base64.b64encode(numbered(4)) + b"\n"
        path = os.path.join(root, "train.tsv")
        with open(path, "wb") as file:
            file.writelines(rows)
        corrupt = datasets.CorruptFiles(0.5)
        dataset = datasets.load(
            "tsv", data_dir=root, image_size=8, shuffle=False, corrupt=corrupt
        )
        (images,) = dataset
        np.testing.assert_array_equal(numbers(images), [0, 1, 5])
        self.assertSameElements(
            corrupt.files, [f"{path} row {i}" for i in (2, 3, 4)]
        )
        self.assertIn("1 columns", corrupt.files[f"{path} row 3"])

    def test_tfds(self):
        root = self.create_tempdir().full_path

        def examples():
            for i in range(10):
                yield i, {"image": io.BytesIO(numbered(i))}

        tfds.dataset_builders.store_as_tfds_dataset(
            name="spoilt",
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(encoding_format="png")}
            ),
            split_datasets={"train": examples()},
            data_dir=root,
            disable_shuffling=True,
        )
        folder = os.path.join(root, "spoilt", "1.0.0")
        (name,) = (x for x in os.listdir(folder) if "tfrecord" in x)
        path = os.path.join(folder, name)
        records = [x.numpy() for x in tf.data.TFRecordDataset(path)]
        records[7] = records[7].replace(b"PNG", b"GNP")
        with tf.io.TFRecordWriter(path) as file:
            for record in records:
                file.write(record)
        corrupt = datasets.CorruptFiles(0.1)
        dataset = datasets.load(
            "spoilt",
            data_dir=root,
            image_size=8,
            shuffle=False,
            corrupt=corrupt,
        )
        (images,) = dataset
        np.testing.assert_array_equal(
            numbers(images), [i for i in range(10) if i != 7]
        )
        self.assertEqual(list(corrupt.files), [f"{path} record 7"])


class CorruptFilesTest(parameterized.TestCase):
    def test_limit(self):
        corrupt = datasets.CorruptFiles(max_fraction=0.02)
        corrupt.size = 100
        corrupt.check()
        for name in "abb":
            corrupt.add(name, "damaged")
        corrupt.check()
        self.assertEqual(corrupt.files, {"a": "damaged", "b": "damaged"})
        corrupt.add("c", "damaged")
        with self.assertRaisesRegex(
            ValueError, r"3 of 100 .* 2.000% .*: a \(damaged\), b .*, c "
        ):
            corrupt.check()

    def test_the_first_twenty_are_listed(self):
        corrupt = datasets.CorruptFiles(max_fraction=0.0)
        corrupt.size = 100
        for i in range(25):
            corrupt.add(f"{i}.jpg", "damaged")
        with self.assertRaisesRegex(
            ValueError, r"19.jpg \(damaged\) and 5 more\. Repair"
        ):
            corrupt.check()

    @parameterized.parameters(-0.1, 1.1, float("nan"))
    def test_fraction(self, fraction):
        with self.assertRaisesRegex(ValueError, f"max_fraction={fraction}"):
            datasets.CorruptFiles(fraction)


if __name__ == "__main__":
    absltest.main()
