"""Examples in docstrings run, links lead somewhere, CI runs README's tests."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest

import seed_tf

ROOT = pathlib.Path(__file__).resolve().parents[2]


def example_globals():
    """Names that the examples use without defining them."""
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3))
    images = images.astype("uint8")
    tiny = [
        keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)]
        )
        for _ in range(2)
    ]
    student, teacher = (seed_tf.Encoder(backbone) for backbone in tiny)
    return {
        **{"keras": keras, "np": np, "tf": tf, "seed_tf": seed_tf},
        **{"images": images, "student": student, "teacher": teacher},
        "seeds": seed_tf.random.image_seeds(0, 0, len(images)),
        "dataset": tf.data.Dataset.from_tensor_slices(images),
    }


class DocsTest(absltest.TestCase):
    def test_examples_in_docstrings(self):
        attempted = 0
        finder = doctest.DocTestFinder(exclude_empty=True)
        for info in pkgutil.walk_packages(seed_tf.__path__, "seed_tf."):
            if info.name.endswith("__main__"):  # runs the command line
                continue
            module = importlib.import_module(info.name)
            for test in finder.find(module):
                if test.examples:
                    test.globs.update(example_globals())
                    result = doctest.DocTestRunner().run(test)
                    self.assertEqual(result.failed, 0, test.name)
                    attempted += result.attempted
        self.assertGreater(attempted, 20)

    def test_ci_runs_the_readmes_test_command(self):
        readme = (ROOT / "README.md").read_text()
        commands = [x for x in readme.splitlines() if x.endswith("-m pytest")]
        self.assertLen(commands, 1)
        self.assertIn("grep", (ROOT / ".ci" / "run").read_text())

    def test_pictures_and_files_that_markdown_names_exist(self):
        for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
            for part in page.read_text().split("](")[1:]:
                target = part.split(")")[0].split("#")[0]
                if target and not target.startswith("http"):
                    self.assertTrue(
                        (page.parent / target).exists(), f"{page}: {target}"
                    )

    def test_names_in_markdown_exist(self):
        for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
            text = page.read_text()
            for name in set(re.findall(r"\bseed_tf(?:\.[A-Za-z_]\w*)+", text)):
                with self.subTest(f"{name} in {page.name}"):
                    pkgutil.resolve_name(name)
            folders = "seed_tf|tests|benchmarks|experiments|tools"
            for path in set(re.findall(rf"(?:{folders})/[\w/]+\.py", text)):
                with self.subTest(f"{path} in {page.name}"):
                    self.assertTrue((ROOT / path).exists())


if __name__ == "__main__":
    absltest.main()
