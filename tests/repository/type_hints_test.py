"""Everything public in seed_tf has type hints, which mypy then checks."""

import ast

import keras
from absl.testing import absltest

from tools import architecture

# Methods that Keras calls take the arguments of Keras, and need no hints.
KERAS = {
    name
    for base in (
        keras.Model,
        keras.callbacks.Callback,
        keras.layers.RandomContrast,
        keras.optimizers.Optimizer,
    )
    for name in dir(base)
} - {"__init__"}
KERAS |= {"augment_batch", "augment_images", "get_random_transformation_batch"}


def public(body):
    """Public functions and methods, and constructors, by qualified name."""
    for node in body:
        match node:
            case ast.ClassDef() if not node.name.startswith("_"):
                for name, function in public(node.body):
                    yield f"{node.name}.{name}", function
            case ast.FunctionDef() if node.name not in KERAS:
                if not node.name.startswith("_") or node.name == "__init__":
                    yield node.name, node


def missing(function):
    """Names of the arguments without a hint, "return" for the result."""
    args = function.args
    names = [
        x.arg
        for x in (*args.posonlyargs, *args.args, *args.kwonlyargs)
        if not x.annotation and x.arg not in ("self", "cls")
    ]
    if not function.returns and function.name != "__init__":
        names.append("return")
    return names


class TypeHintsTest(absltest.TestCase):
    def test_every_public_function_has_hints(self):
        without = []
        for module, path in architecture.modules().items():
            if module.startswith("seed_tf"):
                for name, function in public(ast.parse(path.read_text()).body):
                    if names := missing(function):
                        without.append(f"{module}.{name}: {', '.join(names)}")
        self.assertEmpty(without, "\n" + "\n".join(without))

    def test_missing_hints_are_found(self):
        module = """
def whole(a: int, *b: int, c: str = "", **d: int) -> None: ...
def half(a: int, *b, c="", **d): ...
def _private(a): ...
class C:
    def __init__(self, a): ...
    def method(self, a: int): ...
    def _private(self, a): ...
"""
        found = {n: missing(f) for n, f in public(ast.parse(module).body)}
        self.assertEqual(
            found,
            {
                "whole": [],
                "half": ["c", "return"],
                "C.__init__": ["a"],
                "C.method": ["return"],
            },
        )


if __name__ == "__main__":
    absltest.main()
