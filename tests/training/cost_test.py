"""What a step costs, against published figures and counts by hand."""

import contextlib
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.light_views import crop_and_flip

import seed_tf
from seed_tf.training import cost, estimate, resources


def tower(width, dim=6):
    """A convolution, its ReLU, a mean and a dense layer."""
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(dim, use_bias=False),
        ]
    )


class CostTest(parameterized.TestCase):
    @parameterized.parameters(
        # GMACs at 224 pixels as published, with classifiers of 1,000.
        ("resnet18", 1.82, 512),
        ("resnet50", 4.1, 2048),
        ("mobilenet_v3_large", 0.22, 1280),
        ("efficientnet_b0", 0.39, 1280),
    )
    def test_published_operations(self, name, gmacs, width):
        network = seed_tf.backbone(name)
        flops = cost.forward(network, (1, 224, 224, 3)).flops
        ours = flops / 2e9 + width * 1000 / 1e9
        self.assertAlmostEqual(ours, gmacs, delta=0.02 * gmacs)

    def test_by_hand(self):
        batch, side, width = 5, 8, 4
        pixels = batch * side**2
        convolution = 2 * pixels * width * 27
        dense = 2 * batch * width * 6
        net = tower(width)
        shape = (batch, side, side, 3)
        once = cost.forward(net, shape)
        self.assertEqual(once.flops, convolution + dense)
        # The map of the convolution beside its ReLU's.
        self.assertEqual(once.bytes, 2 * 4 * pixels * width)
        both = cost.forward_and_back(net, [shape])
        # The image's own gradient is not needed.
        self.assertEqual(both.flops, 2 * convolution + 3 * dense)
        # The ReLU's map is kept; its gradient comes beside that of the mean.
        maps = 4 * pixels * width
        self.assertBetween(both.bytes, 3 * maps, 3 * maps + 4000)

    def test_small_views_add_up(self):
        net = tower(4)
        shapes = [(2, 16, 16, 3), (12, 8, 8, 3)]
        together = cost.forward_and_back(net, shapes)
        apart = [cost.forward_and_back(net, [shape]) for shape in shapes]
        self.assertEqual(together.flops, sum(x.flops for x in apart))
        self.assertGreater(together.bytes, max(x.bytes for x in apart))

    def test_depthwise_convolution(self):
        net = keras.Sequential(
            [
                keras.Input((8, 8, 16)),
                keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False),
                keras.layers.DepthwiseConv2D(5, padding="same", use_bias=False),
                keras.layers.GlobalAveragePooling2D(),
            ]
        )
        first, second = (2 * 3 * 64 * 16 * taps for taps in (9, 25))
        shape = (3, 8, 8, 16)
        self.assertEqual(cost.forward(net, shape).flops, first + second)
        back = cost.forward_and_back(net, [shape]).flops
        self.assertEqual(back, 2 * first + 3 * second)

    def test_step(self):
        batch, dim, size = 16, 6, 50
        student, teacher = tower(4), tower(8)
        views = crop_and_flip(8)
        shared = {
            "views": views,
            "queue_size": size,
            "teacher_precision": "bfloat16",
        }
        model = seed_tf.SEED(student=student, teacher=teacher, **shared)
        model.compile(seed_tf.training.SGD(0.1))
        step = cost.of_step(model, encoder=student, batch_size=batch)
        shape = (batch, 8, 8, 3)
        self.assertEqual(
            step.flops,
            {
                "targets": cost.forward(teacher, shape).flops,
                "trained encoder and gradients": cost.forward_and_back(
                    student, [shape]
                ).flops,
                # Two softmaxes: similarities, and means that they weight.
                "loss": 2 * 2 * (2 * batch * size * dim),
            },
        )
        count = student.count_params()
        # The teacher's weights, and those of its copy in bfloat16.
        self.assertEqual(
            step.bytes["weights"], 4 * count + 6 * teacher.count_params()
        )
        self.assertEqual(step.bytes["queue"], 4 * size * dim)
        # A velocity for each weight; rate and step besides.
        self.assertBetween(step.bytes["optimizer"], 4 * count, 4 * count + 16)
        cached = cost.of_step(
            model, encoder=student, batch_size=batch, targets_cached=True
        )
        self.assertEqual(cached.flops, step.flops | {"targets": 0})
        # The objective's own products, of both similarities to the queue
        # and of their gradient.
        model = seed_tf.SEED(
            student=student,
            teacher=tower(8),
            objective=seed_tf.losses.binary_contrastive,
            **shared,
        )
        model.compile(seed_tf.training.SGD(0.1))
        other = cost.of_step(model, encoder=student, batch_size=batch)
        self.assertEqual(other.flops["loss"], 2 * (2 * batch * size * dim))
        self.assertGreater(
            other.bytes["working space of the loss"], 4 * batch * size
        )

    def test_step_of_a_strategy(self):
        """Its variables cannot be read outside of its replicas."""
        strategy = tf.distribute.MirroredStrategy(["CPU:0"])
        counted = []
        for scope in (contextlib.nullcontext(), strategy.scope()):
            with scope:
                student, teacher = tower(4), tower(8)
                model = seed_tf.SEED(
                    student=student,
                    teacher=teacher,
                    views=crop_and_flip(8),
                    queue_size=50,
                )
                model.compile(seed_tf.training.SGD(0.1))
            counted.append(cost.of_step(model, encoder=student, batch_size=16))
        self.assertEqual(*counted)

    def test_step_of_moco_and_of_small_views(self):
        batch, dim, size = 16, 6, 50
        shared = {"queue_size": size}
        encoder = tower(4)
        model = seed_tf.MoCo(encoder, views=crop_and_flip(8), **shared)
        model.compile(seed_tf.training.SGD(0.1))
        step = cost.of_step(model, encoder=encoder, batch_size=batch)
        self.assertEqual(step.flops["loss"], 2 * (2 * batch * size * dim))
        self.assertEqual(step.bytes["weights"], 2 * 4 * encoder.count_params())
        student, teacher = tower(4), tower(4)
        model = seed_tf.SEED(
            student=student,
            teacher=teacher,
            views=seed_tf.views.swav_small_patches(14),
            **shared,
        )
        model.compile(seed_tf.training.SGD(0.1))
        step = cost.of_step(model, encoder=student, batch_size=batch)
        shapes = [(batch, 14, 14, 3), (6 * batch, 6, 6, 3)]
        self.assertEqual(
            step.flops["targets"],
            sum(cost.forward(teacher, shape).flops for shape in shapes),
        )
        self.assertEqual(step.bytes["queue"], 2 * 4 * size * dim)

    @parameterized.parameters(
        (None, 256), (1456, 256), (1454, 128), (176, 16), (174, 0)
    )
    def test_images_that_fit(self, free, expected):
        step = cost.StepCost(
            {}, {"weights": 90, "activations and gradients": 910}
        )
        self.assertEqual(cost.images_that_fit(step, 256, free), expected)

    @parameterized.parameters(
        (None, r"images per second +[\d.]+\n", "measured"),
        (
            0.5,
            r"measured +steps of 16 images: no more fit into .* of free memory",
            "nothing",
        ),
        (0.0, "measured +nothing: 0 B are free", "images per second"),
    )
    @pytest.mark.slow
    def test_dry_run_takes_no_more_memory_than_there_is(
        self, share, expected, absent
    ):
        student, teacher = tower(4), tower(8)
        model = seed_tf.SEED(
            student=student,
            teacher=teacher,
            views=crop_and_flip(8),
            queue_size=50,
        )
        model.compile(seed_tf.training.SGD(0.1))
        step = cost.of_step(model, encoder=student, batch_size=32)
        fixed = sum(step.bytes.values())
        fixed -= step.bytes["activations and gradients"]
        free = {
            None: None,
            0.0: 0,
            0.5: fixed + 0.8 * step.bytes["activations and gradients"],
        }[share]
        images = np.zeros((32, 9, 9, 3), np.uint8)
        batches = tf.data.Dataset.from_tensors(images).repeat(40)
        with mock.patch.object(estimate, "free_memory", return_value=free):
            printed = seed_tf.training.dry_run(
                model,
                lambda step: batches.skip(step),
                encoder=student,
                teacher=teacher,
                epochs=4,
                steps_per_epoch=10,
                batch_size=32,
            )
        self.assertRegex(printed + "\n", expected)
        self.assertNotIn(absent, printed)
        self.assertRegex(printed, r"FLOPs per step +[\d.]+ [kM]\n")
        self.assertRegex(printed, r"steps +40 = 4 epochs of 10")
        self.assertEqual(model.step.numpy(), 0 if share == 0 else 5)

    def test_free_memory(self):
        free = resources.free_memory()
        if free is not None:
            self.assertBetween(free, 1e6, 1e14)


if __name__ == "__main__":
    absltest.main()
