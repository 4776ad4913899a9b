"""Modules import downwards, without a cycle. See tools/architecture.py."""

import pathlib
import shutil
import tempfile

from absl.testing import absltest, parameterized

from tools import architecture


class ArchitectureTest(absltest.TestCase):
    def test_every_import_goes_down(self):
        self.assertEqual(architecture.problems(), [])


class ProblemsTest(parameterized.TestCase):
    """Each breach is found, in a copy of the repository."""

    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.root = pathlib.Path(folder)
        for name in architecture.FOLDERS:
            shutil.copytree(
                architecture.ROOT / name,
                self.root / name,
                ignore=shutil.ignore_patterns("__pycache__"),
            )

    def append(self, path, text):
        with open(self.root / path, "a") as file:
            file.write(text)

    @parameterized.parameters(
        (
            "seed_tf/losses.py",
            "from seed_tf import moco",
            "seed_tf.losses:.* imports seed_tf.moco: 'moco' is in a layer abo",
        ),
        (
            "seed_tf/evaluation/knn.py",
            "def late():\n    from seed_tf.training.run import train",
            "imports seed_tf.training.run: 'training' is in a layer above",
        ),
        (
            "seed_tf/seed.py",
            "import importlib\nimportlib.import_module('seed_tf.search')",
            "imports seed_tf.search: 'search' is in a layer above",
        ),
        ("seed_tf/moco.py", "import seed_tf", "is in a layer above"),
        ("seed_tf/recipes.py", "from absl import flags", "only seed_tf.cli"),
        ("seed_tf/seed.py", "import benchmarks.cases", "may not import bench"),
        (
            "benchmarks/knn.py",
            "from tests.helpers import runs",
            "may not import tests",
        ),
        ("experiments/search.py", "from seed_tf import search", "launchers"),
        ("tests/seed_test.py", "import moco_test", "tests/helpers"),
    )
    def test_wrong_import(self, path, text, message):
        self.append(path, f"\n{text}\n")
        problems = "\n".join(architecture.problems(self.root))
        self.assertRegex(problems, message)

    @parameterized.parameters(
        ("seed_tf/seed.py", "seed_tf/moco.py", "modules"),
        ("seed_tf/config.py", "seed_tf/recipes.py", "modules"),
        ("seed_tf/training/cost.py", "seed_tf/conversion/new.py", "packages"),
    )
    def test_cycle_in_a_layer(self, one, other, kind):
        for path, target in ((one, other), (other, one)):
            # Another module of the package: a cycle of packages alone.
            if kind == "packages" and path == one:
                path = str(pathlib.Path(one).with_name("new.py"))
            name = target.removesuffix(".py").replace("/", ".")
            self.append(path, f"\nimport {name}\n")
        self.assertRegex(
            "\n".join(architecture.problems(self.root)), f"A cycle of {kind}"
        )

    def test_module_without_a_layer(self):
        self.append("seed_tf/new.py", "")
        [problem] = architecture.problems(self.root)
        self.assertEqual(
            problem, "seed_tf.new has no layer: add 'new' to LAYERS."
        )


if __name__ == "__main__":
    absltest.main()
