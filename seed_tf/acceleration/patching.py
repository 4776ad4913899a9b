"""Replaces methods and dtype policies of layers for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import keras

METHODS = "call", "convolution_op", "normalise_group"
_LOCK = threading.Lock()
_HELD: dict[tuple[int, str], _Replacement] = {}


def is_patched(layer: keras.layers.Layer) -> bool:
    """Whether a layer has an instance method that is not a replacement."""
    return any(
        name in vars(layer) and (id(layer), name) not in _HELD
        for name in METHODS
    )


@contextlib.contextmanager
def replaced(
    replacements: Iterable[tuple[keras.layers.Layer, str, Any]],
) -> Iterator[None]:
    """Within the context, layers have other methods or dtype policies.

    Several threads may share a replacement, as those of a `tf.distribute`
    strategy do. The last thread that leaves removes it.

    Args:
        replacements: triples of a layer, a name and a value: the name of a
            method, one of `METHODS`, and a function of its arguments; or
            "dtype_policy" and a policy.
    """
    installed = []
    try:
        for layer, name, value in replacements:
            installed.append(_install(layer, name, value))
        yield
    finally:
        for replacement in installed:
            replacement.release()


def _install(layer, name, value):
    with _LOCK:
        key = id(layer), name
        if key not in _HELD:
            _HELD[key] = _Replacement(layer, name, value)
        _HELD[key].users += 1
        return _HELD[key]


class _Replacement:
    """A replaced attribute, and how many contexts use it."""

    def __init__(self, layer, name, value):
        self._layer, self._name = layer, name
        self.users = 0
        if name in METHODS:
            # `setattr` would make Keras and TensorFlow track it.
            vars(layer)[name] = value
        else:
            self._before = getattr(layer, name)
            setattr(layer, name, value)

    def release(self):
        with _LOCK:
            self.users -= 1
            if self.users:
                return
            del _HELD[id(self._layer), self._name]
            if self._name in METHODS:
                del vars(self._layer)[self._name]
            else:
                setattr(self._layer, self._name, self._before)
