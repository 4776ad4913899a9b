"""Settings of a run: what they accept, refuse, and write."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

from absl.testing import absltest, parameterized

from seed_tf import config
from seed_tf.config import DistillConfig, PretrainConfig


class ConfigTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"epochs": 0}, "`epochs` must be at least 1. Received: epochs=0"),
        ({"epochs": True}, "`epochs` must be of type int"),
        ({"epochs": "2"}, "`epochs` must be of type int. .*epochs='2'"),
        ({"jit": 1}, "`jit` must be of type bool or None"),
        ({"max_corrupt_fraction": 1.5}, "must be at most 1.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be at least"),
        ({"student_temperature": 0}, "`student_temperature` must be positive"),
        ({"views": "moco"}, "`views` must be one of moco_v1, moco_v2"),
        ({"knn_splits": ["train"]}, "`knn_splits` must be two splits"),
    )
    def test_a_setting_out_of_range_is_named(self, settings, message):
        with self.assertRaisesRegex(ValueError, message):
            DistillConfig(**settings)

    def test_values_take_the_type_of_their_setting(self):
        found = DistillConfig(
            output=pathlib.Path("runs/a"),
            warmup_epochs=1,
            knn_splits=["a", "b"],
        )
        self.assertEqual(found.output, "runs/a")
        self.assertIsInstance(found.warmup_epochs, float)
        self.assertEqual(found.knn_splits, ("a", "b"))
        restored = json.loads(json.dumps(found.as_dict()))
        self.assertEqual(DistillConfig(**restored), found)

    def test_paths_are_normalised(self):
        config = DistillConfig(
            data_dir="~/photos/", output="./a//../b/", teacher="hub://x//y"
        )
        self.assertEqual(config.data_dir, os.path.expanduser("~/photos"))
        self.assertEqual(config.output, "a/../b")
        self.assertEqual(config.teacher, "hub://x//y")
        with self.assertRaisesRegex(ValueError, "`output` must be on a disk"):
            DistillConfig(output="gs://bucket/run")

    def test_required_settings(self):
        with self.assertRaisesRegex(ValueError, "`output` must be given"):
            PretrainConfig().check()
        with self.assertRaisesRegex(ValueError, "`teacher` must be given"):
            DistillConfig(output="o").check()
        PretrainConfig(output="o").check()

    def test_every_setting_has_help_and_a_default_in_range(self):
        for kind in (DistillConfig, PretrainConfig):
            self.assertEqual(kind(), dataclasses.replace(kind()))
            for field in dataclasses.fields(kind):
                self.assertTrue(field.metadata["help"].endswith("."), field)

    def test_command_line(self):
        found = DistillConfig(
            teacher="a b", output="o", flip=False, jit=True, recipe="x"
        )
        self.assertEqual(
            found.command_line(),
            "seed-tf distill --noflip --output=o --jit '--teacher=a b'",
        )

    def test_choices_name_what_exists(self):
        from seed_tf import losses, views

        for name in config.VIEWS:
            self.assertEqual(getattr(views, name).__name__, name)
        for name in config.OBJECTIVES[1:]:
            self.assertEqual(getattr(losses, name).__name__, name)

    def test_configurations_and_recipes_load_without_tensorflow(self):
        code = (
            "import sys; sys.argv[0] = 'seed-tf'; "
            "from seed_tf import recipes; recipes.table(); "
            "found = {'tensorflow', 'keras', 'numpy'} & set(sys.modules); "
            "sys.exit(str(found) if found else 0)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True
        )
        self.assertEqual(done.returncode, 0, done.stderr[-1000:])


if __name__ == "__main__":
    absltest.main()
