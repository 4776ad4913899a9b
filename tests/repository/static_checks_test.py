"""Lint, format and types, which cost seconds and come first."""

import importlib.util
import subprocess
import sys

from absl.testing import absltest, parameterized

from tools import architecture


class StaticChecksTest(parameterized.TestCase):
    @parameterized.parameters(
        ("ruff", "check", "--no-cache", "."),
        ("ruff", "format", "--no-cache", "--check", "."),
        ("mypy",),
    )
    def test_passes(self, tool, *arguments):
        if not importlib.util.find_spec(tool):
            self.skipTest(f"needs {tool}: pip install seed_tf[dev]")
        result = subprocess.run(
            [sys.executable, "-m", tool, *arguments],
            cwd=architecture.ROOT,
            capture_output=True,
            text=True,
        )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)


if __name__ == "__main__":
    absltest.main()
