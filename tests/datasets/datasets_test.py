"""Data sets against PIL and scikit-learn, from files made on the spot."""

import base64
import gc
import io
import os
import tempfile
import warnings
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

import seed_tf
from seed_tf import datasets, views
from seed_tf.datasets import sources
from seed_tf.datasets.decoding import FORMATS, EncodedImage
from seed_tf.datasets.folders import ImageFolder
from seed_tf.trainer import Trainer


def picture(height, width, seed=0):
    """A smooth RGB image, so that resampling has one right answer."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def square(image, size, resize=None):
    """torchvision's Resize and CenterCrop, as documented, by PIL."""
    resize = resize or size
    shorter = min(image.size)
    width, height = (side * resize // shorter for side in image.size)
    image = image.convert("RGB").resize((width, height), Image.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def gather(dataset):
    """All batches of (images, labels), as two arrays."""
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


class DigitsTest(parameterized.TestCase):
    def test_images_are_the_original_ones_in_two_disjoint_halves(self):
        pixels, _ = load_digits(return_X_y=True)
        scaled = np.round(pixels * (255 / 16)).astype(np.uint8)
        parts = [datasets.digits(s, image_size=8) for s in ("train", "test")]
        self.assertEqual([len(x) for x, _ in parts], [1297, 500])
        images = np.concatenate([x for x, _ in parts])
        self.assertEqual(images.dtype, np.uint8)
        for channel in range(3):
            flat = images[..., channel].reshape(-1, 64)
            # The same 1,797 rows, each as often as before: none is in both.
            np.testing.assert_array_equal(
                flat[np.lexsort(flat.T)], scaled[np.lexsort(scaled.T)]
            )

    def test_split_is_stratified_and_fixed(self):
        _, labels = datasets.digits("test")
        self.assertEqual(labels.dtype, np.int64)
        counts = np.bincount(labels)
        self.assertLessEqual(counts.max() - counts.min(), 3)
        # Results compare across machines only as long as this holds.
        self.assertEqual(int(np.arange(500) @ labels), 561331)
        _, other = datasets.digits("test", seed=1)
        self.assertFalse(np.array_equal(labels, other))

    def test_resizing_is_bilinear(self):
        small, _ = datasets.digits("test", image_size=8)
        large, _ = datasets.digits("test", image_size=20)
        self.assertEqual(large.shape, (500, 20, 20, 3))
        for i in range(5):
            expected = Image.fromarray(small[i]).resize(
                (20, 20), Image.BILINEAR
            )
            difference = np.asarray(expected, int) - large[i]
            self.assertLessEqual(np.abs(difference).max(), 2)

    def test_unknown_split(self):
        with self.assertRaisesRegex(ValueError, "split='val'"):
            datasets.digits("val")


class LoadTest(parameterized.TestCase):
    def load(self, **options):
        return datasets.load("digits", image_size=8, labels=True, **options)

    def test_in_order_and_whole(self):
        dataset = self.load(split="test", shuffle=False, batch_size=64)
        self.assertEqual(int(dataset.cardinality()), 8)
        images, labels = gather(dataset)
        expected, numbers = datasets.digits("test", image_size=8)
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, numbers)

    def test_epochs_are_shuffled_by_the_seed(self):
        dataset = self.load(epochs=2)
        self.assertEqual(int(dataset.cardinality()), 2 * 5)
        images, labels = gather(dataset)
        first, second = images[: 5 * 256], images[5 * 256 :]
        self.assertFalse(np.array_equal(first, second))
        self.assertFalse(np.array_equal(first, gather(self.load(seed=1))[0]))
        # Labels went with their images.
        originals = datasets.digits("train", image_size=8)
        known = {
            image.tobytes(): label
            for image, label in zip(*originals, strict=True)
        }
        for image, label in zip(images, labels, strict=True):
            self.assertEqual(known[image.tobytes()], label)
        self.assertGreater(len({x.tobytes() for x in first}), 1200)

    def test_without_labels_and_with_remainder(self):
        dataset = datasets.load(
            "digits", image_size=8, batch_size=1000, drop_remainder=False
        )
        shapes = [batch.shape for batch in dataset]
        self.assertEqual(shapes, [(1000, 8, 8, 3), (297, 8, 8, 3)])

    def test_one_batch_must_fit(self):
        with self.assertRaisesRegex(ValueError, "batch_size=1298, 1297 images"):
            self.load(batch_size=1298)
        kept = self.load(batch_size=1298, shuffle=False)
        self.assertEqual(int(kept.cardinality()), 1)

    def test_centre_of_resized_digits(self):
        dataset = datasets.load(
            "digits", image_size=8, resize=12, shuffle=False, batch_size=9
        )
        large, _ = datasets.digits("train", image_size=12)
        np.testing.assert_array_equal(
            next(iter(dataset)), large[:9, 2:10, 2:10]
        )

    @parameterized.parameters(
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_views": 0}, "num_views=0"),
        ({"first_step": 6}, r"\[0, 5\].*first_step=6"),
        ({"first_step": -1}, "first_step=-1"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\)"),
        ({"shard": (0, 3)}, r"shard=\(0, 3\), batch_size=256"),
        ({"subset": "test"}, "subset='test'"),
        ({"subset": "held_out"}, "subset='held_out', held_out=0"),
        ({"held_out": 1297}, "1297.*held_out=1297"),
        ({"held_out": 1100}, "batch_size=256, 197 images"),
    )
    def test_arguments(self, options, message):
        with self.assertRaisesRegex(ValueError, message):
            self.load(**options)

    @parameterized.parameters((0, None), (8, 7))
    def test_sizes(self, image_size, resize):
        with self.assertRaisesRegex(ValueError, f"image_size={image_size}"):
            datasets.load("digits", image_size=image_size, resize=resize)

    def test_unknown_name(self):
        with self.assertRaisesRegex(ValueError, "Did you mean 'cifar10'"):
            datasets.load("cifar1")


class FolderTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = self.create_tempdir().full_path

    def write(self, name, data):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    def write_all(self, *names):
        for name in names:
            self.write(name, encoded(picture(9, 9), "PNG"))

    def load(self, **options):
        options = {
            "image_size": 24,
            "batch_size": 4,
            "shuffle": False,
        } | options
        return datasets.load("folder", data_dir=self.root, **options)

    @parameterized.parameters(
        ("jpg", "JPEG", "RGB"),
        ("JPEG", "JPEG", "L"),
        ("jpeg", "JPEG", "CMYK"),
        ("png", "PNG", "RGB"),
        ("png", "PNG", "RGBA"),
        ("png", "PNG", "L"),
        ("png", "PNG", "LA"),
        ("png", "PNG", "P"),
        ("png", "PNG", "1"),
        ("bmp", "BMP", "RGB"),
        ("bmp", "BMP", "L"),
        ("bmp", "BMP", "P"),
        ("gif", "GIF", "P"),
        ("webp", "WEBP", "RGB"),
        ("webp", "WEBP", "RGBA"),
        ("jfif", "JPEG", "RGB"),
        ("jpe", "JPEG", "L"),
        ("tif", "TIFF", "RGB"),
        ("tiff", "TIFF", "CMYK"),
        ("tiff", "TIFF", "LA"),
        ("avif", "AVIF", "RGB"),
        ("heic", "HEIF", "RGB"),
    )
    def test_formats(self, ending, kind, mode):
        if kind not in FORMATS:
            self.skipTest(f"PIL cannot read {kind} here")
        if kind == "HEIF":
            pytest.importorskip("pillow_heif").register_heif_opener()
        for i, (height, width) in enumerate([(60, 90), (71, 24), (20, 33)]):
            image = picture(height, width, i).convert(mode)
            if mode in ("RGBA", "LA"):
                image.putalpha(picture(height, width, 9).convert("L"))
            self.write(f"{i}.{ending}", encoded(image, kind))
        (images,) = self.load()
        self.assertEqual(images.shape, (3, 24, 24, 3))
        for i, image in enumerate(images.numpy()):
            with Image.open(os.path.join(self.root, f"{i}.{ending}")) as file:
                np.testing.assert_array_equal(square(file, 24), image)

    def test_sixteen_bits_are_scaled(self):
        """PIL's own conversion clips them: nearly all would be white."""
        ramp = np.linspace(0, 65535, 24 * 24).reshape(24, 24)
        image = Image.fromarray(ramp.astype(np.uint16))
        self.write("a.png", encoded(image, "PNG"))
        (images,) = self.load()
        expected = np.repeat(ramp[..., None], 3, -1) / 257
        self.assertLessEqual(np.abs(images[0] - expected).max(), 1.0)

    def test_transparent_palette(self):
        image = picture(24, 24).convert("P")
        self.write(
            "a.png", encoded(image, "PNG", transparency=bytes(range(99)))
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # PIL's, on every such image
            (images,) = self.load()
        np.testing.assert_array_equal(images[0], image.convert("RGB"))

    def test_unknown_range(self):
        """32-bit numbers have no white; clipping would invent one."""
        for i, dtype in enumerate(("float32", "int32")):
            pixels = np.linspace(0, 9, 30 * 30).reshape(30, 30).astype(dtype)
            data = encoded(Image.fromarray(pixels), "TIFF")
            with self.assertRaisesRegex(ValueError, "32-bit numbers"):
                EncodedImage(data).square(24, 24)
            self.write(f"{i}.tif", data)
        self.write("a.png", encoded(picture(24, 24), "PNG"))
        corrupt = datasets.CorruptFiles(1.0)
        (images,) = self.load(corrupt=corrupt)
        self.assertLen(images, 1)
        self.assertLen(corrupt.files, 2)

    def test_sixteen_bit_tiff(self):
        ramp = np.linspace(0, 65535, 24 * 24).reshape(24, 24)
        data = encoded(Image.fromarray(ramp.astype(np.uint16)), "TIFF")
        difference = EncodedImage(data).square(24, 24) - ramp[..., None] / 257
        self.assertLessEqual(np.abs(difference).max(), 1)

    @parameterized.product(kind=("JPEG", "PNG", "WEBP", "TIFF"), side=(70, 20))
    def test_orientation(self, kind, side):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            options = {"exif": exif}
            data = encoded(picture(side, 41, orientation), kind, **options)
            self.write(f"{orientation}.{kind}", data)
        (images,) = self.load(image_size=24, resize=27, batch_size=8)
        for orientation, image in enumerate(images.numpy(), 1):
            path = os.path.join(self.root, f"{orientation}.{kind}")
            with Image.open(path) as file:
                expected = square(ImageOps.exif_transpose(file), 24, 27)
            # PIL rounds between its passes over rows and columns.
            difference = np.abs(expected.astype(int) - image)
            self.assertLessEqual(difference.max(), 1, orientation)

    def test_damaged_exif_does_no_harm(self):
        image = picture(24, 24)
        data = encoded(image, "PNG", exif=b"Exif\0\0no EXIF at all")
        self.write("a.png", data)
        (images,) = self.load()
        np.testing.assert_array_equal(images[0], image)

    def test_first_frame_of_an_animation(self):
        frames = [picture(24, 24, i).convert("P") for i in range(2)]
        data = encoded(
            frames[0], "GIF", save_all=True, append_images=frames[1:]
        )
        self.write("a.gif", data)
        (images,) = self.load()
        difference = square(frames[0], 24) - images[0].numpy().astype(int)
        self.assertLessEqual(np.abs(difference).max(), 2)

    @parameterized.parameters((50, 81), (81, 50), (33, 33), (33, 35), (27, 32))
    def test_resize_is_the_shorter_side(self, height, width):
        image = picture(height, width)
        self.write("a.png", encoded(image, "PNG"))
        (images,) = self.load(image_size=20, resize=27)
        difference = square(image, 20, 27) - images[0].numpy().astype(int)
        self.assertLessEqual(np.abs(difference).max(), 2)

    def test_classes_are_top_level_folders(self):
        self.write_all("b/1.png", "a/2.png", "a/deep/3.png", "c/4.PNG")
        self.write("a/notes.txt", b"no image")
        self.write(".hidden/5.png", b"no image")
        self.write("b/._1.png", b"no image")
        _, labels = gather(self.load(labels=True))
        np.testing.assert_array_equal(labels, [0, 0, 1, 2])

    def test_splits_share_their_classes(self):
        self.write_all("train/a/1.png", "train/b/2.png", "train/c/3.png")
        self.write_all("test/c/4.png")
        _, labels = gather(self.load(labels=True, split="test"))
        np.testing.assert_array_equal(labels, [2])
        self.assertLen(gather(self.load(labels=True))[1], 3)
        with self.assertRaisesRegex(
            ValueError, "split 'val': .* has train, te"
        ):
            self.load(split="val")

    @parameterized.parameters(
        (
            ("bus/1.png", "car/1.png", "train/1.png", "tram/1.png"),
            "'train', taken for splits, and images beside: 'bus', 'car', 'tr",
        ),
        (
            ("train/1.png", "test/1.png", "2.png", "3.png"),
            "beside: 2 in '.*' i",
        ),
        (("train/a/1.png", "x/deep/er/1.png"), "beside: 'x'"),
    )
    def test_images_beside_a_split_do_not_vanish(self, names, message):
        self.write_all(*names)
        with self.assertRaisesRegex(
            ValueError,
            f"has .*{message}.*`split='all'`.*`data_dir='.*/train'`",
        ):
            self.load()
        source = datasets.describe(
            "folder", data_dir=self.root, split="all"
        ).source
        self.assertEqual(source.size, len(names))
        classes = {name.split("/")[0] for name in names if "/" in name}
        self.assertEqual(set(source.class_names.values()) - {"2.png"}, classes)

    def test_what_lies_beside_a_split_without_images(self):
        self.write_all("train/1.png", "val/1.png", "notes.txt", "labels/a.xml")
        self.assertEqual(int(self.load().cardinality()), 1)
        self.write_all("mine/1.png", "other/1.png")
        self.assertEqual(int(self.load(split="mine").cardinality()), 1)

    def test_summary(self):
        self.write_all(
            *("train/a/1.png", "train/a/b/2.png", "train/c/3.png"),
            *("train/a/x.txt", "train/y.TXT", "train/z", "test/a/4.png"),
        )

        def summary(split):
            return datasets.describe(
                "folder", data_dir=self.root, split=split
            ).source.summary

        self.assertRegex(
            summary("train"),
            "Split 'train': 3 images in 3 folders of '.*/train'; left out: "
            "2 .txt, 1 without ending.$",
        )
        self.assertRegex(
            summary("test"), "Split 'test': 1 image in 1 folder of '.*/test'.$"
        )

    def test_a_plain_folder_is_the_training_split_only(self):
        self.write_all("1.png")
        self.assertEqual(int(self.load().cardinality()), 1)
        with self.assertRaisesRegex(ValueError, "split 'test'.*has no splits"):
            self.load(split="test")

    def test_linked_folders_are_followed(self):
        elsewhere = self.create_tempdir().full_path
        with open(os.path.join(elsewhere, "1.png"), "wb") as file:
            file.write(encoded(picture(9, 9), "PNG"))
        os.symlink(elsewhere, os.path.join(self.root, "a"))
        self.assertEqual(gather(self.load(labels=True))[1], [0])

    def test_links_in_a_circle(self):
        self.write_all("a/b/1.png", "c/2.png")
        os.symlink(self.root, os.path.join(self.root, "a", "b", "up"))
        os.symlink(os.path.join(self.root, "c"), os.path.join(self.root, "d"))
        _, labels = gather(self.load(labels=True))
        # The two links do not add up to a circle, but one of them is one.
        np.testing.assert_array_equal(labels, [0, 1, 2])

    def test_order_and_strange_names(self):
        names = ["a/2.png", "a/b/0.png", "a.b/1.PNG", "z.png", "B.png"]
        names += ["a/c\nd.jpg", "a/e.png.gif", "\udcff.png"]
        self.write_all(*names, "a/.x.png", "a/x.png~", "a/png", "a/.png")
        files = ImageFolder(self.root, "train")
        found = [os.path.relpath(files[i][0], self.root) for i in range(8)]
        self.assertEqual(
            found,
            # Files of a folder by name, then its folders.
            ["B.png", "z.png", "\udcff.png", "a/2.png", "a/c\nd.jpg"]
            + ["a/e.png.gif", "a/b/0.png", "a.b/1.PNG"],
        )
        self.assertEqual(files.size, 8)
        labels = [files[i][1] for i in range(8)]
        self.assertEqual(labels, [-1, -1, -1, 0, 0, 0, 0, 1])

    def test_walk_has_the_files_of_an_image_folder(self):
        self.write_all("b.png", "z/a.PNG", "a/2.png", "a/b/0.png", ".c.png")
        files = ImageFolder(self.root, "train")
        walked = list(datasets.image_files(self.root))
        self.assertEqual(walked, [files[i][0] for i in range(files.size)])

    def test_centre_crops_are_those_of_load(self):
        for i in range(3):
            data = encoded(picture(30 + i, 40, i), "JPEG")
            self.write(f"{i}.jpg", data)
        paths = list(datasets.image_files(self.root))
        images = next(
            iter(
                datasets.load(
                    "folder",
                    data_dir=self.root,
                    image_size=14,
                    resize=16,
                    batch_size=len(paths),
                    shuffle=False,
                )
            )
        )
        np.testing.assert_array_equal(datasets.centre_crops(paths, 14), images)
        with self.assertRaisesRegex(ValueError, "cannot be read"):
            datasets.centre_crops([__file__], 14)

    def test_nothing_is_done_per_file(self):
        """No file is looked at before the first batch."""
        self.write_all(*(f"{i % 3}/{i}.png" for i in range(60)))
        with (
            mock.patch("os.path.isdir", wraps=os.path.isdir) as isdir,
            mock.patch("os.stat", wraps=os.stat) as stat,
            mock.patch("os.scandir", side_effect=AssertionError),
        ):
            self.load()
        self.assertLess(isdir.call_count + stat.call_count, 20)

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, "No images in .*jpeg"):
            self.load()
        self.write_all("a/1.png", "2.png")
        with self.assertRaisesRegex(ValueError, "1 of 2 images .* no class"):
            self.load(labels=True)
        with self.assertRaisesRegex(ValueError, "batch_size=4, 2 images"):
            self.load(shuffle=True)
        with (
            mock.patch("os.listdir", side_effect=PermissionError("denied")),
            self.assertRaisesRegex(ValueError, "cannot be read: denied"),
        ):
            self.load()

    @parameterized.parameters("folder", "tsv")
    def test_missing_folder(self, name):
        for path in (None, os.path.join(self.root, "nowhere")):
            with self.assertRaisesRegex(
                ValueError, "existing folder.*(Non|nowh)"
            ):
                datasets.load(name, data_dir=path)


class TSVTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = self.create_tempdir().full_path
        self.images = [picture(20 + i, 30, i) for i in range(5)]
        rows = [
            f"n{i:04}\t{label}\t".encode()
            + base64.b64encode(encoded(image, "PNG"))
            + b"\n"
            for i, (image, label) in enumerate(
                zip(self.images, [7, 3, 7, 0, 1], strict=True)
            )
        ]
        self.offsets = np.cumsum([0, *map(len, rows)])[:-1]
        with open(os.path.join(self.root, "train.tsv"), "wb") as file:
            file.writelines(rows)

    def load(self, data_dir=None, **options):
        options = {"image_size": 18, "batch_size": 2, "labels": True} | options
        return datasets.load("tsv", data_dir=data_dir or self.root, **options)

    @parameterized.parameters("", "train.tsv")
    def test_images_and_labels(self, file):
        dataset = self.load(os.path.join(self.root, file), shuffle=False)
        images, labels = gather(dataset)
        np.testing.assert_array_equal(labels, [7, 3, 7, 0, 1])
        for image, original in zip(images, self.images, strict=True):
            difference = square(original, 18) - image.astype(int)
            self.assertLessEqual(np.abs(difference).max(), 2)

    def test_line_index_is_used(self):
        with open(os.path.join(self.root, "train.lineidx"), "w") as file:
            file.writelines(f"{offset}\n" for offset in self.offsets[[0, 2, 4]])
        images, labels = gather(self.load(shuffle=False))
        np.testing.assert_array_equal(labels, [7, 7, 1])
        np.testing.assert_array_equal(images[1], square(self.images[2], 18))

    def test_shuffled(self):
        _, labels = gather(self.load(drop_remainder=False))
        self.assertCountEqual(labels, [7, 3, 7, 0, 1])

    def test_errors(self):
        for data_dir in (None, os.path.join(self.root, "train.tsv")):
            with self.assertRaisesRegex(ValueError, "test.tsv|existing folder"):
                self.load(data_dir, split="test")
        for content, message in ((b"", "is empty"), (b"a\tb\n", "2 columns")):
            with open(os.path.join(self.root, "val.tsv"), "wb") as file:
                file.write(content)
            with self.assertRaisesRegex(ValueError, message):
                self.load(split="val")


class TFDSTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = folder.name
        cls.images = [picture(20 + i, 30, i).convert("L") for i in range(23)]
        examples = [
            (i, {"image": np.asarray(image)[..., None], "label": i % 5})
            for i, image in enumerate(cls.images)
        ]
        features = {"image": tfds.features.Image(shape=(None, None, 1))}
        labelled = features | {"label": tfds.features.ClassLabel(num_classes=5)}
        for name, spec in (("grey", labelled), ("unlabelled", features)):
            tfds.dataset_builders.store_as_tfds_dataset(
                name=name,
                version="1.0.0",
                features=tfds.features.FeaturesDict(spec),
                split_datasets={
                    "train": [(i, {k: x[k] for k in spec}) for i, x in examples]
                },
                data_dir=cls.root,
                disable_shuffling=True,
            )

    def load(self, name="grey", **options):
        options = {"image_size": 18, "batch_size": 5} | options
        return datasets.load(name, data_dir=self.root, **options)

    def test_images_and_labels(self):
        dataset = self.load(labels=True, shuffle=False)
        self.assertEqual(int(dataset.cardinality()), 5)
        images, labels = gather(dataset)
        np.testing.assert_array_equal(labels, np.arange(23) % 5)
        for image, original in zip(images, self.images, strict=True):
            difference = square(original, 18) - image.astype(int)
            self.assertLessEqual(np.abs(difference).max(), 2)

    def test_label_of_the_right_image_after_shuffling(self):
        known = {square(x, 18).tobytes(): i for i, x in enumerate(self.images)}
        images, labels = gather(
            self.load(labels=True, epochs=2, drop_remainder=False)
        )
        numbers = np.array([known[image.tobytes()] for image in images])
        np.testing.assert_array_equal(labels, numbers % 5)
        for epoch in (numbers[:23], numbers[23:]):
            self.assertCountEqual(epoch, range(23))
        self.assertFalse(np.array_equal(numbers[:23], numbers[23:]))

    def test_download(self):
        prepare = mock.Mock(side_effect=KeyError("was called"))
        with (
            mock.patch.object(
                tfds.core.DatasetBuilder, "download_and_prepare", prepare
            ),
            self.assertRaisesRegex(KeyError, "was called"),
        ):
            self.load("cifar10", download=True)

    def test_slices(self):
        dataset = self.load(split="train[:10]", shuffle=False)
        self.assertEqual(int(dataset.cardinality()), 2)

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, "split 'val'.*of train"):
            self.load(split="val")
        with self.assertRaisesRegex(ValueError, "'unlabelled' has no feature"):
            self.load("unlabelled", labels=True)
        self.assertEqual(int(self.load("unlabelled").cardinality()), 4)
        with self.assertRaisesRegex(
            ValueError,
            r"not prepared.*`download=True`.*\('cifar10', data_dir='.*prep",
        ):
            self.load("cifar10")


SOURCES = ("digits", "folder", "tsv", "tfds")
N = 100


class OrderTest(parameterized.TestCase):
    """What holds of every source. Images tell their number by their colour."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = folder.name
        colours = [Image.new("RGB", (8, 8), (i, 0, 255 - i)) for i in range(N)]
        files = [encoded(image, "PNG") for image in colours]
        os.mkdir(os.path.join(cls.root, "folder"))
        for i, data in enumerate(files):
            path = os.path.join(cls.root, "folder", f"{i:03}.png")
            with open(path, "wb") as file:
                file.write(data)
        with open(os.path.join(cls.root, "train.tsv"), "wb") as file:
            for data in files:
                file.write(b"k\t0\t" + base64.b64encode(data) + b"\n")
        features = {"image": tfds.features.Image(encoding_format="png")}
        tfds.dataset_builders.store_as_tfds_dataset(
            name="colours",
            version="1.0.0",
            features=tfds.features.FeaturesDict(features),
            split_datasets={
                "train": [
                    (i, {"image": np.asarray(image)})
                    for i, image in enumerate(colours)
                ]
            },
            data_dir=cls.root,
            disable_shuffling=True,
            download_config=tfds.download.DownloadConfig(num_shards=7),
        )
        tfrecords = os.listdir(os.path.join(cls.root, "colours", "1.0.0"))
        assert sum("tfrecord" in name for name in tfrecords) == 7
        cls.digits = (
            np.stack([np.asarray(x) for x in colours]),
            np.arange(N),
        )

    def load(self, source, **options):
        """Numbers of the images, batch for batch."""
        options = {"image_size": 8, "batch_size": 8, "epochs": 2} | options
        name = {"tfds": "colours"}.get(source, source)
        path = {"folder": "folder"}.get(source, "")
        with (
            mock.patch.object(sources, "digits", lambda *_, **__: self.digits),
            mock.patch.object(sources, "_WINDOW", 30),
        ):
            dataset = datasets.load(
                name, data_dir=os.path.join(self.root, path), **options
            )
            batches = [x.numpy()[:, 0, 0, 0] for x in dataset]
        self.assertLen(batches, int(dataset.cardinality()))
        return batches

    @parameterized.parameters(*SOURCES)
    def test_every_epoch_is_another_permutation(self, source):
        batches = self.load(source, drop_remainder=False)
        self.assertEqual([len(x) for x in batches], 2 * [*[8] * 12, 4])
        epochs = np.split(np.concatenate(batches), 2)
        for epoch in epochs:
            self.assertCountEqual(epoch, range(N))
            # Neighbours in the data set are not neighbours any more.
            steps = np.diff(epoch.astype(int))
            self.assertLess(np.mean(np.abs(steps) == 1), 0.15)
        self.assertLess(np.mean(epochs[0] == epochs[1]), 0.1)
        dropped = self.load(source)
        self.assertLen(dropped, 2 * 12)
        np.testing.assert_array_equal(dropped, batches[:12] + batches[13:25])

    @parameterized.parameters(*SOURCES)
    def test_in_order(self, source):
        batches = self.load(source, shuffle=False, epochs=2)
        np.testing.assert_array_equal(np.concatenate(batches), [*range(N)] * 2)

    @parameterized.product(source=SOURCES, shuffle=(True, False))
    def test_resumes_exactly(self, source, shuffle):
        options = {"shuffle": shuffle, "held_out": 3}
        whole = self.load(source, **options)
        # Within an epoch, and where one begins: 12 batches, 13 with the rest.
        for first_step in (5, 12 if shuffle else 13):
            resumed = self.load(source, first_step=first_step, **options)
            self.assertLen(resumed, len(whole) - first_step)
            for a, b in zip(resumed, whole[first_step:], strict=True):
                np.testing.assert_array_equal(a, b)

    @parameterized.parameters(*SOURCES)
    def test_resumes_at_the_end(self, source):
        self.assertEmpty(self.load(source, first_step=24))

    @parameterized.parameters(*SOURCES)
    @pytest.mark.slow
    def test_shards_are_parts_of_one_batch(self, source):
        options = {"drop_remainder": False, "first_step": 10}
        whole = self.load(source, **options)
        parts = [self.load(source, shard=(i, 2), **options) for i in range(2)]
        for batch, *rows in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(np.concatenate(rows), batch)
        self.assertTrue(all(len(part[0]) == 4 for part in parts))

    @parameterized.parameters(*SOURCES)
    @pytest.mark.slow
    def test_depends_on_nothing_but_the_seed(self, source):
        expected = self.load(source, seed=3)
        tf.random.set_seed(17)
        try:
            np.testing.assert_array_equal(self.load(source, seed=3), expected)
        finally:
            tf.random.set_seed(None)
        self.assertFalse(np.array_equal(self.load(source, seed=4), expected))

    def test_iterated_again_it_repeats_itself(self):
        dataset = datasets.load("digits", image_size=8, epochs=2)
        for first, second in zip(dataset, dataset, strict=True):
            np.testing.assert_array_equal(first, second)

    @parameterized.parameters(*SOURCES)
    def test_held_out(self, source):
        options = {"held_out": 30, "epochs": 1, "drop_remainder": False}
        parts = {}
        for subset in ("train", "held_out"):
            parts[subset] = np.concatenate(
                self.load(source, subset=subset, **options)
            )
        other = self.load(source, subset="held_out", seed=1, **options)
        self.assertCountEqual(np.concatenate(other), parts["held_out"])
        self.assertLen(parts["held_out"], 30)
        self.assertCountEqual(np.concatenate([*parts.values()]), range(N))
        if source != "tfds":  # whose records lie in a random order anyway
            self.assertGreater(np.std(parts["held_out"]), 15)

    def test_leaves_no_open_files(self):
        """A load without this care keeps two descriptors until the end."""

        folder = os.path.join(self.root, "folder")

        def load():
            dataset = datasets.load(
                "folder", data_dir=folder, image_size=8, batch_size=8
            )
            return next(iter(dataset.take(1)))

        def opened():
            gc.collect()
            return len(os.listdir("/proc/self/fd"))

        load()
        before = opened()
        for _ in range(3):
            load()
            datasets.load("folder", data_dir=folder, batch_size=8)
        self.assertLessEqual(opened(), before)

    def test_a_derived_data_set_outlives_the_first(self):
        folder = os.path.join(self.root, "folder")
        dataset = datasets.load(
            "folder", data_dir=folder, image_size=8, batch_size=N
        )
        batches = iter(dataset.map(lambda x: x).prefetch(1))
        del dataset
        gc.collect()
        self.assertLen(next(batches), N)

    def test_one_image(self):
        root = self.create_tempdir().full_path
        with open(os.path.join(root, "a.png"), "wb") as file:
            file.write(encoded(Image.new("RGB", (8, 8), (9, 0, 0)), "PNG"))
        dataset = datasets.load(
            "folder", data_dir=root, image_size=8, batch_size=1, epochs=3
        )
        self.assertLen([*dataset], 3)


class CropsTest(parameterized.TestCase):
    """Crops that are decoded, and those that a training step makes."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = folder.name
        for i in range(12):
            os.mkdir(os.path.join(cls.root, f"{i:02}"))
            path = os.path.join(cls.root, f"{i:02}", f"a.{'pj'[i % 2]}pg")
            path = path.replace("ppg", "png")
            picture(70, 90, i).save(path, quality=95)
        cls.images = np.stack(
            [
                np.asarray(Image.open(ImageFolder(cls.root, "train")[i][0]))
                for i in range(12)
            ]
        )

    def load(self, view, **options):
        return datasets.load(
            "folder",
            data_dir=self.root,
            views=view,
            batch_size=4,
            labels=True,
            **{"seed": 7, "epochs": 2} | options,
        )

    @parameterized.named_parameters(
        ("view", lambda: views.moco_v2(32), 1),
        ("two_views", lambda: views.moco_v1(24), 2),
        (
            "multi_crop",
            lambda: views.multi_crop(
                views.swav(32), views.small_patches(16), 3
            ),
            1,
        ),
    )
    def test_are_those_of_the_step(self, make, num_views):
        view = make()
        model = Trainer(views=view, seed=7)
        for step, (crops, numbers) in enumerate(
            self.load(view, num_views=num_views, first_step=2), 2
        ):
            whole = self.images[numbers.numpy()]
            for stream in range(num_views):
                step = tf.constant(step, tf.int64)
                expected = model.augment(whole, step, stream)
                ours = model.augment(crops, step, stream)
                for a, b in zip(ours, expected, strict=True):
                    self.assertEqual(a.shape, b.shape)
                    difference = np.abs(a - b)
                    # The crop is rounded to 8 bits; hue magnifies it.
                    self.assertLess(difference.mean(), 0.5)
                    self.assertLess(difference.max(), 25)
                    other = np.abs(np.roll(a, 1, axis=0) - b)
                    self.assertGreater(other.mean(), 5)

    def test_are_rounded_and_nothing_else(self):
        view = views.View([views.RandomResizedCrop(32)])
        model = Trainer(views=view, seed=7)
        for step, (crops, numbers) in enumerate(self.load(view)):
            whole = self.images[numbers.numpy()]
            step = tf.constant(step, tf.int64)
            (expected,) = model.augment(whole, step)
            self.assertEqual(crops.dtype, tf.uint8)
            self.assertEqual(crops.shape, (4, 1, 32, 32, 3))
            difference = np.abs(crops.numpy()[:, 0] - expected)
            self.assertLess(difference.max(), 1.01)

    def test_of_a_resumed_and_sharded_run(self):
        view = views.moco_v2(16)
        whole = [x.numpy() for x, _ in self.load(view)]
        for i in range(2):
            part = self.load(view, first_step=3, shard=(i, 2))
            for ours, batch in zip(part, whole[3:], strict=True):
                expected = batch[2 * i : 2 * i + 2]
                np.testing.assert_array_equal(ours[0], expected)

    def test_elements(self):
        pair = views.multi_crop(views.swav(32), views.small_patches(16), 3)
        element = self.load(pair).element_spec
        shapes = tf.nest.map_structure(lambda x: tuple(x.shape), element)
        self.assertEqual(shapes, (((4, 1, 32, 32, 3), (4, 3, 16, 16, 3)), (4,)))
        unlabelled = datasets.load(
            "folder", data_dir=self.root, views=pair, batch_size=4
        )
        images = keras.utils.unpack_x_y_sample_weight(next(iter(unlabelled)))
        self.assertEqual(images[0][1].shape, (4, 3, 16, 16, 3))
        self.assertEqual(images[1:], (None, None))

    @pytest.mark.slow
    def test_fit_and_evaluate_take_them(self):
        def encoder():
            backbone = keras.Sequential(
                [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)]
            )
            return seed_tf.Encoder(backbone, embedding_dim=8)

        view = views.moco_v2(16)

        def compiled(model):
            model.compile(seed_tf.training.SGD(0.01))
            return model

        model = compiled(
            seed_tf.MoCo(encoder(), views=view, queue_size=16, shuffle_groups=2)
        )
        data = self.load(view, num_views=2)
        history = model.fit(data, epochs=2, steps_per_epoch=3, verbose=0)
        self.assertLen(history.history["loss"], 2)
        self.assertEqual(int(model.step.numpy()), 6)

        pair = views.multi_crop(views.swav(16), views.small_patches(8), 2)
        seed = compiled(
            seed_tf.SEED(
                student=encoder(), teacher=encoder(), views=pair, queue_size=16
            )
        )
        results = seed.evaluate(
            self.load(pair, epochs=1), verbose=0, return_dict=True
        )
        self.assertTrue(np.isfinite(results["loss"]))
        steps = len(self.load(pair, epochs=1))
        seed.fit(self.load(pair, epochs=1), verbose=0)
        # Of each image, one small view joins the queue of small views.
        for queue in (seed.queue, seed.small_queue):
            self.assertEqual(int(queue.enqueued), 4 * steps)

    @parameterized.named_parameters(
        ("no_crop", lambda: views.View([views.RandomGrayscale()])),
        (
            "crop_later",
            lambda: views.View(
                [views.RandomGrayscale(), views.RandomResizedCrop(8)]
            ),
        ),
        ("function", lambda: lambda images: images),
        ("half", lambda: views.multi_crop(views.moco_v2(8), lambda x: x)),
    )
    def test_other_views_get_whole_images(self, make):
        element = self.load(make(), image_size=20).element_spec
        self.assertEqual(element[0].shape, (4, 20, 20, 3))

    def test_digits_are_whole(self):
        dataset = datasets.load("digits", image_size=8, views=views.moco_v2(8))
        self.assertEqual(dataset.element_spec.shape, (256, 8, 8, 3))

    def test_boxes_refer_to_the_upright_image(self):
        """Crops of a turned file are those of the image turned before."""
        box = [[5, 40, 30, 17], [0, 0, 70, 90], [20, 3, 50, 60]]
        upright = picture(70, 90)
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            inverse = {6: 8, 8: 6}.get(orientation, orientation)
            turned = Image.Exif()
            turned[0x0112] = inverse
            stored = Image.open(
                io.BytesIO(encoded(upright, "PNG", exif=turned))
            )
            stored = ImageOps.exif_transpose(stored)
            file = EncodedImage(encoded(stored, "PNG", exif=exif))
            self.assertEqual((file.height, file.width), (70, 90))
            (crops,) = file.crops([(box, 24)])
            for (top, left, height, width), ours in zip(
                box, crops, strict=True
            ):
                crop = upright.crop((left, top, left + width, top + height))
                crop = np.asarray(crop.resize((24, 24), Image.BILINEAR), int)
                self.assertLessEqual(np.abs(crop - ours).max(), 1, orientation)

    @parameterized.parameters("RGB", "L", "CMYK")
    def test_partly_decoded_jpeg_is_pils(self, mode):
        """To the bit, also at the edges, where colour is interpolated."""
        data = encoded(picture(301, 403).convert(mode), "JPEG")
        reference = Image.open(io.BytesIO(data)).convert("RGB")
        box = [[63, 81, 97, 112], [16, 200, 45, 101]]
        (crops,) = EncodedImage(data).crops([(box, 60)])
        for (top, left, height, width), ours in zip(box, crops, strict=True):
            crop = reference.crop((left, top, left + width, top + height))
            crop = np.asarray(crop.resize((60, 60), Image.BILINEAR))
            np.testing.assert_array_equal(crop, ours)

    @parameterized.parameters("JPEG", "PNG")
    def test_large_photographs(self, kind):
        """JPEGs are decoded at a quarter of their size here."""
        data = encoded(picture(1203, 1601), kind)
        reference = Image.open(io.BytesIO(data))
        box = np.array([[101, 333, 903, 777], [400, 411, 801, 1003]])
        with mock.patch.object(
            tf.io, "decode_and_crop_jpeg", wraps=tf.io.decode_and_crop_jpeg
        ) as decode:
            (crops,) = EncodedImage(data).crops([(box, 70)])
        if kind == "JPEG":
            self.assertEqual(decode.call_args.kwargs["ratio"], 4)
        for (top, left, height, width), ours in zip(box, crops, strict=True):
            crop = reference.crop((left, top, left + width, top + height))
            crop = np.asarray(crop.resize((70, 70), Image.BILINEAR), int)
            self.assertLessEqual(np.abs(crop - ours).max(), 4)
            self.assertLess(np.abs(crop - ours).mean(), 0.5)


if __name__ == "__main__":
    absltest.main()
