"""What every command says of folders with unreadable images."""

import dataclasses
import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl.testing import absltest, parameterized
from helpers.runs import command, pictures, tiny_teacher

from seed_tf.cli import main

SMALL = ("--image_size=16", "--batch_size=4")
FINE_TUNE = ("--fine_tune_epochs=1", "--fine_tune_batch_size=4")


class BadImagesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        for name in ("train/a", "train/b", "test/a", "test/b"):
            images = pictures(os.path.join(self.folder, "images", name), 8)
            pathlib.Path(images, "1.jpg").write_bytes(b"\xff\xd8 no image")
        self.teacher = tiny_teacher(os.path.join(self.folder, "t.keras"))

    def refused(self, *words):
        """Runs a command that must end with one clear line."""
        name = words[0]
        words = [
            *words,
            f"--data_dir={self.folder}/images",
            *SMALL,
        ]
        printed = command(*words, code=1)
        self.assertRegex(
            printed, "Error: .*of 16 images cannot be read.*1.jpg.*--max_corr"
        )
        self.assertRegex(printed, r"Split 'train': 16 images in 2 folders")
        for unwanted in ("Traceback", "in user code", "node", "`"):
            self.assertNotIn(unwanted, printed)
        settings = importlib.import_module(f"seed_tf.cli.{name}").COMMAND
        known = {x.name for x in dataclasses.fields(settings.settings)}
        named = set(re.findall(r"--(\w+)", printed))
        self.assertContainsSubset(named, known)
        words.append("--max_corrupt_fraction=0.3")
        return words

    def test_images_beside_a_split(self):
        pictures(os.path.join(self.folder, "images", "tram"), 1)
        words = ("evaluate", f"--data_dir={self.folder}/images", *SMALL)
        printed = command(*words, f"--encoder={self.teacher}", code=1)
        self.assertRegex(
            printed,
            "Error: .*images beside: 'tram'.* with --train_split=all. "
            ".* --data_dir=.*/t.*, or move",
        )

    def test_evaluate(self):
        words = self.refused("evaluate", f"--encoder={self.teacher}")
        self.assertIn(
            "10-NN, features", command(*words, "--protocol=knn", "--k=3,10")
        )

    @parameterized.parameters("linear_views", "fine_tune")
    @pytest.mark.slow
    def test_evaluate_on_views(self, protocol):
        self.refused(
            *("evaluate", f"--encoder={self.teacher}", *FINE_TUNE),
            *(f"--protocol={protocol}", "--probe_epochs=1"),
        )

    @parameterized.parameters("pretrain", "distill", "cache", "advise")
    @pytest.mark.slow
    def test_others(self, name):
        output = f"--output={self.folder}/output"
        run = ("--queue_size=8", "--held_out=0", "--epochs=2", "--stem=cifar")
        teacher = f"--teacher={self.teacher}"
        self.refused(
            name,
            *{
                "pretrain": (
                    *(output, *run, "--encoder=resnet18"),
                    "--shuffle_groups=2",
                ),
                "distill": (output, *run, teacher, "--student=resnet18"),
                "cache": (output, teacher),
                "advise": (f"--encoder={self.teacher}",),
            }[name],
        )


class NamesTest(absltest.TestCase):
    def test_a_name_that_is_not_utf8(self):
        printed = command("report", "runs/\udcff", code=1)
        self.assertStartsWith(printed, r"Error: Expected names in UTF-8. ")
        self.assertIn(r"'runs/\udcff'", printed)

    def test_a_long_name(self):
        printed = command("report", "x" * 100_000, code=1)
        self.assertLess(len(printed), 3000)

    def test_output_that_cannot_encode(self):
        done = subprocess.run(
            [sys.executable, "-m", "seed_tf", "é"],
            cwd=pathlib.Path(main.__file__).parents[2],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            text=True,
        )
        self.assertIn(r"Unknown command: '\xe9'", done.stderr)


if __name__ == "__main__":
    absltest.main()
