"""Training on several replicas, where Keras's own trainer fails.

On one device these functions do nothing, or are not called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from seed_tf.keras_internals import all_layers


def gather(tensor: tf.Tensor) -> tf.Tensor:
    """Returns `[B, ...]` of every replica, concatenated in replica order."""
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return tensor
    batch, *shape = tensor.shape
    gathered = context.all_gather(tensor, axis=0)
    # all_gather forgets the static shape.
    return tf.ensure_shape(gathered, [batch and replicas * batch, *shape])


def average(values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the mean over all replicas of each scalar in a dict."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    means = context.all_reduce(
        tf.distribute.ReduceOp.MEAN, tf.stack(list(values.values()))
    )
    return dict(zip(values, tf.unstack(means), strict=True))


def average_statistics(network: keras.Model) -> None:
    """Gives all replicas the mean of their BatchNorm's running statistics.

    Keras lets the statistics of unsynchronised layers diverge, so that workers
    would save and evaluate different networks.
    """
    context = tf.distribute.get_replica_context()
    variables = [
        variable
        for layer in all_layers(network)
        if isinstance(layer, keras.layers.BatchNormalization)
        and not layer.synchronized
        for variable in (layer.moving_mean, layer.moving_variance)
    ]
    if context.num_replicas_in_sync == 1 or not variables:
        return
    means = context.all_reduce(
        tf.distribute.ReduceOp.MEAN, [v.value.read_value() for v in variables]
    )
    for variable, mean in zip(variables, means, strict=True):
        variable.assign(mean)


def overflow_of_all(gradients: list, norm: tf.Tensor) -> list:
    """Returns gradients, NaN on every replica if one replica's overflow.

    Keras looks at the first replica's gradients only to decide whether to skip
    a step, as if gradients were summed already. An overflow elsewhere would
    spoil the sum.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, norm)
    spoil = tf.where(tf.math.is_finite(total), 0.0, np.nan)
    return [g if g is None else g + tf.cast(spoil, g.dtype) for g in gradients]


class Mean(keras.metrics.Mean):
    """Running mean of a value that is the same on all replicas.

    Keras keeps one mean per replica and adds them up at each reading. On
    several hosts, all hosts would have to read at the same time.
    """

    def add_variable(self, *args, **kwargs):
        kwargs["aggregation"] = "only_first_replica"
        return super().add_variable(*args, **kwargs)


def on_all(model: keras.Model, step: Callable) -> Callable:
    """Returns the function that Keras calls with an iterator in `fit`.

    Keras's own function fails with several replicas, in three ways. It
    compiles all replicas into one XLA program, whose variables would lie on
    several devices. For `steps_per_execution` it calls a `tf.function` within a
    condition within a loop, which TensorFlow cannot place on several devices.
    It averages the scalar logs of several workers over an axis that the logs
    do not have.

    Args:
        model: keras.Model, compiled.
        step: its `train_step` or `test_step`.
    """
    strategy, count = model.distribute_strategy, model.steps_per_execution

    @tf.autograph.experimental.do_not_convert
    def execute(iterator):
        def run(i):
            strategy.run(step, args=(next(iterator),))
            return i + 1

        if count > 1:
            tf.while_loop(lambda i: i < count, run, [0], parallel_iterations=1)
        else:
            run(0)
        return model.get_metrics_result()

    if not model.run_eagerly:
        execute = tf.function(execute, reduce_retracing=True)

    def function(iterator):
        if not isinstance(iterator, tf.distribute.DistributedIterator):
            raise ValueError(
                "Several replicas train and evaluate by `fit` and "
                "`evaluate`, not on single batches."
            )
        return execute(iterator)

    return function


def check(model: keras.Model, x: Any, steps: int | None) -> None:
    """Checks that several replicas can share data and settings.

    Args:
        model: keras.Model, compiled.
        x: the data that `fit` is called with.
        steps: int, `steps_per_epoch` of `fit`, or None.

    Raises:
        ValueError: if replicas cannot share the batches.
    """
    strategy = model.distribute_strategy
    replicas = strategy.num_replicas_in_sync
    by_worker = isinstance(x, tf.distribute.DistributedDataset)
    workers = tf.distribute.MultiWorkerMirroredStrategy
    if isinstance(strategy, workers) and not by_worker:
        raise ValueError(
            "Each worker must read its own rows of a batch: pass what "
            "`seed_tf.training.devices.distribute(strategy, load)` gives. "
            f"Received: {type(x).__name__}."
        )
    if isinstance(x, tf.data.Dataset):
        batch = tf.nest.flatten(x.element_spec)[0].shape[0]
        if batch is None or batch % replicas:
            raise ValueError(
                f"{replicas} replicas share each batch: its size must be "
                "known (`batch(..., drop_remainder=True)`) and a multiple "
                f"of {replicas}. Received: batches of "
                f"{'unknown size' if batch is None else batch}."
            )
        steps = steps or int(x.cardinality())
    if steps and max(steps, 1) % model.steps_per_execution:
        raise ValueError(
            f"With {replicas} replicas, `steps_per_execution` must divide "
            "the steps of an epoch, and these be known. Received: "
            f"steps_per_execution={model.steps_per_execution}, "
            f"{steps if steps > 0 else 'unknown'} steps."
        )
    synchronised = [
        layer.name
        for layer in all_layers(model)
        if getattr(layer, "synchronized", False) and layer.trainable
    ]
    if model.jit_compile and synchronised:
        raise ValueError(
            "XLA compiles each replica's own part of a step, and synchronised "
            "BatchNorm needs all replicas: leave out `jit_compile=True` or the "
            "synchronisation. Received: synchronised layers "
            f"{', '.join(synchronised)}."
        )
