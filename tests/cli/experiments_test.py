"""The commands as a user runs them, most in a process of their own."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from absl.testing import absltest
from helpers.runs import (
    command,
    newest,
    pictures,
    state,
    tiny_teacher,
)
from helpers.tiny_student import NAME as TINY_STUDENT
from helpers.tiny_student import WIDTH

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(name, *flags):
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launch(name, *flags, code=0):
    """Runs a launcher to its end; returns what it printed."""
    process = start(name, *flags)
    printed, _ = process.communicate()
    if process.returncode != code:
        raise AssertionError(f"{process.returncode}: {printed[-4000:]}")
    return printed


DIGITS = ("--dataset=digits", "--image_size=16", "--noflip")
SHORT = ("--epochs=2", "--batch_size=512", "--queue_size=600")


@pytest.mark.slow
class LaunchersTest(absltest.TestCase):
    def test_pretrain_distill_evaluate(self):
        folder = self.create_tempdir().full_path
        teacher, student = (os.path.join(folder, x) for x in ("t", "s"))
        printed = launch(
            "pretrain",
            *DIGITS,
            *SHORT,
            "--encoder=resnet18",
            "--embedding_dim=48",
            f"--output={teacher}",
        )
        self.assertRegex(printed, r"step 4/4 .*images/s")
        printed = launch(
            "distill",
            *DIGITS,
            *SHORT,
            f"--teacher={teacher}",
            f"--student={TINY_STUDENT}",
            "--hidden_dim=64",
            "--views=swav_small_patches",
            f"--output={student}",
        )
        self.assertRegex(printed, r"step 4/4  loss .*gap .*left")
        with open(os.path.join(student, "config.json")) as f:
            config = json.load(f)
        self.assertEqual(config["launcher"], "distill")
        self.assertEqual(config["hidden_dim"], 64)
        self.assertEqual(config["queue_size"], 600)
        self.assertIn(config["precision"], ("float32", "mixed_bfloat16"))
        with open(os.path.join(student, "metrics.jsonl")) as f:
            lines = [json.loads(line) for line in f]
        self.assertEqual([line["step"] for line in lines], [2, 4])
        for line in lines:
            self.assertBetween(line["agreement"], 0, 1)
        self.assertCountEqual(
            os.listdir(student),
            [
                *("config.json", "metrics.jsonl", "summary.json", "events"),
                *("checkpoints", "student.keras", "backbone.keras"),
                *("report.html", "report.png"),
            ],
        )
        page = (pathlib.Path(student) / "report.html").read_text()
        page, figures = re.subn('data:image/png;base64,[^"]*', "", page)
        self.assertEqual(figures, 3)
        self.assertIn("neighbours shared with teacher", page)
        with open(os.path.join(student, "summary.json")) as f:
            summary = json.load(f)
        self.assertEqual(summary["ended"], "finished")
        self.assertEqual(summary["corrupt_files"], {})
        backbone = keras.saving.load_model(
            os.path.join(student, "backbone.keras")
        )
        self.assertEqual(backbone.output_shape[-1], WIDTH)

        results = os.path.join(folder, "results")
        printed = launch(
            "evaluate",
            "--dataset=digits",
            "--image_size=16",
            "--probe_epochs=2",
            f"--encoder={teacher}",
            f"--encoder={student}",
            f"--output={results}",
        )
        self.assertIn("10-NN, features", printed)
        with open(os.path.join(results, "results.json")) as f:
            rows = json.load(f)
        self.assertEqual([row["encoder"] for row in rows], [teacher, student])
        for row in rows:
            self.assertBetween(row["10-NN, features"], 20, 100)
            self.assertBetween(row["linear probe"], 10, 100)

    def test_quickstart(self):
        folder = self.create_tempdir().full_path
        printed = launch(
            "quickstart",
            f"--output={folder}",
            "--seeds=2",
            "--teacher_steps=25",
            "--student_steps=25",
            "--teacher_temperature=0.1",
        )
        with open(os.path.join(folder, "summary.json")) as f:
            results = json.load(f)["top1_percent"]
        names = ["raw pixels", "teacher", "untrained student", "MoCo v2 alone"]
        names.append("SEED, teacher temperature 0.1")
        self.assertEqual(list(results), names)
        # The first comparison comes before the second seed ends.
        first, rest = printed.split("First comparison", 1)
        self.assertNotIn("seed 2:", first)
        self.assertIn("seed 2:", rest)
        for name in names:
            self.assertIn(name, printed)
            for values in results[name].values():
                seeds = 1 if name in names[:2] else 2
                self.assertLen(values, seeds)
        # Raw pixels are no matter of training: sklearn gives 98.2 as well.
        self.assertBetween(results["raw pixels"]["k-NN"][0], 97, 99.5)
        page = (pathlib.Path(folder) / "report.html").read_text()
        self.assertEqual(page.count("data:image/png;base64"), 5)
        self.assertTrue((pathlib.Path(folder) / "results.png").is_file())


@pytest.mark.slow
class SurvivesTest(absltest.TestCase):
    """Stopped, killed, restarted: the same command goes on."""

    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        teacher = tiny_teacher(os.path.join(self.folder, "teacher.keras"))
        images = pictures(os.path.join(self.folder, "images"), 90)
        with open(os.path.join(images, "broken.jpg"), "wb") as f:
            f.write(b"\xff\xd8 no image")
        self.flags = (
            f"--data_dir={images}",
            f"--teacher={teacher}",
            f"--student={TINY_STUDENT}",
            *("--image_size=16", "--batch_size=16", "--queue_size=64"),
            *("--epochs=3", "--held_out=0", "--max_corrupt_fraction=0.02"),
            "--checkpoint_minutes=0",
        )
        self.total = 3 * (91 // 16)

    def until_checkpoint(self, process, output, step):
        deadline = time.monotonic() + 300
        while newest(output) < step:
            self.assertIsNone(process.poll(), "ended early")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_killed_twice_it_ends_as_if_left_alone(self):
        alone, killed = (os.path.join(self.folder, x) for x in ("a", "k"))
        launch("distill", *self.flags, f"--output={alone}")
        rng, reached = np.random.default_rng(0), 0
        for _ in range(2):
            process = start("distill", *self.flags, f"--output={killed}")
            reached += rng.integers(3, 7)
            self.until_checkpoint(process, killed, reached)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.communicate()
            reached = newest(killed)
        self.assertLess(reached, self.total)
        printed = launch("distill", *self.flags, f"--output={killed}")
        self.assertIn(f"Going on after step {reached} of 15", printed)
        self.assertEqual(newest(killed), self.total)
        ours, theirs = state(killed), state(alone)
        self.assertGreater(len(ours), 10)
        self.assertCountEqual(ours, theirs)
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, name)
        with open(os.path.join(killed, "summary.json")) as f:
            (broken,) = json.load(f)["corrupt_files"]
        self.assertEndsWith(broken, "broken.jpg")
        self.assertIn("1 unreadable image", printed)

    def test_sigterm_other_flags_overwrite(self):
        output = os.path.join(self.folder, "run")
        flags = (*self.flags, f"--output={output}")
        process = start("distill", *flags)
        self.until_checkpoint(process, output, 2)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate()
        self.assertEqual(process.returncode, 128 + signal.SIGTERM, printed)
        self.assertIn("SIGTERM: finishing this step, then saving.", printed)
        step = newest(output)
        command = re.search(
            rf"Stopped after step {step}, which is saved. The same command "
            r"goes on:\n  (python -m seed_tf distill .*)",
            printed,
        )
        for flag in flags:
            self.assertIn(flag, command[1])
        self.assertNotIn("Traceback", printed)

        printed = launch("distill", *flags, "--seed=4", code=1)
        self.assertRegex(
            printed,
            "Error: .* holds a run with other settings. seed: 0 there, 4 here",
        )
        self.assertEqual(newest(output), step)

        flags = (*flags, "--seed=4", "--overwrite", "--epochs=1")
        printed = launch("distill", *flags)
        self.assertNotIn("Going on", printed)
        self.assertEqual(newest(output), self.total // 3)

    def test_dry_run_leaves_nothing(self):
        output = os.path.join(self.folder, "run")
        printed = launch(
            "distill", *self.flags, f"--output={output}", "--dry_run"
        )
        self.assertFalse(os.path.exists(output))
        self.assertRegex(printed, r"steps +15 = 3 epochs of 5\n")
        self.assertRegex(printed, r"queue +4.1 kB\n")  # 64 x 16 float32
        self.assertRegex(printed, r"images per second +\d")


@pytest.mark.slow
class BadInputTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        # Commands set it, for their process.
        self.addCleanup(keras.mixed_precision.set_global_policy, "float32")

    def test_is_one_line_before_any_work(self):
        folder = self.create_tempdir().full_path
        missing = os.path.join(folder, "nowhere")
        empty = os.path.join(folder, "empty")
        os.makedirs(empty)
        images = pictures(os.path.join(folder, "images"), 20)
        file = os.path.join(folder, "file")
        pathlib.Path(file).write_text("")
        output = os.path.join(folder, "run")
        data = f"--data_dir={images}"
        cases = [
            ((f"--data_dir={missing}",), f"existing folder.*{missing}"),
            ((f"--data_dir={empty}",), "No images in"),
            ((data, "--split=test"), "Unknown split 'test'"),
            ((data,), "batch_size=256, 1?[0-9] images"),
            ((data, "--batch_size=8", f"--output={file}/x"), "is no folder"),
            (
                (data, "--batch_size=8", "--knn_every=1", "--held_out=0"),
                "lie in no class folder",
            ),
            (("--dataset=voc/2012",), "is not prepared.*--download"),
            (
                (data, "--batch_size=8", "--strategy=mirrored"),
                "mirrored.*GPU",
            ),
        ]
        shared = f"--output={output}", "--image_size=16"
        shared = (*shared, f"--data_dir={folder}/tfds")
        for flags, message in cases:
            with self.subTest(flags):
                printed = command("pretrain", *shared, *flags, code=1)
                self.assertRegex(printed, f"(?m)^Error: .*({message}).*\n")
        self.assertFalse(os.path.exists(output))

    def test_too_many_unreadable_images(self):
        folder = self.create_tempdir().full_path
        images = pictures(os.path.join(folder, "images"), 40)
        for i in range(3):
            pathlib.Path(images, f"{i}.jpg").write_bytes(b"\xff\xd8 no image")
        printed = command(
            "pretrain",
            *(f"--data_dir={images}", f"--output={folder}/run"),
            *("--image_size=16", "--batch_size=16", "--encoder=resnet18"),
            *("--held_out=0", "--queue_size=32", "--epochs=1"),
            code=1,
        )
        self.assertRegex(
            printed,
            r"Error: \d of 40 images cannot be read.*\d.jpg.*"
            "--max_corrupt_fraction",
        )

    def test_teacher_that_is_not_there(self):
        folder = self.create_tempdir().full_path
        missing = os.path.join(folder, "nowhere")
        printed = command(
            "distill",
            *DIGITS,
            f"--teacher={missing}",
            f"--output={folder}/run",
            code=1,
        )
        self.assertRegex(printed, f"Error: .*{missing}")
        self.assertFalse(os.path.exists(os.path.join(folder, "run")))


if __name__ == "__main__":
    absltest.main()
