"""Tests of private names of Keras and KerasCV. Each says what breaks."""

import keras
import keras_cv
import numpy as np
import tensorflow as tf
from absl.testing import absltest

from seed_tf import keras_internals


class Nested(keras.layers.Layer):
    """A layer in an attribute, a list and a layer."""

    def __init__(self):
        super().__init__()
        self.one = keras.layers.Dense(2)
        self.many = [keras.layers.Dense(2), keras.Sequential([self.one])]

    def call(self, inputs):
        return inputs


class KerasInternalsTest(absltest.TestCase):
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
