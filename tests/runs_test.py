"""`seed_tf.distill` and `seed_tf.pretrain`: whole runs in one call."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from helpers.runs import pictures, state, tiny_teacher
from helpers.tiny_student import NAME as TINY_STUDENT
from helpers.tiny_student import WIDTH

import seed_tf
from seed_tf import runs
from seed_tf.cli import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = {
    "image_size": 16,
    "epochs": 1,
    "batch_size": 400,
    "queue_size": 400,
    "held_out": 30,
    "student": TINY_STUDENT,
    "precision": "float32",
}


def tiny(name, stem):
    """A network of a few weights, in place of a registered one."""
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(4, 3, 4),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ],
        name=name,
    )


def config_of(folder):
    return json.loads(pathlib.Path(folder, "config.json").read_text())


def check_same(a, b):
    """Two runs have the same settings and the same weights."""
    first, second = config_of(a), config_of(b)
    for config in (first, second):
        config["command"] = config["command"].replace(config["output"], "")
        del config["output"]
    assert first == second, (first, second)
    ours, theirs = state(a), state(b)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, name)


class DistillTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.enter_context(contextlib.chdir(self.folder))
        tiny_teacher("t.keras")
        self.log = []
        self.settings = SETTINGS | {"teacher": "t.keras", "output": "run"}

    def distill(self, **changes):
        settings = {"data": "digits"} | self.settings | changes
        return seed_tf.distill(log=self.log.append, **settings)

    def test_one_call_is_one_run(self):
        policy = keras.config.dtype_policy().name
        result = self.distill(precision="mixed_bfloat16")
        self.assertEqual(keras.config.dtype_policy().name, policy)
        self.assertEqual(result.path, "run")
        self.assertEqual(result.metrics["step"], 3)
        self.assertBetween(result.metrics["agreement"], 0, 1)
        self.assertEqual(result.summary["ended"], "finished")
        self.assertEqual(result.encoder.image_size, 16)
        images = np.zeros((2, 16, 16, 3), "uint8")
        self.assertEqual(result.encoder.features(images).shape, (2, WIDTH))
        self.assertTrue(os.path.exists("run/report.html"))
        self.assertIn("Trained encoder: run/student.keras", self.log[-1])
        config = config_of("run")
        self.assertEqual(config["launcher"], "distill")
        self.assertEqual(config["dataset"], "digits")
        self.assertRegex(config["teacher_fingerprint"], "^[0-9a-f]{16}$")
        self.assertStartsWith(config["command"], "seed-tf distill --dataset=")

        # The same call goes on, in the precision that the run began with.
        self.distill(precision="auto")
        self.assertIn("Going on after step 3 of 3.", self.log)
        self.assertEqual(config_of("run")["precision"], "mixed_bfloat16")
        with self.assertRaisesRegex(
            ValueError, "precision: 'mixed_bfloat16' there, 'float32' here"
        ):
            self.distill(precision="float32")
        with self.assertRaisesRegex(
            ValueError, r"seed: 0 there, 4 here\. .*`overwrite=True`"
        ):
            self.distill(precision="auto", seed=4)

    def test_a_finished_run_does_not_train_on_other_images(self):
        changes = {"data": pictures("photos", 40), "batch_size": 8}
        changes |= {"output": "run", "held_out": 2}
        self.assertEqual(self.distill(**changes).metrics["step"], 4)
        self.assertLen(
            json.loads(pathlib.Path("run/held_out.json").read_text()), 2
        )
        shutil.copytree("photos", "photos/more")
        with self.assertRaisesRegex(
            ValueError, "changed since this run began: 40 then, 80 now"
        ):
            self.distill(**changes)
        result = self.distill(**changes, data_changed="continue")
        self.assertEqual(result.metrics["step"], 4)
        self.assertIn("Going on after step 4 of 4.", self.log)
        self.assertEqual(config_of("run")["data"]["images"], 80)

    @pytest.mark.slow
    def test_a_setting_that_older_code_lacked_has_its_default(self):
        self.distill()
        config = config_of("run")
        del config["sync_batch_norm"]
        config["of_the_past"] = 1
        pathlib.Path("run/config.json").write_text(json.dumps(config))
        self.distill()
        with self.assertRaisesRegex(ValueError, "sync_batch_norm: False there"):
            self.distill(sync_batch_norm=True)

    def test_dry_run_leaves_nothing(self):
        result = self.distill(dry_run=True)
        self.assertEqual((result.metrics, result.summary), ({}, {}))
        self.assertRegex(self.log[-1], r"steps +3 = 1 epochs of 3\n")
        self.assertFalse(os.path.exists("run"))

    def test_bad_settings_fail_before_any_work(self):
        with mock.patch.object(runs.training, "RunFolder") as folder:
            for changes, error, message in (
                ({"epochs": 0}, ValueError, "`epochs` must be at least 1"),
                ({"output": None}, ValueError, "`output` must be given"),
                ({"epoch": 1}, TypeError, "no argument 'epoch'"),
                ({"dataset": "folder"}, ValueError, "Received both"),
            ):
                with self.assertRaisesRegex(error, message):
                    self.distill(**changes)
            folder.assert_not_called()

    @parameterized.parameters(
        ("photos", {"dataset": "folder", "data_dir": "photos"}),
        ("digits", {"dataset": "digits"}),
        ("a/b.tsv", {"dataset": "tsv", "data_dir": "a/b.tsv"}),
        ("voc/2012", {"dataset": "voc/2012"}),
    )
    def test_data_names_a_folder_a_file_or_a_data_set(self, data, expected):
        os.makedirs("photos")
        self.assertEqual(runs._data_settings(data, {}), expected)

    def test_data_without_a_folder(self):
        for data in ("./fotos", "/photos/2026", "My photos"):
            with self.assertRaisesRegex(ValueError, "`data` must.*no folder"):
                seed_tf.distill(data=data, output="run")

    def test_command_and_call_are_the_same(self):
        self.distill(output="run_a")
        flags = [f"--{k}={v}" for k, v in self.settings.items()]
        words = ["distill", "--dataset=digits", *flags, "--output=run_b"]
        self.assertEqual(main.run(words), 0)
        check_same("run_a", "run_b")


@pytest.mark.slow
class LaunchersTest(absltest.TestCase):
    def test_launcher_console_script_and_call_are_the_same(self):
        folder = self.create_tempdir().full_path
        self.enter_context(contextlib.chdir(folder))
        settings = SETTINGS | {"teacher": tiny_teacher("t.keras")}
        seed_tf.distill(data="digits", output="run_a", **settings)
        flags = [f"--{k}={v}" for k, v in settings.items()]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        for output, module in (
            ("run_b", ["seed_tf", "distill"]),
            ("run_c", ["experiments.distill"]),
        ):
            words = [*module, "--dataset=digits", *flags, f"--output={output}"]
            done = subprocess.run(
                [sys.executable, "-m", *words],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                capture_output=True,
                text=True,
            )
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])
            check_same("run_a", output)


class PretrainTest(absltest.TestCase):
    def test_one_call_is_one_run(self):
        settings = {k: v for k, v in SETTINGS.items() if k != "student"}
        self.enter_context(
            mock.patch.object(seed_tf.encoders, "backbone", tiny)
        )
        result = seed_tf.pretrain(
            data="digits",
            output=self.create_tempdir().full_path,
            log=lambda line: None,
            **settings,
        )
        self.assertEqual(result.metrics["step"], 3)
        self.assertEqual(config_of(result.path)["launcher"], "pretrain")
        self.assertEqual(result.encoder.embedding_dim, 128)


if __name__ == "__main__":
    absltest.main()
