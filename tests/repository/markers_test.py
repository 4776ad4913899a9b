"""Markers are where pytest finds them."""

import ast
import re

from absl.testing import absltest

from tools import architecture


class MarkersTest(absltest.TestCase):
    def test_markers_are_below_parameters(self):
        """Above `parameterized.parameters` a marker is lost."""
        lost = []
        for module, path in architecture.modules().items():
            if not module.endswith("_test"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                decorators = getattr(node, "decorator_list", ())
                names = " ".join(map(ast.unparse, decorators))
                if re.search(r"pytest\.mark.* parameterized\.", names):
                    lost.append(f"{module}:{node.lineno}")
        self.assertEqual(lost, [])


if __name__ == "__main__":
    absltest.main()
