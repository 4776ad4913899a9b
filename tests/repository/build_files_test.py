"""BUILD files follow from the code. See tools/build_files.py."""

import configparser
import pathlib
import re
import shutil
import tempfile

from absl.testing import absltest

from tools import architecture, build_files


def requirements():
    """All distributions that setup.cfg names, as Bazel spells them."""
    config = configparser.ConfigParser()
    config.read(architecture.ROOT / "setup.cfg")
    lines = [config["options"]["install_requires"]]
    lines += config["options.extras_require"].values()
    names = re.findall(r"^([A-Za-z][\w-]*)", "\n".join(lines), re.MULTILINE)
    return {name.lower().replace("-", "_") for name in names}


def target(text, name):
    """The rule of this name in the text of a BUILD file."""
    [rule] = [x for x in text.split("\n\n") if f'    name = "{name}"' in x]
    return rule


class BuildFilesTest(absltest.TestCase):
    def test_files_are_up_to_date(self):
        self.assertEqual(
            build_files.stale(), [], "Run python -m tools.build_files."
        )

    def test_every_dependency_is_a_target_or_a_requirement(self):
        files = build_files.build_files()
        targets = {
            f"//{folder}:{name}"
            for folder, text in files.items()
            for name in re.findall('    name = "(.*)"', text)
        }
        for folder, text in files.items():
            labels = re.findall(r'"((?:@pypi|:|//)[^"]*)"', text)
            for label in labels:
                with self.subTest(f"{label} in {folder}/BUILD"):
                    if label.startswith("@pypi//"):
                        name = label.removeprefix("@pypi//")
                        self.assertIn(name, requirements())
                    elif not re.search(r":__|\.\.\.|^//visibility", label):
                        package, _, name = label.partition(":")
                        package = package or f"//{folder}"
                        name = name or package.rpartition("/")[2]
                        self.assertIn(f"{package}:{name}", targets)

    def test_targets_follow_the_code(self):
        root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        for name in architecture.FOLDERS:
            shutil.copytree(architecture.ROOT / name, root / name)
        self.assertEqual(
            build_files.stale(root), build_files.stale(architecture.ROOT)
        )
        (root / "seed_tf/io/new.py").write_text(
            "import os\n"
            "from PIL import Image\n"
            "from seed_tf.io import files\n"
            "from seed_tf.random import image_seeds\n"
        )
        (root / "seed_tf/io/BUILD").write_text("")
        self.assertIn("seed_tf/io", build_files.stale(root))
        build_files.main(root)
        self.assertEqual(build_files.stale(root), [])
        rule = target((root / "seed_tf/io/BUILD").read_text(), "io")
        self.assertIn('        "new.py",\n', rule)
        self.assertIn('        "//seed_tf:random",\n', rule)
        self.assertIn('"@pypi//pillow"', rule)
        self.assertNotIn('"//seed_tf/io', rule)
        self.assertIn('visibility = ["//seed_tf:layer_0"]', rule)
        shutil.rmtree(root / "tests/search")
        (root / "tests/search").mkdir()
        (root / "tests/search/BUILD").write_text("left over")
        build_files.main(root)
        self.assertFalse((root / "tests/search/BUILD").exists())

    def test_a_layer_is_visible_to_those_above(self):
        files = build_files.build_files()
        groups, above = {}, set()
        for layer in reversed(range(len(architecture.LAYERS))):
            rule = target(files["seed_tf"], f"layer_{layer}")
            above |= set(re.findall('"(//.*)"', rule))
            groups[layer] = set(above)
        evaluation = groups[architecture.LAYER["evaluation"]]
        self.assertIn("//seed_tf/training", evaluation)
        self.assertNotIn("//seed_tf/datasets", evaluation)
        for text in files.values():
            for layer in re.findall(r'"//seed_tf:layer_(\d+)"', text):
                self.assertIn(int(layer), groups)


if __name__ == "__main__":
    absltest.main()
