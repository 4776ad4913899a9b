"""Replaces methods of layers for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator

import keras

METHODS = "call", "convolution_op", "normalise_group"
_LOCK = threading.Lock()


def is_patched(layer: keras.layers.Layer) -> bool:
    """Whether a layer has an instance method that is not a replacement."""
    return any(
        name in vars(layer) and not isinstance(vars(layer)[name], _Replacement)
        for name in METHODS
    )


@contextlib.contextmanager
def replaced(
    replacements: Iterable[tuple[keras.layers.Layer, str, Callable]],
) -> Iterator[None]:
    """Within the context, functions replace methods of layers.

    Several threads may share a replacement, as those of a `tf.distribute`
    strategy do. The last thread that leaves removes it.

    Args:
        replacements: triples of a layer, the name of its method, one of
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
            # `setattr` would make Keras and TensorFlow track it.
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
