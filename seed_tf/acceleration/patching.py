"""Methods of layers replaced for a while, safely."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator

import keras

METHODS = "call", "convolution_op", "normalise_group"
_LOCK = threading.Lock()


def is_patched(layer: keras.layers.Layer) -> bool:
    """Returns whether somebody else gave a layer a method of its own."""
    return any(
        name in vars(layer) and not isinstance(vars(layer)[name], _Replacement)
        for name in METHODS
    )


@contextlib.contextmanager
def replaced(
    replacements: Iterable[tuple[keras.layers.Layer, str, Callable]],
) -> Iterator[None]:
    """Within the context, functions stand in for methods of layers.

    Several threads may be in the context at a time, as those of a
    `tf.distribute` strategy are, which take turns within a step. A replacement
    goes as the last of them leaves.

    Args:
        replacements: iterable of a layer, the name of its method, one of
            `METHODS`, and a function of the method's arguments.
    """
    installed = []
    try:
        for layer, name, function in replacements:
            installed.append(_install(layer, name, function))
        yield
    finally:
        for replacement in installed:
            replacement.release()


def _install(layer, name, function):
    with _LOCK:
        replacement = vars(layer).get(name)
        if replacement is None:
            replacement = _Replacement(layer, name, function)
            # Not `setattr`, by which Keras and TensorFlow would track it.
            vars(layer)[name] = replacement
        replacement.users += 1
        return replacement


class _Replacement:
    """A function in place of a method, and how many contexts use it."""

    def __init__(self, layer, name, function):
        self._layer, self._name, self._function = layer, name, function
        self.users = 0

    def __call__(self, *args, **kwargs):
        return self._function(*args, **kwargs)

    def release(self):
        with _LOCK:
            self.users -= 1
            if not self.users:
                del vars(self._layer)[self._name]
