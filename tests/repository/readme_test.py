"""The README's Python examples run."""

import contextlib
import pathlib
import re
import tempfile

import keras
import pytest
from absl.testing import absltest
from helpers.runs import pictures, tiny_teacher

from tools.architecture import ROOT

# All that differs from the README, so that an example takes seconds: views of
# 32 pixels, few epochs of sixteen photographs, networks of a few weights.
SMALLER = {
    "moco_v2(224), 200": "moco_v2(32), 6",
    "views=views, epochs": "batch_size=4, views=views, epochs",
    "batch_size=256": "batch_size=4",
    'Encoder("mobilenet_v3_large")': "Encoder(tiny, embedding_dim=16)",
    "shuffle=False": "shuffle=False, image_size=32",
}
SHORTER_RUN = (
    "image_size=32, batch_size=16, queue_size=16, epochs=2, warmup_epochs=0"
)
SMALLER_RUNS = {
    'encoder="resnet50"': f'encoder="resnet18", {SHORTER_RUN}',
    '"mobilenet_v3_large"': f'"mobilenet_v3_large", {SHORTER_RUN}',
}


def examples():
    readme = (ROOT / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


class ReadmeTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.enterContext(contextlib.chdir(folder))
        pictures("photos", 16)
        pathlib.Path("runs/teacher").mkdir(parents=True)
        tiny_teacher("runs/teacher/student.keras")

    def example(self, name, smaller):
        """The example that calls `name`, with smaller arguments."""
        [code] = [x for x in examples() if name in x]
        for old, new in smaller.items():
            self.assertEqual(code.count(old), 1, old)
            code = code.replace(old, new)
        return code

    def test_parts(self):
        code = self.example("seed_tf.SEED(", SMALLER)
        tiny = keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, 4)]
        )
        names = {"tiny": tiny}
        exec(code, names)
        self.assertTrue(pathlib.Path("student.keras").exists())
        self.assertEqual(names["features"].shape, (16, 4))

    @pytest.mark.slow
    def test_whole_runs(self):
        exec(self.example("seed_tf.distill(", SMALLER_RUNS), {})
        self.assertTrue(pathlib.Path("runs/student/report.html").exists())


if __name__ == "__main__":
    absltest.main()
