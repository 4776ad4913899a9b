"""Every source and label of the BUILD file exists, and none is missing."""

import ast
import configparser
import pathlib
import re

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def targets():
    """The rules of the BUILD file: a dict of names to their attributes."""
    rules = {}
    for node in ast.parse((ROOT / "BUILD").read_text()).body:
        call = node.value
        if not call.func.id.startswith("py_"):
            continue
        attributes = {
            k.arg: ast.literal_eval(k.value)
            for k in call.keywords
            if not isinstance(k.value, ast.Call)  # glob(...)
        }
        rules[attributes["name"]] = {"rule": call.func.id, **attributes}
    return rules


def requirements():
    """Names of all requirements in setup.cfg, as Bazel spells them."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [config["options"]["install_requires"]]
    lines += config["options.extras_require"].values()
    names = re.findall(r"^([A-Za-z][\w-]*)", "\n".join(lines), re.MULTILINE)
    return {name.lower().replace("-", "_") for name in names}


class BuildFileTest(absltest.TestCase):
    def test_sources_exist(self):
        for name, rule in targets().items():
            for source in rule["srcs"]:
                self.assertTrue((ROOT / source).is_file(), f"{name}: {source}")

    def test_labels_exist(self):
        rules, packages = targets(), requirements()
        for name, rule in rules.items():
            for label in rule.get("deps", ()):
                if label.startswith(":"):
                    self.assertIn(label[1:], rules, name)
                else:
                    self.assertRegex(label, "^@pypi//")
                    self.assertIn(label.removeprefix("@pypi//"), packages, name)

    def test_every_source_has_a_target(self):
        listed = {s for rule in targets().values() for s in rule["srcs"]}
        files = {
            str(path.relative_to(ROOT))
            for folder in ("seed_tf", "experiments", "benchmarks", "tests")
            for path in (ROOT / folder).rglob("*.py")
            if path.name != "conftest.py"  # pytest's, Bazel has none
        }
        self.assertEqual(listed, files)

    def test_every_test_is_a_test(self):
        for name, rule in targets().items():
            tests = [s for s in rule["srcs"] if s.endswith("_test.py")]
            self.assertEqual(bool(tests), rule["rule"] == "py_test", name)


if __name__ == "__main__":
    absltest.main()
