"""What `import seed_tf` loads, and what it leaves for later."""

import os
import pathlib
import subprocess
import sys

import keras
from absl.testing import absltest, parameterized

import seed_tf

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Keras itself imports scikit-learn and matplotlib where they are installed.
LOADED = """
import sys
import tensorflow, keras
for name in ("fcntl", "resource"):  # Windows has neither
    sys.modules[name] = None
def packages():
    return {name.partition(".")[0] for name in sys.modules}
before = packages()
import seed_tf
print("loaded", *sorted(packages() - before - sys.stdlib_module_names))
print("lazy", seed_tf.views.__name__, "keras_cv" in sys.modules)
import seed_tf.runs
"""
# TensorFlow must not even begin to load.
OTHER_BACKEND = """
import sys
sys.modules["tensorflow.python"] = None
import seed_tf
"""


class ImportTest(parameterized.TestCase):
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

    @parameterized.parameters(
        (["-c", OTHER_BACKEND],), (["-m", "seed_tf", "report", "run"],)
    )
    def test_another_backend_is_refused(self, words):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, "KERAS_BACKEND": "jax"},
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 1)
        self.assertRegex(
            done.stderr.splitlines()[-1],
            "Error: seed_tf needs Keras with the TensorFlow backend. "
            "Received: 'jax'. Set KERAS_BACKEND=tensorflow",
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
