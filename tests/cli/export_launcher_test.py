"""experiments.export: what it writes, and what it refuses."""

import contextlib
import io
import json
import os
import pathlib
from unittest import mock

import tensorflow as tf
from absl.testing import absltest, flagsaver
from helpers.exports import (
    SIZE,
    encoded,
    temporary_folder,
    tiny_encoder,
)
from helpers.runs import import_launcher
from PIL import Image


def setUpModule():
    global launcher
    launcher = import_launcher("seed_tf.cli.export")


class LauncherTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(temporary_folder())
        self.run_folder = os.path.join(self.folder, "student")
        os.makedirs(self.run_folder)
        self.encoder = tiny_encoder()
        self.encoder.save(os.path.join(self.run_folder, "student.keras"))
        config = {"image_size": SIZE, "teacher": "moco.pth"}
        self.write("student/config.json", json.dumps(config).encode())
        self.output = os.path.join(self.folder, "exports")
        for split in ("train", "test"):
            for i in range(12):
                colour = ("red", "blue")[i % 2]
                image = Image.new("RGB", (20 + i, 20), colour)
                file = encoded(image, "PNG")
                self.write(f"labelled/{split}/{colour}/{i}.png", file)
        self.labelled = os.path.join(self.folder, "labelled")

    def write(self, name, content):
        path = pathlib.Path(self.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def launch(self, **flags):
        flags = {"run": self.run_folder, "output": self.output, **flags}
        printed = io.StringIO()
        with flagsaver.flagsaver(**flags), contextlib.redirect_stdout(printed):
            launcher.main([])
        return printed.getvalue()

    def test_writes_what_it_lists(self):
        self.write("labelled/train/red/bad.jpg", b"no image")
        printed = self.launch(
            format=["saved_model", "keras"],
            labels_dir=self.labelled,
            data_dir=self.labelled,
            license="MIT",
        )
        self.assertCountEqual(
            os.listdir(self.output),
            ["student", "student.keras", "student_backbone.keras"],
        )
        lines = printed.splitlines()[-3:]
        for line, name in zip(
            lines,
            ("student/1", "student.keras", "student_backbone.keras"),
            strict=True,
        ):
            self.assertRegex(line, f"{self.output}/{name} +[0-9,]+ ")
        self.assertRegex(lines[0], r" 1\.000000")
        server = tf.saved_model.load(os.path.join(self.output, "student", "1"))
        files = [encoded(Image.new("RGB", (30, 30), "red"), "PNG")]
        result = server.signatures["classify"](tf.constant(files))
        self.assertEqual(result["labels"][0, 0], b"red")
        with open(os.path.join(self.output, "student/1/metadata.json")) as f:
            facts = json.load(f)
        self.assertEqual(facts["license"], "MIT")
        self.assertEqual(facts["config"]["teacher"], "moco.pth")
        self.assertEqual(facts["checked"]["images"], 12)

    def test_other_formats(self):
        printed = self.launch(
            format=["litert", "onnx"],
            precision=["float32", "float16"],
            data_dir=self.labelled,
            labels_dir=self.labelled,
            name="bird",
        )
        self.assertContainsSubset(
            ["bird.tflite", "bird.float16.tflite", "bird.onnx"],
            os.listdir(self.output),
        )
        self.assertIn("k-NN, exported", printed)

    def test_bad_flags_before_any_work(self):
        file = os.path.join(self.run_folder, "student.keras")
        alone = os.path.join(self.folder, "alone.keras")
        os.link(file, alone)
        empty = os.path.join(self.folder, "empty")
        os.makedirs(empty)
        cases = [
            ({"run": alone}, "--image_size is needed"),
            ({"run": empty}, "--image_size is needed"),
            ({"run": empty, "image_size": 16}, "Expected a .keras file"),
            ({"name": "a/b"}, "--name must be a file name"),
            ({"format": ["litert"]}, "need --data_dir"),
            ({"format": ["onnx"], "index": "x"}, "needs --format=saved_model"),
            ({"data_dir": empty}, "No images in"),
            ({"labels_dir": empty}, "No images in"),
            ({"labels_dir": self.run_folder}, "No images in"),
            ({"index": empty}, "holds no index"),
        ]
        for flags, message in cases:
            with (
                self.subTest(message),
                mock.patch.object(launcher.export, "saved_model") as write,
                self.assertRaisesRegex(ValueError, message),
            ):
                self.launch(**flags)
            write.assert_not_called()

    def test_missing_extra(self):
        with (
            mock.patch.object(
                launcher.importlib.util, "find_spec", return_value=None
            ),
            self.assertRaisesRegex(ValueError, r"seed_tf\[onnx\]"),
        ):
            self.launch(format=["onnx"], data_dir=self.labelled)

    def test_output_that_cannot_be_written(self):
        self.write("file", b"")
        with self.assertRaises(OSError):
            self.launch(output=os.path.join(self.folder, "file"))


if __name__ == "__main__":
    absltest.main()
