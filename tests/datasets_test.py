"""Data sets against PIL and scikit-learn, from files made on the spot."""

import base64
import io
import os
import tempfile
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from PIL import Image
from sklearn.datasets import load_digits

from seed_tf import datasets


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
        a, same, other = self.load(), self.load(), self.load(seed=1)
        first, labels = gather(a)
        second, _ = gather(a)
        self.assertLen(first, 5 * 256)  # the last, smaller batch is dropped
        self.assertFalse(np.array_equal(first, second))
        self.assertFalse(np.array_equal(first, gather(other)[0]))
        for expected in (first, second):
            np.testing.assert_array_equal(gather(same)[0], expected)
        # Labels went with their images.
        known = dict(
            zip(
                map(
                    np.ndarray.tobytes,
                    datasets.digits("train", image_size=8)[0],
                ),
                datasets.digits("train", image_size=8)[1],
                strict=True,
            )
        )
        for image, label in zip(first, labels, strict=True):
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

    # Tolerance: 2 where the file is lossless; decoders of lossy ones differ.
    @parameterized.parameters(
        ("jpg", "JPEG", "RGB", 6),
        ("JPEG", "JPEG", "L", 6),
        ("jpeg", "JPEG", "CMYK", 6),
        ("png", "PNG", "RGB", 2),
        ("png", "PNG", "RGBA", 2),
        ("png", "PNG", "L", 2),
        ("png", "PNG", "LA", 2),
        ("png", "PNG", "P", 2),
        ("png", "PNG", "1", 2),
        ("bmp", "BMP", "RGB", 2),
        ("bmp", "BMP", "L", 2),
        ("gif", "GIF", "P", 2),
        ("webp", "WEBP", "RGB", 6),
        ("webp", "WEBP", "RGBA", 6),
    )
    def test_formats(self, ending, kind, mode, tolerance):
        for i, (height, width) in enumerate([(60, 90), (71, 24), (20, 33)]):
            image = picture(height, width, i).convert(mode)
            data = encoded(image, kind)
            self.write(f"{i}.{ending}", data)
        (images,) = self.load()
        self.assertEqual(images.shape, (3, 24, 24, 3))
        for i, image in enumerate(images.numpy()):
            with Image.open(os.path.join(self.root, f"{i}.{ending}")) as file:
                difference = square(file, 24) - image.astype(int)
            self.assertLessEqual(np.abs(difference).max(), tolerance, i)

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

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, "No images in .*jpeg"):
            self.load()
        self.write_all("a/1.png", "2.png")
        with self.assertRaisesRegex(ValueError, "1 of 2 images .* no class"):
            self.load(labels=True)
        with self.assertRaisesRegex(ValueError, "batch_size=4, 2 images"):
            self.load(shuffle=True)
        with (
            mock.patch("os.scandir", side_effect=PermissionError("denied")),
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
        _, labels = gather(self.load(shuffle=False))
        np.testing.assert_array_equal(labels, [7, 7, 1])

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

    def test_shuffled_by_the_seed(self):
        epochs = []
        for dataset in (self.load(), self.load()):
            epochs.append([np.concatenate(list(dataset)) for _ in range(2)])
        np.testing.assert_array_equal(epochs[0], epochs[1])
        self.assertFalse(np.array_equal(*epochs[0]))

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
            ValueError, r"not prepared.*builder\('cifar10', data_dir='.*prepare"
        ):
            self.load("cifar10")


if __name__ == "__main__":
    absltest.main()
