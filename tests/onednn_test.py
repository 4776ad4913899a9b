"""oneDNN is on unless the user turns it off, each in a process of its own.

The variable at the start of a process stands for the processor: "0" is how
TensorFlow comes up without AVX512-VNNI.
"""

import os
import subprocess
import sys

import pytest
from absl.testing import absltest

# TensorFlow reads the variable when it is imported: here it is off.
TENSORFLOW_FIRST = """
import os, tensorflow
del os.environ["TF_ENABLE_ONEDNN_OPTS"]
"""
# Prints what TensorFlow will read. On many processors it is on by itself.
AT_IMPORT = """
import os, sys

class Watch:
    def find_spec(self, name, *others):
        if name == "tensorflow":
            sys.meta_path.remove(self)
            print(os.environ.get("TF_ENABLE_ONEDNN_OPTS"))

sys.meta_path.insert(0, Watch())
import seed_tf
seed_tf.SEED
"""
ANSWER = """
import seed_tf, keras, numpy
from tensorflow.python.util import _pywrap_util_port
print("on" if _pywrap_util_port.IsMklEnabled() else "off")
encoder = lambda: keras.Sequential([
    keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D(),
    keras.layers.Dense(4)])
for _ in range(2):
    seed = seed_tf.SEED(student=encoder(), teacher=encoder(),
                        views=lambda images: images, queue_size=8)
    seed.compile("sgd", run_eagerly=True)
    seed.fit(numpy.zeros((4, 8, 8, 3), "uint8"), batch_size=4, verbose=0)
"""


def run(program, **environment):
    kept = {k: v for k, v in os.environ.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.count("oneDNN is off")


class OneDNNTest(absltest.TestCase):
    def test_import_turns_it_on(self):
        self.assertEqual(run(AT_IMPORT), ("1", 0))

    @pytest.mark.slow
    def test_the_user_s_own_value_wins(self):
        self.assertEqual(run(ANSWER, TF_ENABLE_ONEDNN_OPTS="0"), ("off", 0))

    @pytest.mark.slow
    def test_too_late(self):
        """The first `fit` says so, and no other."""
        off = run(TENSORFLOW_FIRST + ANSWER, TF_ENABLE_ONEDNN_OPTS="0")
        self.assertEqual(off, ("off", 1))


if __name__ == "__main__":
    absltest.main()
