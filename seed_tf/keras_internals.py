"""Every private name of Keras and KerasCV that this package relies on.

Each has no public counterpart in Keras 3.15 and KerasCV 0.9. If a new version
renames one, only this module changes; tests/keras_internals_test.py says what
breaks meanwhile.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import keras
import tensorflow as tf

from seed_tf.io.pipelines import steady

_limiting = threading.RLock()


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """Limits the variables that this thread makes within the context.

    The config of a strange file is built within it: Keras allocates the
    variables of a layer as soon as it reads the layer.

    Args:
        size: int, bytes of all new variables together.

    Raises:
        ValueError: before a variable is allocated that exceeds `size`.
    """
    variable = keras.Variable
    initialize = variable._initialize_with_initializer
    thread, made = threading.get_ident(), 0

    def counted(self, initializer):
        nonlocal made
        if threading.get_ident() == thread:
            made += math.prod(self._shape) * tf.as_dtype(self._dtype).size
            if made > size:
                raise ValueError(
                    f"Its layers ask for {made:,} bytes or more, and its "
                    f"weights have at most {size:,}."
                )
        return initialize(self, initializer)

    with _limiting:
        variable._initialize_with_initializer = counted
        try:
            yield
        finally:
            variable._initialize_with_initializer = initialize


def all_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns a model and the layers in it, at any depth, each once.

    `model.layers` stops at the first level, and plain layers lack it.
    """
    return list(model._flatten_layers())


def is_training(layer: keras.layers.Layer) -> bool:
    """Returns whether `layer` is being called with `training=True`.

    For use within a layer's `call`. Keras passes `training` only to layers
    whose own `call` has such an argument.
    """
    return bool(layer._get_call_context().get_value("training"))


def nodes(network: keras.Model) -> list:
    """Returns the calls of layers that a functional model consists of.

    Each has `operation`, `input_tensors` and `output_tensors`.
    """
    return [x for level in network._nodes_by_depth.values() for x in level]


class BuiltBeforeFit:
    """Mixin of a `keras.Model` whose `__init__` builds all that it has.

    Keras reads a first batch in `fit`, to build model, metrics and optimizer,
    and throws the batch away. On several hosts it cannot.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Does nothing."""


class SteadyInput:
    """Mixin of a `keras.Model` whose `fit` reads steadily, see `steady`.

    So do `evaluate` and `predict`. Keras makes a tf.data pipeline of arrays,
    PyDatasets and generators too, and hands every pipeline to the model's
    strategy to distribute.
    """

    @property
    def distribute_strategy(self):
        strategy = super().distribute_strategy  # type: ignore[misc]
        return _SteadyStrategy(strategy)


class _SteadyStrategy:
    """A `tf.distribute.Strategy` that distributes data sets steadily."""

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy

    @property  # type: ignore[misc]
    def __class__(self):  # for isinstance
        return type(self._strategy)

    def __getattr__(self, name):
        return getattr(self._strategy, name)

    def experimental_distribute_dataset(self, dataset, options=None):
        return self._strategy.experimental_distribute_dataset(
            steady(dataset), options
        )


class AugmentsBatches:
    """Mixin of a KerasCV layer that augments a whole batch in `augment_batch`.

    KerasCV's vectorised layers put images, labels and boxes of a batch into a
    dict, hand the dict to one private method, and undo the rest. The mixin
    must stand before KerasCV's class.
    """

    def augment_batch(self, inputs: dict) -> dict:
        """Returns the dict with its `"images"`, `[B, H, W, 3]`, augmented."""
        raise NotImplementedError

    def _batch_augment(self, inputs):
        return self.augment_batch(inputs)
