"""What `import seed_tf` loads, and what it leaves for later."""

import pathlib
import subprocess
import sys

import keras
from absl.testing import absltest

import seed_tf

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Keras itself imports scikit-learn and matplotlib where they are installed.
LOADED = """
import sys
import tensorflow, keras
def packages():
    return {name.partition(".")[0] for name in sys.modules}
before = packages()
import seed_tf
print("loaded", *sorted(packages() - before - sys.stdlib_module_names))
print("lazy", seed_tf.views.__name__, "keras_cv" in sys.modules)
"""


class ImportTest(absltest.TestCase):
    def test_nothing_but_tensorflow_and_keras(self):
        done = subprocess.run(
            [sys.executable, "-c", LOADED],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        self.assertEqual(
            done.stdout.splitlines(),
            ["loaded seed_tf", "lazy seed_tf.views True"],
            done.stderr[-2000:],
        )

    def test_names(self):
        self.assertContainsSubset(seed_tf.__all__, dir(seed_tf))
        for name in seed_tf.__all__:
            self.assertIsNotNone(getattr(seed_tf, name))
        with self.assertRaisesRegex(AttributeError, "no attribute 'colour'"):
            _ = seed_tf.colour

    def test_classes_are_registered(self):
        for name in ("Encoder", "SEED", "MoCo", "SGD", "Classifier"):
            self.assertIsNotNone(
                keras.saving.get_registered_object(f"seed_tf>{name}"), name
            )


if __name__ == "__main__":
    absltest.main()
