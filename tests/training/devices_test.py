"""Which devices a run takes, and what it says when they are not there."""

import json
import os
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.runs import free_ports

import seed_tf
from seed_tf.keras_internals import all_layers
from seed_tf.training import devices

TWO = {"worker": ["a:1", "b:2"]}


def environment(config):
    text = config if isinstance(config, str) else json.dumps(config)
    return mock.patch.dict(os.environ, {"TF_CONFIG": text})


class StrategyTest(parameterized.TestCase):
    def test_one_device_needs_nothing(self):
        for name in ("one", "auto"):
            strategy = devices.make_strategy(name)
            self.assertEqual(strategy.num_replicas_in_sync, 1)
        self.assertTrue(devices.is_chief())
        self.assertEqual(
            devices.distribute(strategy, lambda shard: shard), (0, 1)
        )
        devices.barrier(strategy)

    @parameterized.parameters(
        ("mirrored", None, "needs GPUs. TensorFlow finds none.*cuda"),
        ("multiworker", None, "needs the environment variable TF_CONFIG"),
        ("tpu", None, "needs a TPU. This host has none"),
        ("auto", "local", "needs a TPU. This host has none"),
        ("tpu", "mine", "Received: tpu='mine'"),
        ("gpus", None, "Received: name='gpus'"),
    )
    def test_what_is_not_there(self, name, tpu, message):
        with self.assertRaisesRegex(ValueError, message):
            devices.make_strategy(name, tpu)

    def test_a_tpu_that_does_not_answer(self):
        (port,) = free_ports(1)
        address = f"grpc://localhost:{port}"
        with self.assertRaisesRegex(
            ValueError, f"No TPU answers at '{address}': .*refused"
        ):
            devices.make_strategy("tpu", address)

    @parameterized.parameters(
        "{",
        "[]",
        ({"cluster": TWO},),
        ({"cluster": TWO, "task": {"type": "worker", "index": 2}},),
        ({"cluster": TWO, "task": {"type": "ps", "index": 0}},),
        ({"cluster": TWO, "task": {"type": "worker"}},),
    )
    def test_malformed_tf_config(self, config):
        with (
            environment(config),
            self.assertRaisesRegex(ValueError, "must be JSON such as .*Receiv"),
        ):
            devices.make_strategy("auto")

    @parameterized.parameters(
        ("worker", 0, False, True),
        ("worker", 1, False, False),
        ("worker", 0, True, False),
        ("chief", 0, True, True),
    )
    def test_chief(self, kind, index, with_chief, expected):
        cluster = TWO | ({"chief": ["c:3"]} if with_chief else {})
        task = {"type": kind, "index": index}
        with environment({"cluster": cluster, "task": task}):
            self.assertEqual(devices.is_chief(), expected)

    def test_a_lost_worker_is_told_from_other_errors(self):
        lost = tf.errors.InternalError(
            None,
            None,
            "Collective ops is aborted by: Error reported from "
            "/job:worker/task:1: The following tasks are unhealthy (stopped "
            "sending heartbeats)",
        )
        other = tf.errors.InvalidArgumentError(None, None, "shapes differ")
        self.assertFalse(devices.worker_lost(lost))  # there is no other
        task = {"type": "worker", "index": 0}
        with environment({"cluster": TWO, "task": task}):
            self.assertTrue(devices.worker_lost(lost))
            self.assertFalse(devices.worker_lost(other))

    def test_synchronise_batch_norm_finds_nested_layers(self):
        encoder = seed_tf.Encoder("resnet18", embedding_dim=8)
        norms = [
            layer
            for layer in all_layers(encoder)
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        self.assertLen(norms, 20)
        self.assertFalse(any(layer.synchronized for layer in norms))
        devices.synchronise_batch_norm(encoder)
        self.assertTrue(all(layer.synchronized for layer in norms))


class StepTest(parameterized.TestCase):
    """The whole step, views included, as XLA and TPUs need it."""

    def model(self, small_patches=False):
        def tower():
            return keras.Sequential(
                [
                    keras.Input((None, None, 3)),
                    keras.layers.Rescaling(1 / 255.0),
                    keras.layers.Conv2D(8, 3),
                    keras.layers.BatchNormalization(),
                    keras.layers.GlobalAveragePooling2D(),
                    keras.layers.Dense(4),
                ]
            )

        keras.utils.set_random_seed(0)
        views = seed_tf.views.swav(12)
        if small_patches:
            small = seed_tf.views.small_patches(6)
            views = seed_tf.views.multi_crop(views, small, num_small=2)
        return seed_tf.SEED(
            student=tower(), teacher=tower(), views=views, queue_size=24
        )

    @parameterized.parameters("images", "crops", "small_patches")
    @pytest.mark.slow
    def test_compiles_and_trains_the_same(self, kind):
        rng = np.random.default_rng(0)

        def pixels(*shape):
            return rng.integers(0, 256, (40, *shape, 3), dtype=np.uint8)

        if kind == "images":
            data = pixels(16, 16)
        elif kind == "crops":
            data = pixels(1, 12, 12)
        else:
            data = ((pixels(1, 12, 12), pixels(2, 6, 6)),)
        data = tf.data.Dataset.from_tensor_slices(data).batch(8)
        found = []
        for jit_compile in (False, True):
            model = self.model(small_patches=kind == "small_patches")
            model.compile(seed_tf.training.SGD(0.05), jit_compile=jit_compile)
            history = model.fit(data, epochs=2, verbose=0).history
            found.append((history["loss"], model.student.get_weights()))
        np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
        for a, b in zip(found[0][1], found[1][1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)

    def test_is_traced_once(self):
        model, traces = self.model(), []
        model.compile(seed_tf.training.SGD(0.05))
        step = model.train_step
        model.train_step = lambda data: traces.append(1) or step(data)
        images = np.zeros((44, 16, 16, 3), np.uint8)
        data = tf.data.Dataset.from_tensor_slices(images)
        data = data.batch(8, drop_remainder=True)
        for _ in range(2):
            model.fit(data, epochs=2, verbose=0)
        self.assertLen(traces, 1)


if __name__ == "__main__":
    absltest.main()
