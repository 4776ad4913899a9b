"""The launchers as a user runs them, each in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def launch(name, *flags, fails=False):
    """Runs a launcher to its end; returns what it printed."""
    run = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    printed = run.stdout + run.stderr
    if (run.returncode != 0) != fails:
        raise AssertionError(printed[-4000:])
    return printed


DIGITS = ("--dataset=digits", "--image_size=16", "--noflip")
SHORT = ("--epochs=2", "--batch_size=512", "--queue_size=600")


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
            "--student=resnet18",
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
        with open(os.path.join(student, "metrics.jsonl")) as f:
            lines = [json.loads(line) for line in f]
        self.assertEqual([line["step"] for line in lines], [2, 4])
        self.assertEqual(os.listdir(student).count("student.keras"), 1)
        self.assertNotIn("student.unfinished.keras", os.listdir(student))

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

    def test_help_is_readable(self):
        printed = launch("distill", "--help", fails=True)
        self.assertIn("Distils a small student", printed)
        for flag in ("teacher_temperature", "data_dir", "batch_size"):
            self.assertIn(f"--{flag}", printed)

    def test_bad_input_is_one_line_before_any_work(self):
        missing = os.path.join(self.create_tempdir(), "nowhere")
        printed = launch(
            "pretrain", f"--data_dir={missing}", "--output=x", fails=True
        )
        self.assertNotIn("Traceback", printed)
        self.assertRegex(printed, f"Error: .*{missing}")
        printed = launch(
            "distill", f"--teacher={missing}", "--output=x", fails=True
        )
        self.assertNotIn("Traceback", printed)
        self.assertRegex(printed, "Error: Expected a .keras file")
        self.assertFalse((ROOT / "x").exists())


if __name__ == "__main__":
    absltest.main()
