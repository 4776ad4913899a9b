"""The README's Python examples run."""

import contextlib
import pathlib
import re
import tempfile

import keras
from absl.testing import absltest
from helpers.runs import pictures, tiny_teacher

from tools.architecture import ROOT

# All that differs from the README, so that an example takes seconds: views of
# 32 pixels, six epochs of eight photographs, a student of a few weights.
SMALLER = {
    "moco_v2(224), 200": "moco_v2(32), 6",
    "views=views, epochs": "batch_size=4, views=views, epochs",
    "batch_size=256": "batch_size=4",
    'Encoder("mobilenet_v3_large")': "Encoder(tiny, embedding_dim=16)",
    "shuffle=False": "shuffle=False, image_size=32",
}


def examples():
    readme = (ROOT / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


class ReadmeTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.enterContext(contextlib.chdir(folder))
        pictures("photos", 8)
        pathlib.Path("runs/teacher").mkdir(parents=True)
        tiny_teacher("runs/teacher/student.keras")

    def test_training_step_by_step(self):
        [code] = [x for x in examples() if "seed_tf.SEED(" in x]
        for text, smaller in SMALLER.items():
            self.assertEqual(code.count(text), 1, text)
            code = code.replace(text, smaller)
        tiny = keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, 4)]
        )
        names = {"tiny": tiny}
        exec(code, names)
        self.assertTrue(pathlib.Path("student.keras").exists())
        self.assertEqual(names["features"].shape, (8, 4))


if __name__ == "__main__":
    absltest.main()
