"""seed-tf export: what it writes, and what it refuses."""

import json
import os
import pathlib
from unittest import mock

import pytest
import tensorflow as tf
from absl.testing import absltest
from helpers.exports import (
    SIZE,
    encoded,
    temporary_folder,
    tiny_encoder,
)
from helpers.runs import command
from PIL import Image

import seed_tf
from seed_tf.cli import export
from seed_tf.export.litert import PRECISIONS


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

    def launch(self, *words, encoder=None, code=0):
        encoder = encoder or self.run_folder
        return command(
            *("export", f"--encoder={encoder}", f"--output={self.output}"),
            *words,
            code=code,
        )

    @pytest.mark.slow
    def test_writes_what_it_lists(self):
        self.write("labelled/train/red/bad.jpg", b"no image")
        printed = self.launch(
            *("--format=saved_model", "--format=keras", "--license=MIT"),
            f"--labels_dir={self.labelled}",
            f"--data_dir={self.labelled}",
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

    @pytest.mark.slow
    def test_other_formats(self):
        printed = self.launch(
            *("--format=litert", "--format=onnx", "--name=bird"),
            *("--precision=float32", "--precision=int8", "--int8_inputs"),
            f"--data_dir={self.labelled}",
            f"--labels_dir={self.labelled}",
        )
        self.assertContainsSubset(
            ["bird.tflite", "bird.int8.tflite", "bird.onnx"],
            os.listdir(self.output),
        )
        self.assertIn("k-NN, exported", printed)

    @pytest.mark.slow
    def test_limits(self):
        flags = "--format=litert", f"--data_dir={self.labelled}"
        printed = self.launch(*flags, "--limits=0,1,1", code=1)
        self.assertRegex(printed, "the limit is 0.*pass wider --limits")
        self.launch(*flags, "--limits=9,-1,0")

    def test_an_encoder_that_remembers_its_size(self):
        self.encoder.image_size = 20
        path = os.path.join(self.folder, "alone.keras")
        self.encoder.save(path)
        run = export.Run(export.Settings(encoder=path, output=self.output))
        self.assertEqual((run.size, run.resize), (20, 23))

    def test_bad_flags_before_any_work(self):
        file = os.path.join(self.run_folder, "student.keras")
        alone = os.path.join(self.folder, "alone.keras")
        os.link(file, alone)
        empty = os.path.join(self.folder, "empty")
        os.makedirs(empty)
        cases = [
            ((), {"encoder": alone}, "--image_size is needed"),
            (
                ("--image_size=16",),
                {"encoder": empty},
                "Expected a .keras file",
            ),
            (("--name=a/b",), {}, "--name must be a file name"),
            (("--limits=1,2",), {}, "--limits must be three numbers"),
            (("--format=litert",), {}, "need --data_dir"),
            (("--int8_inputs",), {}, "--int8_inputs needs --precision=int8"),
            (("--format=onnx", "--index=x"), {}, "needs --format=saved_model"),
            ((f"--data_dir={empty}",), {}, "No images in"),
            ((f"--labels_dir={empty}",), {}, "No images in"),
            ((f"--labels_dir={self.run_folder}",), {}, "No images in"),
            ((f"--index={empty}",), {}, "holds no index"),
            (("--format=tf",), {}, "--format=tf: value should be one of"),
        ]
        for words, encoder, message in cases:
            with (
                self.subTest(message),
                mock.patch.object(seed_tf.export, "saved_model") as write,
            ):
                printed = self.launch(*words, **encoder, code=1)
                self.assertRegex(printed, f"Error: .*{message}")
            write.assert_not_called()

    def test_choices_of_the_library(self):
        self.assertEqual(export.PRECISIONS, PRECISIONS)

    def test_missing_extra(self):
        with mock.patch.object(
            export.importlib.util, "find_spec", return_value=None
        ):
            printed = self.launch(
                "--format=onnx", f"--data_dir={self.labelled}", code=1
            )
        self.assertRegex(printed, r"Error: .*seed_tf\[onnx\]")

    def test_output_that_cannot_be_written(self):
        self.write("file", b"")
        self.output = os.path.join(self.folder, "file")
        self.assertRegex(self.launch(code=1), "Error: .*file")


if __name__ == "__main__":
    absltest.main()
