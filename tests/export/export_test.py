"""SavedModels: files to squares in the graph, what is written, and how."""

import json
import os
import pathlib
import subprocess
import sys
import tarfile
import types
import warnings
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.exports import (
    RESIZE,
    SIZE,
    encoded,
    picture,
    png_header,
    temporary_folder,
    tiny_encoder,
    translucent,
    write_index,
)
from PIL import Image

import seed_tf
from seed_tf.datasets.decoding import EncodedImage
from seed_tf.export import Limits, saved_model, serving, versions
from seed_tf.export.decoding import decode
from seed_tf.export.outputs import Outputs
from seed_tf.io.fingerprints import identity

ROOT = pathlib.Path(__file__).resolve().parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "imagenet_sample.tar"


def evaluated(file, size=SIZE, resize=RESIZE):
    """The square that evaluation sees, None for a file that it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of damaged files
        try:
            return EncodedImage(file).square(size, resize)
        except Exception:
            return None


class DecodeTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        files = tf.TensorSpec([None], tf.string)
        cls.decode = staticmethod(
            tf.function(
                lambda files: decode(files, SIZE, RESIZE),
                input_signature=[files],
            )
        )

    def check(self, files, tolerance=0):
        images, problems = self.decode(tf.constant(list(files.values())))
        for name, image, problem, file in zip(
            files, images.numpy(), problems.numpy(), files.values(), strict=True
        ):
            with self.subTest(name):
                self.assertEqual(problem, b"")
                difference = image.astype(int) - evaluated(file)
                self.assertLessEqual(np.abs(difference).max(), tolerance)

    def test_every_kind_of_file_is_what_evaluation_sees(self):
        image, rng = picture(), np.random.default_rng(0)
        deep = rng.integers(0, 65536, (30, 40), dtype=np.uint16)
        self.check(
            {
                "grey JPEG": encoded(image.convert("L"), "JPEG"),
                "progressive": encoded(image, "JPEG", progressive=True),
                "no subsampling": encoded(image, "JPEG", subsampling=0),
                "PNG": encoded(image, "PNG"),
                "grey PNG": encoded(image.convert("L"), "PNG"),
                "black and white": encoded(image.convert("1"), "PNG"),
                "palette": encoded(image.convert("P"), "PNG"),
                "grey and alpha": encoded(translucent().convert("LA"), "PNG"),
                "alpha": encoded(translucent(), "PNG"),
                "one colour transparent": encoded(
                    image.convert("P"), "PNG", transparency=3
                ),
                "16 bits": encoded(Image.fromarray(deep), "PNG"),
                "animated PNG": encoded(
                    image, "PNG", save_all=True, append_images=[picture(seed=1)]
                ),
                "WebP": encoded(image, "WEBP"),
                "lossless": encoded(image, "WEBP", lossless=True),
                "WebP with alpha": encoded(translucent(), "WEBP"),
                "lossless, alpha": encoded(
                    translucent(), "WEBP", lossless=True
                ),
                "1 x 1": encoded(picture(1, 1), "PNG"),
                "tall": encoded(picture(90, 400), "PNG"),
                "tall, barely": encoded(picture(90, 181), "PNG"),
                "tall, not quite": encoded(picture(90, 180), "PNG"),
                "tall, enlarged": encoded(picture(7, 17), "PNG"),
                "wide": encoded(picture(400, 90), "PNG"),
                "1 x 900": encoded(picture(1, 900), "PNG"),
                "900 x 2": encoded(picture(900, 2), "WEBP"),
                "just right": encoded(picture(RESIZE, RESIZE), "JPEG"),
                "smaller": encoded(picture(7, 9), "JPEG"),
                "large": encoded(picture(1601, 1200), "JPEG"),
                "with a second picture": encoded(
                    image, "MPO", save_all=True, append_images=[image]
                ),
            }
        )

    def test_upright(self):
        self.check(
            {
                f"{kind} {orientation}": encoded(
                    picture(41, 30), kind, orientation
                )
                for kind in ("JPEG", "PNG", "WEBP")
                for orientation in range(10)
            }
        )

    def test_cmyk_is_at_most_a_grey_level_off(self):
        rng = np.random.default_rng(0)
        ink = rng.integers(0, 256, (30, 40, 4), dtype=np.uint8)
        image = Image.fromarray(ink, mode="CMYK")
        self.check({"CMYK": encoded(image, "JPEG")}, tolerance=1)

    def test_every_bad_file_has_its_problem(self):
        jpeg, png, webp = (
            encoded(picture(), kind) for kind in ("JPEG", "PNG", "WEBP")
        )
        animated = encoded(
            picture(), "WEBP", save_all=True, append_images=[picture(seed=1)]
        )
        cases = [
            (jpeg, ""),
            (b"", "empty"),
            (b"hello", "not a JPEG, PNG or WebP image"),
            (encoded(picture(), "BMP"), "not a JPEG, PNG or WebP image"),
            (jpeg[:-2], "damaged or truncated"),
            (jpeg[: len(jpeg) // 2], "damaged or truncated"),
            (jpeg[:3], "damaged or truncated"),
            (png[:-30], "damaged or truncated"),
            (png[:8], "damaged or truncated"),
            (png, ""),
            (webp[:-9], "damaged or truncated"),
            (b"RIFF\0\0\0\0WEBP", "damaged or truncated"),
            (animated, "an animated WebP image"),
            (
                png_header(20_000, 20_000),
                "the header announces 20000 x 20000 pixels, more than "
                "89,478,485",
            ),
            (webp, ""),
        ]
        files, expected = zip(*cases, strict=True)
        images, problems = self.decode(tf.constant(files))
        self.assertEqual(
            [problem.decode() for problem in problems.numpy()], list(expected)
        )
        np.testing.assert_array_equal(images[0], evaluated(jpeg))
        self.assertFalse(images[1].numpy().any())

    @pytest.mark.slow
    def test_thousands_of_mutated_files(self):
        rng = np.random.default_rng(0)
        image, frames = picture(40, 40), [picture(40, 40, seed=1)]
        several = {"save_all": True, "append_images": frames}
        corpus = [
            encoded(image, "JPEG", 6),
            encoded(image, "JPEG", progressive=True),
            encoded(image, "PNG", 5),
            encoded(image.convert("P"), "PNG"),
            encoded(translucent(), "PNG"),
            encoded(image, "WEBP", 8),
            encoded(image, "WEBP", lossless=True),
            encoded(translucent(), "WEBP"),
            encoded(translucent(), "WEBP", lossless=True),
            encoded(image, "WEBP", **several),
            encoded(translucent(40), "WEBP", **several),
        ]
        mutated = [mutate(corpus[i % len(corpus)], rng) for i in range(3000)]
        same = []
        for start in range(0, len(mutated), 100):
            files = mutated[start : start + 100]
            images, problems = self.decode(tf.constant(files))
            for file, image, problem in zip(
                files, images.numpy(), problems.numpy(), strict=True
            ):
                self.assertFalse(problem and image.any())
                expected = None if problem else evaluated(file)
                if expected is not None:
                    same.append((image == expected).all())
        # Two decoders may mend a damaged file in two ways.
        self.assertBetween(len(same), 300, 2000)
        self.assertGreater(np.mean(same), 0.98)
        self.check({"the next": corpus[0]})


def mutate(data, rng):
    """A file with one to three changes, most of them near its beginning."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        near = rng.random() < 0.4
        at = int(rng.integers(min(64, len(data)) if near else len(data)))
        end = at + int(rng.integers(1, 9))
        change = rng.integers(6)
        if change == 0:
            data[at] = rng.integers(256)
        elif change == 1:
            data[at:end] = rng.bytes(end - at)
        elif change == 2:
            data[at:at] = rng.bytes(end - at)
        elif change == 3 and len(data) > 80:
            del data[at:end]
        elif change == 4:
            data[at:end] = bytes([rng.choice([0, 255])]) * len(data[at:end])
        elif change == 5 and at > 70:
            del data[at:]
    return bytes(data)


class SavedModelTest(parameterized.TestCase):
    """One export with everything in it, and what it answers."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        rng = np.random.default_rng(0)
        cls.folder = cls.enterClassContext(temporary_folder())
        cls.encoder = tiny_encoder()
        cls.outputs = Outputs(cls.encoder)
        cls.probe = types.SimpleNamespace(
            accuracy=0.75,
            kernel=rng.normal(size=(5, 3)).astype("float32"),
            bias=rng.normal(size=3).astype("float32"),
        )
        cls.index = os.path.join(cls.folder, "index")
        cls.bank = write_index(cls.index, cls.encoder, 50)
        cls.model = os.path.join(cls.folder, "birds")
        with mock.patch.object(serving, "_BLOCK", 7):
            cls.checked = saved_model(
                cls.encoder,
                cls.model,
                image_size=SIZE,
                probe=cls.probe,
                labels=["robin", "wren", "Zaunkönig"],
                index=cls.index,
                card={
                    "license": "CC-BY-4.0",
                    "config": {"teacher": "moco.pth", "command": "python -m x"},
                    "summary": {"last": {"gap": 0.25}},
                },
            )
        cls.loaded = tf.saved_model.load(cls.checked.path)
        cls.files = [encoded(picture(seed=i), "JPEG") for i in range(70)]
        squares = np.stack([evaluated(file) for file in cls.files])
        cls.expected = cls.outputs.predict_on_batch(squares)

    def ask(self, signature, images):
        result = self.loaded.signatures[signature](images=tf.constant(images))
        return {name: value.numpy() for name, value in result.items()}

    # 32 images are done at a time.
    @parameterized.parameters(1, 31, 32, 33, 64, 70)
    def test_files(self, count):
        result = self.ask("serve_bytes", self.files[:count])
        for name in ("embedding", "features"):
            np.testing.assert_allclose(
                result[name], self.expected[name][:count], atol=1e-6
            )
        lengths = np.linalg.norm(result["embedding"], axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-6)

    def test_pixels_of_any_size(self):
        for size in ((40, 30), (16, 17), (1, 1), (5, 90)):
            pixels = np.stack(
                [np.asarray(picture(*size, seed=i)) for i in range(35)]
            )
            files = [encoded(Image.fromarray(x), "PNG") for x in pixels]
            squares = np.stack([evaluated(file) for file in files])
            expected = self.outputs.predict_on_batch(squares)
            result = self.ask("serving_default", pixels)
            for name, value in expected.items():
                np.testing.assert_allclose(result[name], value, atol=1e-6)

    def test_squares_of_the_right_size_are_left_alone(self):
        squares = np.stack(
            [np.asarray(picture(SIZE, SIZE, seed=i)) for i in range(3)]
        )
        expected = self.outputs.predict_on_batch(squares)
        result = self.ask("serving_default", squares)
        np.testing.assert_allclose(
            result["embedding"], expected["embedding"], atol=1e-6
        )

    def test_classify(self):
        result = self.ask("classify", self.files[:40])
        logits = self.expected["features"][:40] @ self.probe.kernel
        logits += self.probe.bias
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        order = np.argsort(-scores, 1)
        np.testing.assert_allclose(
            result["scores"], np.take_along_axis(scores, order, 1), atol=1e-5
        )
        labels = np.array(["robin", "wren", "Zaunkönig"])
        self.assertEqual(
            [[label.decode() for label in row] for row in result["labels"]],
            labels[order].tolist(),
        )

    def test_nearest(self):
        result = self.ask("nearest", self.files[:40])
        features = self.expected["features"][:40]
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        similarities = features @ self.bank.T
        order = np.argsort(-similarities, 1, kind="stable")[:, :10]
        np.testing.assert_allclose(
            result["similarities"],
            np.take_along_axis(similarities, order, 1),
            atol=1e-6,
        )
        self.assertEqual(
            [[name.decode() for name in row] for row in result["ids"]],
            [[f"bird {row}.jpg" for row in rows] for rows in order],
        )

    def test_empty_batches(self):
        nothing = tf.zeros([0], tf.string)
        result = self.loaded.signatures["serve_bytes"](images=nothing)
        self.assertEqual(result["embedding"].shape, (0, 6))
        result = self.loaded.signatures["nearest"](images=nothing)
        self.assertEqual(result["ids"].shape, (0, 10))
        pixels = tf.zeros([0, 20, 20, 3], tf.uint8)
        result = self.loaded.signatures["serving_default"](images=pixels)
        self.assertEqual(result["features"].shape, (0, 5))

    @pytest.mark.slow
    def test_bad_files_are_named_by_position(self):
        files = list(self.files)
        files[40], files[43] = b"", b"hello"
        for signature in ("serve_bytes", "classify", "nearest"):
            with self.assertRaisesRegex(
                tf.errors.InvalidArgumentError,
                "image 40: empty; image 43: not a JPEG, PNG or WebP image",
            ):
                self.ask(signature, files)
            self.ask(signature, self.files[:1])

    def test_images_without_pixels(self):
        pixels = np.zeros([2, 0, 5, 3], np.uint8)
        with self.assertRaises(tf.errors.InvalidArgumentError):
            self.ask("serving_default", pixels)

    def test_holds_the_encoder_and_nothing_else(self):
        prefix = os.path.join(self.checked.path, "variables", "variables")
        names = [name for name, _ in tf.train.list_variables(prefix)]
        names = [name for name in names if "OBJECT_GRAPH" not in name]
        # Encoder, probe and index.
        self.assertLen(names, len(self.encoder.weights) + 2 + 1)
        proto = pathlib.Path(self.checked.path, "saved_model.pb").read_bytes()
        for forbidden in (b"PyFunc", str(ROOT).encode()):
            self.assertNotIn(forbidden, proto)

    def test_card(self):
        card = pathlib.Path(self.checked.path, "README.md").read_text()
        for part in (
            "# birds, version 1",
            "CC-BY-4.0",
            "moco.pth",
            "python -m x",
            "| gap, at the end",
            "75.0 %",
            "`ids` string [?, 10]",
            "shorter side to 18 pixels",
            "models/birds:predict",
            identity(self.encoder),
        ):
            self.assertIn(part, card)
        with open(os.path.join(self.checked.path, "metadata.json")) as file:
            facts = json.load(file)
        self.assertEqual(
            facts["signatures"]["serve_bytes"]["inputs"],
            {"images": {"dtype": "string", "shape": [None]}},
        )
        self.assertEqual(facts["index"], {"images": 50})
        self.assertEqual(facts["config"]["teacher"], "moco.pth")

    def test_python_of_the_card_runs(self):
        card = pathlib.Path(self.checked.path, "README.md").read_text()
        code = card.split("```python\n")[1].split("```")[0]
        code = code.replace('load(".")', f"load({self.checked.path!r})")
        file = os.path.join(self.folder, "image.jpg")
        pathlib.Path(file).write_bytes(self.files[0])
        names = {}
        exec(code.replace('"image.jpg"', repr(file)), names)
        np.testing.assert_allclose(
            names["embedding"], self.expected["embedding"][:1], atol=1e-6
        )


class ExportTest(parameterized.TestCase):
    """What is refused, and what is left behind."""

    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.enterContext(temporary_folder()), "birds")
        self.encoder = tiny_encoder()
        self.probe = types.SimpleNamespace(kernel=np.zeros((5, 3)))

    def export(self, **kwargs):
        kwargs = {"image_size": SIZE, **kwargs}
        return saved_model(self.encoder, self.path, **kwargs)

    @parameterized.parameters(
        ({"image_size": 0}, "`image_size` must be positive.*image_size=0"),
        (
            {"resize": 15},
            "`resize` must be no smaller.*image_size=16, resize=15",
        ),
        ({"k": 0}, "k=0"),
        ({"version": 0}, "version=0.*has none"),
        ({"labels": ["a"]}, "labels alone"),
        ({"files": [b"no image"]}, "number 0: not a JPEG"),
        ({"index": "nowhere"}, "'nowhere' holds no index"),
    )
    def test_bad_arguments(self, kwargs, message):
        with self.assertRaisesRegex(ValueError, message):
            self.export(**kwargs)
        self.assertFalse(os.path.exists(self.path))

    def test_the_size_must_be_known(self):
        with self.assertRaisesRegex(ValueError, "`image_size` is needed"):
            saved_model(self.encoder, self.path)

    def test_probe_and_labels_must_fit(self):
        with self.assertRaisesRegex(ValueError, "probe alone"):
            self.export(probe=self.probe)
        with self.assertRaisesRegex(ValueError, "5 features and 2 labels"):
            self.export(probe=self.probe, labels=["a", "b"])

    @parameterized.parameters(
        ({"fingerprint": "0"}, "does not fit .*: fingerprint: '0' there"),
        ({"image_size": 8}, "image_size: 8 there, 16 here"),
        ({"output": "embeddings"}, "must have 6 columns, as embedding"),
    )
    def test_index_must_be_of_this_encoder(self, config, message):
        index = self.create_tempdir().full_path
        write_index(index, self.encoder, 10, **config)
        with self.assertRaisesRegex(ValueError, message):
            self.export(index=index)

    def test_damaged_index(self):
        index = self.create_tempdir().full_path
        write_index(index, self.encoder, 10)
        pathlib.Path(index, "paths.txt").write_text("one\n")
        with self.assertRaisesRegex(ValueError, "10 embeddings, but 1 paths"):
            self.export(index=index)

    def test_a_model_that_differs_is_refused(self):
        limits = Limits(difference=-1.0, cosine=0.0, agreement=0.0)
        with self.assertRaisesRegex(
            ValueError,
            "Nothing was written.*Signature: `serving_default`. The server "
            "decodes 0 of 12 files differently",
        ):
            self.export(limits=limits)
        self.assertEmpty(os.listdir(self.path))

    @pytest.mark.slow
    def test_a_decoder_that_differs_is_refused(self):
        with (
            mock.patch.object(EncodedImage, "square") as square,
            self.assertRaisesRegex(
                ValueError,
                "is not the Keras model.*Signature: `serve_bytes`. The server "
                r"decodes 12 of 12 files differently .*, by at most \d+ ",
            ),
        ):
            square.return_value = np.full([SIZE, SIZE, 3], 200, np.uint8)
            self.export()
        self.assertEmpty(os.listdir(self.path))

    @pytest.mark.slow
    def test_encoders_in_16_bits_become_float32(self):
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
        self.addCleanup(keras.mixed_precision.set_global_policy, "float32")
        self.encoder = tiny_encoder()
        path = self.export(files=[encoded(picture(), "PNG")] * 12).path
        keras.mixed_precision.set_global_policy("float32")
        reference = tiny_encoder()
        reference.set_weights(self.encoder.get_weights())
        pixels = evaluated(encoded(picture(), "PNG"))[None]
        given = tf.saved_model.load(path).signatures["serving_default"](
            images=tf.constant(pixels)
        )
        np.testing.assert_allclose(
            given["features"], reference.features(pixels), atol=1e-6
        )

    def test_versions(self):
        for kwargs, expected in (({}, 1), ({"version": 7}, 7), ({}, 8)):
            with versions.new_version(self.path, **kwargs) as (folder, final):
                self.assertFalse(os.path.basename(folder).isdecimal())
                pathlib.Path(folder, "file").write_text("content")
            self.assertEqual(final, os.path.join(self.path, str(expected)))
        self.assertCountEqual(os.listdir(self.path), ["1", "7", "8"])
        with self.assertRaisesRegex(ValueError, "version=7.* has 1, 7, 8"):
            versions.check_version(self.path, 7)

    def test_one_export_at_a_time(self):
        with (
            versions.new_version(self.path),
            self.assertRaisesRegex(ValueError, "Another process is writing"),
            versions.new_version(self.path),
        ):
            pass
        self.assertEqual(os.listdir(self.path), ["1"])

    @pytest.mark.slow
    def test_a_killed_export_leaves_no_version(self):
        script = self.create_tempfile("killed.py", KILLED).full_path
        subprocess.run(
            [sys.executable, script, self.path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
        )
        moments = sorted(os.listdir(self.path))
        self.assertLen(moments, 3)
        for moment in moments:
            with self.subTest(moment):
                folder = os.path.join(self.path, moment, "birds")
                names = [x for x in os.listdir(folder) if x != ".lock"]
                # Had it not been killed there, there were nothing to see.
                self.assertLen(names, 1)
                self.assertFalse(names[0].isdecimal())
                with versions.new_version(folder):
                    pass
                self.assertEqual(os.listdir(folder), ["1"])


# The children of one process that has loaded TensorFlow and done nothing with
# it: each exports, and is killed at another moment.
KILLED = """
import os, signal, sys
import numpy as np
import keras
import tensorflow as tf
from seed_tf import Encoder
from seed_tf.export import saved_model as module

def killing(function):
    def run(*args, **kwargs):
        function(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return run

module = sys.modules["seed_tf.export.saved_model"]
moments = {
    "variables": (tf.train.Checkpoint, "write"),
    "checked": (module, "_check"),
    "flushed": (sys.modules["seed_tf.io.files"], "flush"),
}
for name, (place, function) in moments.items():
    child = os.fork()
    if not child:
        if name == "variables":
            from tensorflow.python.checkpoint import functional_saver
            place, function = functional_saver.MultiDeviceSaver, "save"
        setattr(place, function, killing(getattr(place, function)))
        backbone = keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.Conv2D(3, 3)]
        )
        path = os.path.join(sys.argv[1], name, "birds")
        module.saved_model(Encoder(backbone), path, image_size=16)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, (name, status)
"""


@pytest.mark.slow
class PlainTensorFlowTest(absltest.TestCase):
    @absltest.skipUnless(
        PHOTOS.exists(), "the photographs of ../shared/data are not here"
    )
    def test_100_photographs_as_evaluation_without_keras(self):
        folder = self.enterContext(temporary_folder())
        with tarfile.open(PHOTOS) as archive:
            archive.extractall(folder, filter="data")
        images = seed_tf.datasets.load(
            "folder",
            data_dir=folder,
            image_size=224,
            resize=256,
            batch_size=50,
            shuffle=False,
        )
        images = images.take(2).cache()
        encoder = tiny_encoder()
        expected = {
            "features": seed_tf.evaluation.embed(encoder, images),
            "embedding": seed_tf.evaluation.embed(
                encoder, images, output="embeddings"
            ),
        }
        expected["embedding"] /= np.linalg.norm(
            expected["embedding"], axis=1, keepdims=True
        )
        model = os.path.join(folder, "model")
        path = saved_model(encoder, model, image_size=224).path
        script = self.create_tempfile("plain.py", PLAIN).full_path
        result = os.path.join(folder, "result.npz")
        subprocess.run(
            [sys.executable, script, path, folder, result],
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests/helpers")},
            check=True,
        )
        result = np.load(result)
        for name, value in expected.items():
            self.assertLen(result[name], 100)
            np.testing.assert_allclose(result[name], value, atol=1e-5)


PLAIN = """
import glob, sys
import without_keras
import numpy as np
import tensorflow as tf

model, folder, result = sys.argv[1:]
files = []
for path in sorted(glob.glob(folder + "/**/*.JPEG", recursive=True))[:100]:
    with open(path, "rb") as file:
        files.append(file.read())
serve = tf.saved_model.load(model).signatures["serve_bytes"]
outputs = serve(images=tf.constant(files))
np.savez(result, **{name: value.numpy() for name, value in outputs.items()})
for module in without_keras.HIDDEN:
    assert module not in sys.modules, module
"""


if __name__ == "__main__":
    absltest.main()
