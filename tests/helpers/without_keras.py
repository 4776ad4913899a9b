"""Imported first, it hides what a server does not have: plain TensorFlow.

Where Keras is installed, `import tensorflow` imports it by itself.
"""

import importlib.machinery
import sys

HIDDEN = ("keras", "seed_tf", "PIL")


class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            return None
        return super().find_spec(name, path, target)


sys.meta_path = [
    Finder if finder is importlib.machinery.PathFinder else finder
    for finder in sys.meta_path
]
