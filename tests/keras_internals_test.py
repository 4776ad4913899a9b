"""Tests of private names of Keras and KerasCV. Each says what breaks."""

import contextlib
from unittest import mock

import keras
import keras_cv
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.devices import two_replicas
from tensorflow.python.data.ops import iterator_ops, multi_device_iterator_ops

from seed_tf import keras_internals


class Nested(keras.layers.Layer):
    """A layer in an attribute, a list and a layer."""

    def __init__(self):
        super().__init__()
        self.one = keras.layers.Dense(2)
        self.many = [keras.layers.Dense(2), keras.Sequential([self.one])]

    def call(self, inputs):
        return inputs


class Rows(keras.utils.PyDataset):
    """Three batches of two rows."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = np.full([2, 4], index, "float32")
        return rows, rows[:, :1]


def rows_of(kind):
    """The batches of `Rows`, as arguments of `fit`."""
    batches = [Rows()[i] for i in range(3)]
    arrays = [np.concatenate(x) for x in zip(*batches, strict=True)]
    if kind == "arrays":
        return {"x": arrays[0], "y": arrays[1], "batch_size": 2}
    if kind == "generator":
        return {"x": (batch for batch in batches)}
    if kind == "tf.data":
        data = tf.data.Dataset.from_tensor_slices(tuple(arrays))
        return {"x": data.batch(2, drop_remainder=True)}
    return {"x": Rows(workers=2 if kind == "PyDataset, 2 workers" else 1)}


class SteadySequential(keras_internals.SteadyInput, keras.Sequential):
    pass


def linear(kind):
    """A small model; `run_eagerly` saves the tracing."""
    model = kind(
        [keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def tuned(action):
    """Whether tf.data tunes the data sets that `action` iterates over.

    The buffers of each device, which a strategy adds, do not count.
    """
    found = set()
    kinds = (
        (iterator_ops.OwnedIterator, "_create_iterator"),
        (multi_device_iterator_ops.OwnedMultiDeviceIterator, "__init__"),
    )

    def spied(original):
        def spy(self, dataset=None, *args, **kwargs):
            buffer = multi_device_iterator_ops._ReincarnatedPerDeviceGenerator
            inputs = [] if dataset is None else [dataset, *dataset._inputs()]
            if inputs and not any(isinstance(x, buffer) for x in inputs):
                found.add(dataset.options().autotune.enabled is not False)
            return original(self, dataset, *args, **kwargs)

        return spy

    with contextlib.ExitStack() as stack:
        for kind, name in kinds:
            spy = spied(getattr(kind, name))
            stack.enter_context(mock.patch.object(kind, name, spy))
        action()
    return found


class KerasInternalsTest(parameterized.TestCase):
    def test_at_most(self):
        """Breaks: the limit on what the config of a file may allocate."""
        with keras_internals.at_most(3 * 5 * 4 + 5 * 4):
            made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
        self.assertEqual(made.count_params(), 20)
        with (
            keras_internals.at_most(10**6),
            self.assertRaisesRegex(ValueError, "4,000,000,000,000 bytes"),
        ):
            layer = keras.layers.Dense(10**6, use_bias=False)
            keras.Sequential([keras.Input((10**6,)), layer])
        keras.layers.Dense(5).build((3,))  # as before

    def test_all_layers(self):
        """Breaks: acceleration, shuffled and synchronised BatchNorm."""
        nested = Nested()
        outer = keras.Sequential([keras.Input((2,)), nested])
        found = keras_internals.all_layers(outer)
        self.assertLen({id(x) for x in found}, len(found))
        for layer in (outer, nested, nested.one, *nested.many):
            self.assertTrue(any(x is layer for x in found), layer.name)

    def test_is_training(self):
        """Breaks: fused kernels of layers whose `call` takes no `training`."""
        seen = []

        class Mine(keras.layers.Layer):
            def call(self, inputs):
                seen.append(keras_internals.is_training(self))
                return inputs

        inputs = keras.Input((2,))
        model = keras.Model(inputs, Mine()(inputs))
        seen.clear()
        for training in (True, False, None):
            model(np.ones((1, 2)), training=training)
        self.assertEqual(seen, [True, False, False])

    def test_nodes(self):
        """Breaks: folding a teacher's BatchNorm into its convolutions."""
        inputs = keras.Input((2,))
        dense, add = keras.layers.Dense(2), keras.layers.Add()
        x = dense(inputs)
        model = keras.Model(inputs, add([x, dense(x)]))
        nodes = keras_internals.nodes(model)
        self.assertEqual(sum(n.operation is dense for n in nodes), 2)
        (last,) = [n for n in nodes if n.operation is add]
        self.assertLen(last.input_tensors, 2)
        self.assertIs(last.output_tensors[0], model.outputs[0])

    def test_built_before_fit(self):
        """Breaks: training on several hosts, where `fit` reads a batch."""

        class Model(keras_internals.BuiltBeforeFit, keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(1)
                self.built = True

            def train_step(self, data):
                return {"loss": tf.reduce_sum(data[0])}

        read = []

        def rows():
            for i in range(4):
                read.append(i)
                yield (np.full([2], i, "float32"),)

        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            model = Model()
            model.compile("sgd")
        data = tf.data.Dataset.from_generator(
            rows, output_signature=(tf.TensorSpec([2]),)
        )
        model.fit(data, epochs=1, verbose=0)
        # Keras would begin anew after the batch that it throws away.
        self.assertEqual(read, [0, 1, 2, 3])
        self.assertFalse(model.dense.built)

    @parameterized.parameters(
        "PyDataset", "PyDataset, 2 workers", "generator", "tf.data"
    )
    def test_steady_input(self, kind):
        """Breaks: `evaluate`, whose end then waits for tf.data's tuning."""
        logs = []

        def evaluate(model):
            steps = 3 if kind == "generator" else None
            data = rows_of(kind)
            logs.append(model.evaluate(**data, steps=steps, verbose=0))

        model, plain = linear(SteadySequential), linear(keras.Sequential)
        self.assertEqual(tuned(lambda: evaluate(model)), {False})
        # Keras itself turns tuning off for a PyDataset with workers.
        expected = {kind != "PyDataset, 2 workers"}
        self.assertEqual(tuned(lambda: evaluate(plain)), expected)
        self.assertEqual(logs[0], logs[1])

    def test_steady_input_of_arrays(self):
        """Breaks: `fit` and `predict`, in the same way."""
        results = []

        def run(model):
            data = rows_of("arrays")
            keras.utils.set_random_seed(0)  # of the order
            fit = model.fit(**data, validation_split=1 / 3, verbose=0)
            predicted = model.predict(data["x"], verbose=0)
            results.append((fit.history, predicted))

        model, plain = linear(SteadySequential), linear(keras.Sequential)
        self.assertEqual(tuned(lambda: run(model)), {False})
        self.assertEqual(tuned(lambda: run(plain)), {True})
        tf.nest.map_structure(np.testing.assert_array_equal, *results)

    def test_steady_input_of_replicas(self):
        """Breaks: the same with several replicas."""
        strategy = two_replicas()
        with strategy.scope():
            model = linear(SteadySequential)
        self.assertIsInstance(model.distribute_strategy, type(strategy))
        data = rows_of("arrays")
        found = tuned(lambda: model.evaluate(**data, verbose=0))
        self.assertEqual(found, {False})

    def test_augments_batches(self):
        """Breaks: the views, which then lack a seed for each image."""

        class Mine(
            keras_internals.AugmentsBatches,
            keras_cv.layers.VectorizedBaseImageAugmentationLayer,
        ):
            def augment_batch(self, inputs):
                self.seen = sorted(inputs)
                return {**inputs, "images": inputs["images"] + 1}

        layer = Mine()
        batch = {"images": tf.zeros([2, 4, 4, 3]), "seeds": tf.zeros([2, 2])}
        found = layer(batch)
        self.assertEqual(layer.seen, ["images", "seeds"])
        np.testing.assert_array_equal(found["images"], 1.0)
        self.assertEqual(layer(tf.zeros([4, 4, 3])).shape, (4, 4, 3))


if __name__ == "__main__":
    absltest.main()
