"""Python functions that the graph of a data set calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tensorflow as tf

_Data = TypeVar("_Data", bound=tf.data.Dataset)


class PythonFunctions:
    """Calls Python functions in the graph of one data set.

    TensorFlow keeps each function of `tf.numpy_function` until the process
    ends, and with it arrays, and the descriptors of mapped files. These
    functions go with the data set. Derived data sets and iterators keep it.

    >>> functions = PythonFunctions()
    >>> dataset = tf.data.Dataset.range(3).map(
    ...     lambda x: functions.call(np.square, [x], tf.int64)
    ... )
    >>> list(functions.kept_by(dataset).as_numpy_iterator())
    [np.int64(0), np.int64(1), np.int64(4)]
    """

    def __init__(self) -> None:
        self._functions: list[Callable] = []

    def call(
        self,
        function: Callable,
        inputs: Sequence[tf.Tensor],
        dtypes: tf.DType | Sequence[tf.DType],
    ) -> Any:
        """Calls a function that depends on nothing but its inputs.

        Arguments and result are those of `tf.numpy_function`.
        """
        functions, number = self._functions, len(self._functions)
        functions.append(function)
        return tf.numpy_function(
            lambda *arrays: functions[number](*arrays),
            inputs,
            dtypes,
            stateful=False,
        )

    def kept_by(self, dataset: _Data) -> _Data:
        """Returns the data set, and frees the functions when it is freed."""
        weakref.finalize(dataset, self._functions.clear).atexit = False
        return dataset
