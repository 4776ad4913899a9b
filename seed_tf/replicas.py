"""What several replicas of a model need and Keras does not give them.

For one device all of this does nothing, or is not called.
"""

import keras
import numpy as np
import tensorflow as tf


def gather(tensor):
    """`[B, ...]` of every replica, concatenated in replica order."""
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return tensor
    batch, *shape = tensor.shape
    gathered = context.all_gather(tensor, axis=0)
    # all_gather forgets the static shape.
    return tf.ensure_shape(gathered, [batch and replicas * batch, *shape])


def average(values):
    """Each value's mean over all replicas, of a dict of scalars."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    means = context.all_reduce(
        tf.distribute.ReduceOp.MEAN, tf.stack(list(values.values()))
    )
    return dict(zip(values, tf.unstack(means), strict=True))


def average_statistics(tower):
    """Gives all replicas the mean of their BatchNorm's running statistics.

    Keras lets those of unsynchronised layers part, so that workers would
    save and evaluate different networks.
    """
    context = tf.distribute.get_replica_context()
    variables = [
        variable
        for layer in tower._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        and not layer.synchronized
        for variable in (layer.moving_mean, layer.moving_variance)
    ]
    if context.num_replicas_in_sync == 1 or not variables:
        return
    means = context.all_reduce(
        tf.distribute.ReduceOp.MEAN,
        [v.value.read_value() for v in variables],
    )
    for variable, mean in zip(variables, means, strict=True):
        variable.assign(mean)


def overflow_of_all(gradients, norm):
    """Gradients that are NaN on every replica if one replica's overflow.

    Keras decides by the first replica's alone whether a step is skipped, as
    if gradients were summed already, and lets those of others spoil the sum.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, norm)
    spoil = tf.where(tf.math.is_finite(total), 0.0, np.nan)
    return [g if g is None else g + tf.cast(spoil, g.dtype) for g in gradients]


class Mean(keras.metrics.Mean):
    """The running mean of values that all replicas agree upon.

    Keras keeps one mean per replica and adds them up wherever one is read: on
    several hosts all would have to read it at the same time.
    """

    def add_variable(self, *args, **kwargs):
        kwargs["aggregation"] = "only_first_replica"
        return super().add_variable(*args, **kwargs)


def on_all(model, step):
    """What Keras calls with an iterator, for several replicas.

    Keras's own (`TensorFlowTrainer._make_function`) fails there. It compiles
    all replicas into one XLA program, whose variables would lie on several
    devices; for `steps_per_execution` it calls a `tf.function` within a
    condition within a loop, and TensorFlow cannot place that on several
    devices; and it averages the scalar logs of several workers over an axis
    that they do not have.

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


def check(model, x, steps):
    """Refuses data and settings that several replicas cannot share.

    Args:
        model: keras.Model, compiled.
        x: what `fit` is given.
        steps: int, its `steps_per_epoch`, or None.

    Raises:
        ValueError: if the batches cannot be divided among them.
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
        for layer in model._flatten_layers()
        if getattr(layer, "synchronized", False) and layer.trainable
    ]
    if model.jit_compile and synchronised:
        raise ValueError(
            "XLA compiles what each replica does alone, and synchronised "
            "BatchNorm is not that: leave out `jit_compile=True` or the "
            "synchronisation. Received: synchronised layers "
            f"{', '.join(synchronised)}."
        )
