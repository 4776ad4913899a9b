"""Tests that acceleration is in force in training steps and nowhere else."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

import seed_tf
from seed_tf.acceleration import Acceleration, Hardware, Plan
from seed_tf.keras_internals import all_layers

METHODS = {"call", "convolution_op", "normalise_group"}


def network():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("silu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


@keras.saving.register_keras_serializable(package="plan_test")
def as_they_are(images):
    return tf.cast(images, "float32")


def images(n=8):
    return np.random.default_rng(0).integers(0, 256, (n, 6, 6, 3), np.uint8)


def seed_model(**options):
    return seed_tf.SEED(
        **{
            "student": network(),
            "teacher": network(),
            "views": as_they_are,
            "queue_size": 16,
            **options,
        }
    )


def moco_model(**options):
    return seed_tf.MoCo(
        **{
            "encoder": network(),
            "views": as_they_are,
            "queue_size": 16,
            "shuffle_groups": 2,
            **options,
        },
    )


def trained(model):
    return getattr(model, "student", None) or model.encoder


def own_methods(model):
    """Names of layers that are not what Keras made them."""
    return [
        x.name
        for x in all_layers(model)
        if METHODS & set(vars(x)) or x.dtype_policy.name != "float32"
    ]


class Watcher(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.found = []

    def look(self, *_, **__):
        self.found.append(own_methods(self.model))

    on_train_begin = on_train_end = on_epoch_end = look
    on_train_batch_begin = on_train_batch_end = look


class StepTest(parameterized.TestCase):
    @parameterized.product(
        build=[seed_model, moco_model], run_eagerly=[False, True]
    )
    def test_layers_are_keras_own_but_in_the_step(self, build, run_eagerly):
        model = build()
        self.assertEqual(own_methods(model), [])
        model.compile(seed_tf.training.SGD(0.1), run_eagerly=run_eagerly)
        watcher = Watcher()
        model.fit(
            images(), batch_size=4, epochs=2, verbose=0, callbacks=[watcher]
        )
        self.assertLen(watcher.found, 12)
        self.assertFalse(any(watcher.found))
        self.assertEqual(own_methods(model), [])
        for layer in all_layers(trained(model)):
            self.assertIs(layer.call.__func__, type(layer).call)

    def operations(self, model):
        step = tf.function(model.train_step, autograph=False)
        model.optimizer.build(model.trainable_variables)
        graph = step.get_concrete_function(tf.constant(images(4))).graph
        nodes = list(graph.as_graph_def().node)
        for inner in graph.as_graph_def().library.function:
            nodes += inner.node_def
        return [node.op for node in nodes]

    @parameterized.parameters(seed_model, moco_model)
    def test_the_step_is_accelerated(self, build):
        counts = []
        for acceleration in ("auto", None):
            model = build(acceleration=acceleration)
            model.compile(seed_tf.training.SGD(0.1))
            found = self.operations(model)
            counts.append(found.count("FusedBatchNormV3"))
        # MoCo's momentum encoder has two groups.
        self.assertEqual(counts, [1 if build is seed_model else 3, 0])

    def test_evaluation_and_gradients_outside_are_plain(self):
        model = seed_model()
        model.compile(seed_tf.training.SGD(0.1))
        model.fit(images(), batch_size=4, verbose=0)

        def tuned(x):
            with tf.GradientTape() as tape:
                y = tf.reduce_sum(model.student(x, training=True))
            return tape.gradient(y, model.student.trainable_variables)

        spec = tf.TensorSpec([4, 6, 6, 3])
        graph = tf.function(tuned).get_concrete_function(spec).graph
        types = {x.type for x in graph.get_operations()}
        self.assertIn("Conv2D", types)
        self.assertNotIn("FusedBatchNormV3", types)

    @parameterized.parameters(seed_model, moco_model)
    def test_trains_in_bfloat16_as_by_keras_policy(self, build):
        """Bit for bit, and layers and weights stay float32."""
        weights = []
        for policy, chosen in (
            ("float32", "auto"),
            ("mixed_bfloat16", "float32"),
        ):
            keras.utils.set_random_seed(0)
            keras.config.set_dtype_policy(policy)
            encoder = seed_tf.Encoder(network(), embedding_dim=3)
            keras.config.set_dtype_policy("float32")
            name = "student" if build is seed_model else "encoder"
            plan = Plan(Hardware(bfloat16=True), chosen)
            model = build(acceleration=plan, **{name: encoder})
            self.assertIn("training in bfloat16", str(model.acceleration))
            model.compile(seed_tf.training.SGD(0.1), run_eagerly=True)
            model.train_on_batch(images(4))
            if policy == "float32":
                self.assertEqual(own_methods(model), [])
            self.assertEqual({x.dtype for x in encoder.weights}, {"float32"})
            weights.append(encoder.get_weights())
        for by_plan, by_keras in zip(*weights, strict=True):
            np.testing.assert_array_equal(by_plan, by_keras)

    @parameterized.parameters(
        keras.layers.Activation("relu", dtype="mixed_float16"),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Lambda(lambda x: x),
    )
    def test_a_precision_of_the_users_own_stays(self, layer):
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3)(layer(inputs))
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Dense(3)(x)
        model = seed_model(
            student=keras.Model(inputs, x),
            acceleration=Plan(Hardware(bfloat16=True)),
        )
        self.assertIn("training in float32", str(model.acceleration))

    @parameterized.parameters(seed_model, moco_model)
    def test_a_method_of_the_users_own_stays(self, build):
        model, calls = build(), []
        layers = all_layers(trained(model))
        norm, conv = (
            next(x for x in layers if isinstance(x, kind))
            for kind in (
                keras.layers.BatchNormalization,
                keras.layers.Conv2D,
            )
        )
        call = norm.call

        def mine(*args, **kwargs):
            calls.append(1)
            return call(*args, **kwargs)

        norm.call = mine
        conv.convolution_op = convolve = conv.convolution_op
        model.compile(seed_tf.training.SGD(0.1))
        found = self.operations(model)
        self.assertEqual(
            found.count("FusedBatchNormV3"), 0 if build is seed_model else 2
        )
        self.assertIn("Conv2D", found)
        self.assertLen(calls, 1)
        self.assertIs(norm.call, mine)
        self.assertEqual(vars(conv)["convolution_op"], convolve)

    def test_a_teacher_with_a_method_of_its_own_is_called_as_it_is(self):
        model = seed_model()
        teacher = model.teacher
        teacher.layers[-1].call = lambda x, **_: tf.ones([len(x), 3])
        again = seed_tf.SEED(
            student=network(), teacher=teacher, views=as_they_are, queue_size=8
        )
        self.assertIn("teacher as it is", str(again.acceleration))
        np.testing.assert_allclose(
            again.embed_by_teacher(tf.zeros([2, 6, 6, 3])), 1.0
        )

    def test_gradients_hold_after_the_context(self):
        net = network()
        acceleration = Acceleration(Plan(Hardware(accelerated=True)))
        x = tf.constant(images(4), "float32")
        with tf.GradientTape(persistent=True) as tape:
            with acceleration.applied(net):
                found = tf.reduce_sum(net(x, training=True) ** 2)
            expected = tf.reduce_sum(net(x, training=True) ** 2)
        self.assertEqual(own_methods(net), [])
        for a, b in zip(
            tape.gradient(found, net.trainable_variables),
            tape.gradient(expected, net.trainable_variables),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


class ContextTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.net = network()
        self.acceleration = Acceleration()

    def count(self):
        return len(own_methods(self.net))

    def test_an_error_undoes_it(self):
        with self.assertRaises(KeyError), self.acceleration.applied(self.net):
            self.assertEqual(self.count(), 3)
            raise KeyError
        self.assertEqual(self.count(), 0)

    def test_in_any_order(self):
        """The replicas of a strategy enter in turns and leave in any order."""
        contexts = [self.acceleration.applied(self.net) for _ in range(3)]
        for context in contexts:
            context.__enter__()
        for context in contexts:
            self.assertEqual(self.count(), 3)
            context.__exit__(None, None, None)
        self.assertEqual(self.count(), 0)

    def test_replicas_of_a_strategy(self):
        strategy = tf.distribute.MirroredStrategy(["CPU:0"])
        with strategy.scope():
            model = seed_model()
            model.compile(seed_tf.training.SGD(0.1))
        model.fit(images(), batch_size=4, verbose=0)
        self.assertEqual(own_methods(model), [])

    def test_models_that_share_a_network(self):
        other = Acceleration(Plan(Hardware(accelerated=True)))
        with self.acceleration.applied(self.net), other.applied(self.net):
            self.assertEqual(self.count(), 3)
        self.assertEqual(self.count(), 0)


class PlanTest(parameterized.TestCase):
    def test_says_what_it_replaces(self):
        plan = Plan(Hardware(accelerated=True, bfloat16=True))
        model = seed_model(acceleration=plan)
        self.assertEqual(
            str(model.acceleration),
            "training in bfloat16 with faster kernels for 1 Conv2D, "
            "1 BatchNormalization, 1 Activation; teacher folded in bfloat16; "
            "for accelerator with bfloat16",
        )
        self.assertEqual(
            str(seed_model(acceleration=None).acceleration),
            "none, plain Keras",
        )
        model.compile(seed_tf.training.SGD(0.1))
        with self.assertLogs("absl", level="INFO") as logged:
            model.fit(images(), batch_size=4, epochs=2, verbose=0)
        lines = [x for x in logged.output if "teacher folded" in x]
        self.assertLen(lines, 1)

    @parameterized.parameters(seed_model, moco_model)
    def test_is_part_of_the_config(self, build):
        plan = Plan(Hardware(accelerated=True))
        for acceleration in ("auto", None, plan):
            model = build(acceleration=acceleration)
            again = type(model).from_config(model.get_config())
            self.assertEqual(again.acceleration.requested, acceleration)
        config = build().get_config()
        del config["acceleration"]  # files before there was a choice
        again = type(model).from_config(config)
        self.assertEqual(
            again.acceleration.requested, Plan(student_policy="float32")
        )
        plan = Plan(plan.hardware, "mixed_bfloat16")
        self.assertEqual(Plan.from_config(plan.get_config()), plan)
        # A plan before it chose a precision.
        config = {"accelerated": True, "bfloat16": True}
        self.assertEqual(
            Plan.from_config(config), Plan(Hardware(True, True), "auto")
        )

    def test_refuses_others(self):
        with self.assertRaisesRegex(ValueError, "acceleration='fast'"):
            seed_model(acceleration="fast")
        with self.assertRaisesRegex(ValueError, "acceleration=None"):
            seed_model(acceleration=None, teacher_precision="bfloat16")
        with self.assertRaisesRegex(ValueError, "student_policy='float16'"):
            Plan(student_policy="float16")

    def test_plain_keras_calls_the_teacher_itself(self):
        model, calls = seed_model(acceleration=None), []
        call = model.teacher.layers[1].call
        model.teacher.layers[1].call = lambda x: calls.append(1) or call(x)
        model.embed_by_teacher(tf.zeros([1, 6, 6, 3]))
        self.assertLen(calls, 1)

    def test_the_teacher_is_folded_once_for_each_fit(self):
        model, folds = seed_model(), []
        fold = model.embed_by_teacher.update
        model.embed_by_teacher.update = lambda: folds.append(1) or fold()
        model.compile(seed_tf.training.SGD(0.1))
        for _ in range(3):
            model.train_on_batch(images(4))
        self.assertLen(folds, 1)
        for count in (2, 3):
            model.fit(images(), batch_size=4, epochs=2, verbose=0)
            self.assertLen(folds, count)
        model.evaluate(images(), batch_size=4, verbose=0)
        model.evaluate(images(), batch_size=4, verbose=0)
        self.assertLen(folds, 5)
        options = {"validation_data": (images(),), "verbose": 0}
        model.fit(images(), batch_size=4, epochs=3, **options)
        self.assertLen(folds, 6)


if __name__ == "__main__":
    absltest.main()
