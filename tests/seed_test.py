"""SEED against a float64 NumPy run of the method, and as a Keras model."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.light_views import crop_and_flip

import seed_tf
from seed_tf import losses, resampling
from seed_tf.embeddings import l2_normalise


def towers(dim=4, hidden=6, pixels=12, seed=0):
    """A student and a teacher of two dense layers on 2x2 RGB images."""
    keras.utils.set_random_seed(seed)
    return [
        keras.Sequential(
            [
                keras.layers.Input((2, 2, 3)),
                keras.layers.Rescaling(1 / 255.0),
                keras.layers.Flatten(),
                keras.layers.Dense(width, activation="relu"),
                keras.layers.Dense(dim),
            ],
            name=name,
        )
        for name, width in (("student", hidden), ("teacher", 2 * hidden))
    ]


@keras.saving.register_keras_serializable("seed_test")
def same_pixels(images):
    """A view that changes nothing, so that an oracle can follow."""
    return tf.image.resize(tf.cast(images, "float32"), (2, 2))


def random_images(n, size=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def batches(images, batch_size):
    data = tf.data.Dataset.from_tensor_slices(images)
    return data.batch(batch_size, drop_remainder=True)


class Batches(keras.utils.PyDataset):
    """Batches of four images."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return len(self.images) // 4

    def __getitem__(self, index):
        return self.images[4 * index : 4 * index + 4]


class NumpySEED:
    """The method in float64: forward, backward, SGD and queue by hand."""

    def __init__(self, model, learning_rate, momentum, weight_decay):
        self.student = [
            w.astype("float64") for w in model.student.get_weights()
        ]
        self.teacher = [
            w.astype("float64") for w in model.teacher.get_weights()
        ]
        self.queue = model.queue.embeddings.numpy().astype("float64")
        self.cursor = 0
        self.velocity = [np.zeros_like(w) for w in self.student]
        self.hyper = learning_rate, momentum, weight_decay

    @staticmethod
    def forward(weights, images):
        w1, b1, w2, b2 = weights
        x = images.reshape(len(images), -1) / 255.0
        hidden = np.maximum(x @ w1 + b1, 0)
        y = hidden @ w2 + b2
        length = np.linalg.norm(y, axis=1, keepdims=True)
        return x, hidden, length, y / length

    def step(self, images, t_s, t_t):
        _, _, _, z_t = self.forward(self.teacher, images)
        x, hidden, length, z_s = self.forward(self.student, images)
        losses_, dz = [], []
        for s, t in zip(z_s, z_t, strict=True):
            points = np.concatenate([t[None], self.queue])
            p, q = np.exp(points @ t / t_t), np.exp(points @ s / t_s)
            p, q = p / p.sum(), q / q.sum()
            losses_.append(-np.sum(p * np.log(q)))
            dz.append((q - p) @ points / t_s)
        dz = np.array(dz) / len(images)
        dy = (dz - z_s * np.sum(dz * z_s, axis=1, keepdims=True)) / length
        dh = (dy @ self.student[2].T) * (hidden > 0)
        gradients = [x.T @ dh, dh.sum(0), hidden.T @ dy, dy.sum(0)]
        rate, momentum, decay = self.hyper
        for w, v, g in zip(self.student, self.velocity, gradients, strict=True):
            v *= momentum
            v += g + decay * w
            w -= rate * v
        for t in z_t:
            self.queue[self.cursor] = t
            self.cursor = (self.cursor + 1) % len(self.queue)
        return np.mean(losses_)


class StepByStepTest(parameterized.TestCase):
    @parameterized.parameters(10, 24, 7)  # 7 < batch: only the newest stay
    def test_twenty_steps_follow_numpy(self, queue_size):
        student, teacher = towers()
        model = seed_tf.SEED(
            student=student,
            teacher=teacher,
            views=same_pixels,
            queue_size=queue_size,
            teacher_temperature=0.1,
        )
        model.compile(seed_tf.training.SGD(0.5, 0.9, 1e-3))
        oracle = NumpySEED(model, 0.5, 0.9, 1e-3)
        images = random_images(20 * 8)
        for step in range(20):
            batch = images[8 * step : 8 * step + 8]
            logs = model.train_on_batch(batch, return_dict=True)
            model.reset_metrics()
            expected = oracle.step(batch.astype("float64"), 0.2, 0.1)
            np.testing.assert_allclose(logs["loss"], expected, rtol=2e-5)
            np.testing.assert_allclose(
                model.queue.embeddings, oracle.queue, atol=1e-6
            )
            self.assertEqual(int(model.queue.cursor), oracle.cursor)
            self.assertEqual(int(model.step), step + 1)
        for ours, theirs in zip(
            model.student.get_weights(), oracle.student, strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
        for ours, theirs in zip(
            model.teacher.get_weights(), oracle.teacher, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs.astype("float32"))


class KerasModelTest(parameterized.TestCase):
    def model(self, **kwargs):
        student, teacher = towers()
        kwargs = {"views": crop_and_flip(2), "queue_size": 32} | kwargs
        model = seed_tf.SEED(student=student, teacher=teacher, **kwargs)
        model.compile(seed_tf.training.SGD(0.05))
        return model

    def test_only_the_student_trains_and_the_gap_falls(self):
        model = self.model(views=same_pixels, teacher_temperature=0.2)
        model.compile(seed_tf.training.SGD(0.1, weight_decay=0.0))
        before = model.teacher.get_weights()
        self.assertLen(model.trainable_variables, 4)
        history = model.fit(
            batches(random_images(64), 16), epochs=150, verbose=0
        ).history
        self.assertLess(history["gap"][-1], 0.5 * history["gap"][9])
        self.assertGreater(history["cosine"][-1], history["cosine"][0])
        for a, b in zip(model.teacher.get_weights(), before, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_one_trace_for_each_size_of_batch(self):
        traces = []

        def views(images):  # Python code runs while a step is traced
            traces.append(images.shape[0])
            return same_pixels(images)

        model = self.model(views=views)
        traces.clear()
        data = tf.data.Dataset.from_tensor_slices(random_images(20)).batch(8)
        model.fit(data, epochs=1, verbose=0)
        self.assertIn(traces, ([8, None], [None], [8, 4]))
        traces.clear()
        model.fit(data, epochs=2, verbose=0)
        self.assertEmpty(traces)

    def test_the_teacher_runs_in_inference_mode_outside_the_tape(self):
        student, _ = towers()
        norm = keras.layers.BatchNormalization()
        teacher = keras.Sequential(
            [
                keras.layers.Input((2, 2, 3)),
                keras.layers.Flatten(),
                norm,
                keras.layers.Dropout(0.9),
                keras.layers.Dense(4),
            ]
        )
        model = seed_tf.SEED(
            student=student, teacher=teacher, views=same_pixels, queue_size=16
        )
        model.compile(seed_tf.training.SGD(0.1))
        images = random_images(8)
        expected = l2_normalise(teacher(images, training=False))
        model.train_on_batch(images)
        np.testing.assert_array_equal(norm.moving_mean, np.zeros(12))
        np.testing.assert_allclose(
            model.queue.embeddings[:8], expected, atol=1e-6
        )

    def test_logs_tell_what_their_names_say(self):
        student, teacher = towers()
        model = seed_tf.SEED(
            student=student,
            teacher=teacher,
            views=same_pixels,
            queue_size=32,
            teacher_temperature=0.1,
        )
        optimizer = seed_tf.training.SGD(0.5, momentum=0.0, weight_decay=0.0)
        model.compile(optimizer)
        images = random_images(8)
        z_s = l2_normalise(student(images)).numpy()
        z_t = l2_normalise(teacher(images)).numpy()
        value, health = losses.similarity_distillation(
            z_s,
            z_t,
            model.queue.embeddings.numpy(),
            teacher_temperature=0.1,
            return_metrics=True,
        )
        before = [v.numpy() for v in student.trainable_variables]
        logs = model.train_on_batch(images, return_dict=True)
        after = [v.numpy() for v in student.trainable_variables]
        moved = [a - b for a, b in zip(after, before, strict=True)]
        expected = {
            "loss": np.mean(value),
            **{name: np.mean(values) for name, values in health.items()},
            "cosine": np.mean(np.sum(z_s * z_t, axis=1)),
            "spread": np.mean(np.std(z_s, axis=0)) * 2,  # sqrt(4)
            "queue_filled": 0.25,
            "gradient_norm": np.sqrt(sum(np.sum(m**2) for m in moved)) / 0.5,
        }
        self.assertEqual(set(logs), set(expected))
        for name, want in expected.items():
            np.testing.assert_allclose(
                logs[name], want, rtol=1e-4, err_msg=name
            )

    def test_spread_falls_to_zero_on_collapse(self):
        student, teacher = towers()
        student.layers[-1].kernel.assign(
            keras.ops.zeros_like(student.layers[-1].kernel)
        )
        student.layers[-1].bias.assign(np.ones(4))
        model = seed_tf.SEED(
            student=student, teacher=teacher, views=same_pixels, queue_size=8
        )
        model.compile(seed_tf.training.SGD(0.0))
        logs = model.train_on_batch(random_images(8), return_dict=True)
        self.assertLess(logs["spread"], 1e-3)

    def test_called_it_is_the_student(self):
        model = self.model()
        images = random_images(5)
        expected = model.student(images)
        np.testing.assert_allclose(model(images), expected, rtol=1e-6)
        np.testing.assert_allclose(
            model.predict(images, verbose=0), expected, rtol=1e-5
        )

    @parameterized.parameters("tf_saved_model", "litert", "onnx")
    def test_keras_exports_the_student(self, format):
        model = self.model()
        ending = {"litert": ".tflite", "onnx": ".onnx"}.get(format, "")
        path = os.path.join(self.create_tempdir(), f"exported{ending}")
        if format == "onnx":
            pytest.importorskip("tf2onnx")
        model.export(path, format=format, verbose=False)
        images = random_images(1).astype("float32")
        if format == "tf_saved_model":
            exported = tf.saved_model.load(path)
            found = exported.serve(images)
            np.testing.assert_allclose(found, model.student(images), atol=1e-5)
        self.assertTrue(os.path.exists(path))

    def test_any_keras_model_may_be_student_and_is_fed_floats(self):
        class Subclassed(keras.Model):
            def __init__(self):
                super().__init__()
                self.conv = keras.layers.Conv2D(4, 2)  # refuses uint8

            def call(self, images):
                return keras.ops.mean(self.conv(images), axis=(1, 2))

        student = Subclassed()
        model = seed_tf.SEED(
            student=student,
            teacher=towers()[1],
            views=same_pixels,
            queue_size=8,
        )
        model.compile(keras.optimizers.Adam(1e-3))
        images = random_images(8)
        model.train_on_batch(images)
        expected = student(images.astype("float32"))
        np.testing.assert_allclose(model(images), expected, rtol=1e-5)
        embedded = seed_tf.evaluation.embed(student, images)
        np.testing.assert_allclose(embedded, expected, rtol=1e-5)

    @pytest.mark.slow
    def test_evaluate_is_the_same_each_time_and_changes_nothing(self):
        model = self.model()
        data = batches(random_images(32, size=6), 16)
        model.fit(data, verbose=0)
        queue, step = model.queue.embeddings.numpy(), int(model.step)
        first = model.evaluate(data, verbose=0, return_dict=True)
        self.assertEqual(
            first, model.evaluate(data, verbose=0, return_dict=True)
        )
        self.assertGreater(first["gap"], 0)
        np.testing.assert_array_equal(model.queue.embeddings, queue)
        self.assertEqual(int(model.step), step)

    @pytest.mark.slow
    def test_validation_data_and_labels_beside_the_images(self):
        model = self.model()
        labelled = tf.data.Dataset.zip(
            batches(random_images(32, size=6), 16),
            batches(np.zeros(32), 16),
        )
        history = model.fit(labelled, validation_data=labelled, verbose=0)
        self.assertIn("val_gap", history.history)

    def test_saved_and_loaded_it_takes_the_same_step(self):
        data = batches(random_images(48, size=6), 16)
        model = self.model()
        model.fit(data, verbose=0)
        path = os.path.join(self.create_tempdir(), "seed.keras")
        model.save(path)
        loaded = keras.models.load_model(path)
        self.assertEqual(int(loaded.step), 3)
        self.assertEqual(int(loaded.queue.cursor), 48 % 32)
        for m in (model, loaded):
            m.fit(data, verbose=0)
        for a, b in zip(model.variables, loaded.variables, strict=True):
            if "metric" not in a.path and "seed_generator" not in a.path:
                np.testing.assert_allclose(a, b, atol=1e-6, err_msg=a.path)

    @pytest.mark.slow
    def test_dropout_repeats_itself_after_a_restart(self):
        def run(restart):
            keras.utils.set_random_seed(0)
            student = keras.Sequential(
                [
                    keras.layers.Input((2, 2, 3)),
                    keras.layers.Flatten(),
                    keras.layers.Dropout(0.5),
                    keras.layers.Dense(4),
                ]
            )
            model = seed_tf.SEED(
                student=student,
                teacher=towers()[1],
                views=crop_and_flip(2),
                queue_size=8,
            )
            model.compile(seed_tf.training.SGD(0.01))
            images = random_images(8, size=6)
            for _ in range(2):
                model.train_on_batch(images)
            if restart:
                path = os.path.join(self.create_tempdir(), "seed.keras")
                model.save(path)
                model = keras.models.load_model(path)
            for _ in range(2):
                model.train_on_batch(images)
            return model.student.get_weights()

        for a, b in zip(run(False), run(True), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)

    def test_views_differ_between_steps_and_repeat_from_the_seed(self):
        model = self.model(seed=3)
        images = random_images(4, size=6)
        first = model.augment(images, 0)[0].numpy()
        self.assertFalse(np.allclose(first, model.augment(images, 1)[0]))
        again = self.model(seed=3).augment(images, 0)[0]
        np.testing.assert_array_equal(first, again)
        other = self.model(seed=4).augment(images, 0)[0]
        self.assertFalse(np.allclose(first, other))

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    @pytest.mark.slow
    def test_mixed_precision(self, policy):
        views = seed_tf.views.moco_v2(2)
        keras.mixed_precision.set_global_policy(policy)
        try:
            model = self.model(views=views)
            wrapped = isinstance(
                model.optimizer, keras.optimizers.LossScaleOptimizer
            )
            self.assertEqual(wrapped, policy == "mixed_float16")
            data = batches(random_images(64, size=6), 16)
            history = model.fit(data, epochs=20, verbose=0).history
        finally:
            keras.mixed_precision.set_global_policy("float32")
        full = self.model(
            views=views,
            acceleration=seed_tf.acceleration.Plan(student_policy="float32"),
        )
        full = full.fit(data, epochs=20, verbose=0).history
        # In the first epoch float16 finds its loss scale, skipping steps.
        np.testing.assert_allclose(
            history["loss"][1:], full["loss"][1:], rtol=0.05
        )
        np.testing.assert_allclose(
            np.mean(history["gradient_norm"][5:]),
            np.mean(full["gradient_norm"][5:]),
            rtol=0.3,
        )
        self.assertEqual(model.queue.embeddings.dtype, "float32")

    @pytest.mark.slow
    def test_a_compiled_step_equals_an_ordinary_one(self):
        images = random_images(16, size=6)
        results = []
        for jit_compile in (False, True):
            model = self.model()
            model.compile(seed_tf.training.SGD(0.05), jit_compile=jit_compile)
            for _ in range(3):
                logs = model.train_on_batch(images, return_dict=True)
            results.append((logs["loss"], model.student.get_weights()))
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
        for a, b in zip(results[0][1], results[1][1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)

    def test_models_of_one_size_take_views_made_beforehand(self):
        student, teacher = (
            seed_tf.Encoder(
                keras.Sequential(
                    [
                        keras.layers.Input((24, 24, 3)),
                        keras.layers.Conv2D(4, 3, strides=2),
                    ]
                ),
                embedding_dim=4,
            )
            for _ in range(2)
        )
        model = seed_tf.SEED(
            student=student,
            teacher=teacher,
            views=keras.layers.Identity(),
            queue_size=8,
        )
        self.assertEqual(student.image_size, 24)
        model.compile(seed_tf.training.SGD(0.1))
        views = random_images(8, 24)  # e.g. from the user's own pipeline
        first = model.fit(views, batch_size=4, verbose=0).history["loss"]
        self.assertTrue(np.isfinite(first))

    def test_student_and_teacher_may_see_different_sizes(self):
        def encoder(size):
            return keras.Sequential(
                [
                    keras.Input((size, size, 3)),
                    keras.layers.Rescaling(1 / 255.0),
                    keras.layers.Conv2D(4, size // 2),
                    keras.layers.GlobalAveragePooling2D(),
                ]
            )

        model = seed_tf.SEED(
            student=encoder(8),
            teacher=encoder(16),
            views=keras.layers.Identity(),
            queue_size=8,
            student_image_size=8,
        )
        model.compile(seed_tf.training.SGD(0.1))
        images = random_images(4, 16).astype("float32")
        smaller = resampling.resize(images, 8)
        self.assertEqual(smaller.shape, (4, 8, 8, 3))
        student, teacher = model.student(smaller), model.teacher(images)
        logs = model.train_on_batch(images, return_dict=True)
        expected = l2_normalise(student) * l2_normalise(teacher)
        self.assertAlmostEqual(
            float(logs["cosine"]),
            float(np.mean(np.sum(expected, axis=1))),
            places=4,
        )
        clone = seed_tf.SEED.from_config(model.get_config())
        self.assertEqual(clone.student_image_size, 8)

    @pytest.mark.slow
    def test_student_and_teacher_may_have_views_of_their_own(self):
        images = random_images(8, size=6)
        for same in (True, False):
            model = self.model(same_view=same)
            views = [model.augment(images, 0, stream=i)[0] for i in (0, 1)]
            student = model.student(views[0])
            teacher = model.teacher(views[0 if same else 1])
            logs = model.train_on_batch(images, return_dict=True)
            targets = keras.ops.normalize(teacher, axis=-1)
            cosine = np.sum(keras.ops.normalize(student, axis=-1) * targets, 1)
            np.testing.assert_allclose(logs["cosine"], cosine.mean(), atol=1e-4)
            np.testing.assert_allclose(
                model.queue.embeddings[:8], targets, atol=1e-4
            )
            clone = seed_tf.SEED.from_config(model.get_config())
            self.assertIs(clone.same_view, same)
        views = seed_tf.views.multi_crop(
            seed_tf.views.swav(2), seed_tf.views.small_patches(2)
        )
        with self.assertRaisesRegex(ValueError, "same_view.*not multi_crop"):
            self.model(views=views, same_view=False)

    @parameterized.parameters(
        (lambda: seed_tf.views.moco_v2(64), 64),
        (
            lambda: seed_tf.views.multi_crop(
                seed_tf.views.swav(32), seed_tf.views.small_patches(24)
            ),
            32,
        ),
        (lambda: lambda images: tf.cast(images, "float32"), None),
    )
    def test_the_student_remembers_its_image_size(self, views, expected):
        def encoder():
            return seed_tf.Encoder("resnet18", stem="cifar", embedding_dim=4)

        student = encoder()
        shared = {"views": views(), "queue_size": 8}
        seed_tf.SEED(student=student, teacher=encoder(), **shared)
        self.assertEqual(student.image_size, expected)

    @pytest.mark.slow
    def test_objectives_of_the_library_and_of_the_user(self):
        @keras.saving.register_keras_serializable("seed_test")
        def mine(student, teacher, queue, *, student_temperature, **_):
            value = keras.ops.sum(keras.ops.abs(student - teacher), axis=1)
            return value, {"mine": value * 0 + student_temperature}

        for objective, extra in ((losses.l2, set()), (mine, {"mine"})):
            model = self.model(objective=objective)
            logs = model.train_on_batch(random_images(8), return_dict=True)
            names = {"loss", "cosine", "spread", "queue_filled"}
            self.assertEqual(set(logs), names | {"gradient_norm"} | extra)
            clone = seed_tf.SEED.from_config(model.get_config())
            self.assertIs(clone.objective, objective)
        self.assertAlmostEqual(float(logs["mine"]), 0.2, places=5)


class SmallPatchesTest(absltest.TestCase):
    def test_losses_add_up_and_each_size_has_its_queue(self):
        keras.utils.set_random_seed(0)
        student, teacher = (
            keras.Sequential(
                [
                    keras.layers.Input((None, None, 3)),
                    keras.layers.Conv2D(8, 3, activation="relu"),
                    keras.layers.GlobalAveragePooling2D(),
                    keras.layers.Dense(4),
                ]
            )
            for _ in range(2)
        )
        views = seed_tf.views.multi_crop(
            seed_tf.views.swav(12),
            seed_tf.views.small_patches(6),
            num_small=3,
        )
        model = seed_tf.SEED(
            student=student,
            teacher=teacher,
            views=views,
            queue_size=20,
            teacher_precision="float32",
        )
        model.compile(seed_tf.training.SGD(0.0))
        images = random_images(8, size=16)
        big, small = model.augment(images, 0)
        self.assertEqual(big.shape, (8, 12, 12, 3))
        self.assertEqual(small.shape, (24, 6, 6, 3))
        expected = 0.0
        for view, queue in ((big, model.queue), (small, model.small_queue)):
            expected += np.mean(
                losses.similarity_distillation(
                    l2_normalise(student(view)),
                    l2_normalise(teacher(view)),
                    queue.embeddings.numpy(),
                )
            )
        logs = model.train_on_batch(images, return_dict=True)
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
        for view, queue in ((big, model.queue), (small, model.small_queue)):
            # Of each image only the first small view is enqueued.
            self.assertEqual(int(queue.cursor), 8)
            np.testing.assert_allclose(
                queue.embeddings[:8],
                l2_normalise(teacher(view[:8])),
                atol=1e-5,
            )


class BadInputTest(parameterized.TestCase):
    def build(self, student=None, teacher=None, **kwargs):
        towers_ = towers()
        kwargs = {"views": same_pixels, "queue_size": 8} | kwargs
        return seed_tf.SEED(
            student=student or towers_[0],
            teacher=teacher or towers_[1],
            **kwargs,
        )

    def test_widths_that_differ(self):
        with self.assertRaisesRegex(
            ValueError, "student 4, teacher 5.*embedding_dim=5"
        ):
            self.build(teacher=towers(dim=5)[1])

    @parameterized.parameters(
        ({"student_temperature": 0}, "student_temperature=0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature=-1.0"),
        ({"queue_size": 0}, "size=0"),
    )
    def test_numbers_that_are_not_positive(self, kwargs, message):
        with self.assertRaisesRegex(ValueError, f"positive.*{message}"):
            self.build(**kwargs)

    def test_a_teacher_that_gives_nan(self):
        teacher = towers()[1]
        teacher.layers[-1].bias.assign(np.full(4, np.nan))
        with self.assertRaisesRegex(ValueError, "`teacher`.*not finite"):
            self.build(teacher=teacher)

    def test_a_backbone_without_pooling(self):
        backbone = keras.Sequential(
            [keras.layers.Input((None, None, 3)), keras.layers.Conv2D(4, 1)]
        )
        with self.assertRaisesRegex(ValueError, r"\[B, D\].*Encoder"):
            self.build(student=backbone)

    def test_what_is_not_a_model(self):
        with self.assertRaisesRegex(ValueError, "`student`.*keras.Model.*str"):
            self.build(student="resnet18")

    def test_the_same_model_twice(self):
        student = towers()[0]
        with self.assertRaisesRegex(ValueError, "same model"):
            self.build(student=student, teacher=student)

    def test_images_without_three_channels(self):
        model = self.build()
        model.compile(seed_tf.training.SGD(0.1))
        grey = np.zeros((8, 2, 2, 1), "uint8")
        with self.assertRaisesRegex(ValueError, r"\[B, H, W, 3\].*1\)"):
            model.fit(batches(grey, 4), verbose=0)

    @parameterized.parameters("float32", "float64", "float16")
    def test_float_images_in_zero_to_one(self, dtype):
        images = (random_images(8) / 255.0).astype(dtype)
        for x in (images, batches(images, 4)):
            model = self.build()
            model.compile(seed_tf.training.SGD(0.1))
            with self.assertRaisesRegex(ValueError, r"\[0, 255\].*by 255"):
                model.fit(x, verbose=0)
            self.assertEqual(int(model.step), 0)

    @parameterized.parameters(
        lambda model, x: model.fit(x, verbose=0),
        lambda model, x: model.fit(batches(x, 4), verbose=0),
        lambda model, x: model.fit(Batches(x), verbose=0),
        lambda model, x: model.fit(((b,) for b in Batches(x)), verbose=0),
        lambda model, x: model.fit({"image": x}, verbose=0),
        lambda model, x: model.fit(random_images(8), validation_data=x),
        lambda model, x: model.fit(random_images(8), validation_data=(x, x)),
        lambda model, x: model.evaluate(batches(x, 4), verbose=0),
        lambda model, x: model.predict(x, verbose=0),
        lambda model, x: model.train_on_batch(x),
        lambda model, x: model.test_on_batch(x),
        lambda model, x: model.predict_on_batch(x),
    )
    def test_values_are_checked_at_every_way_in(self, call):
        model = self.build()
        model.compile(seed_tf.training.SGD(0.1), jit_compile=True)
        for x in (
            random_images(8) / np.float32(255),
            random_images(8) / np.float32(127.5) - 1,
            random_images(8).astype("uint16") * 257,
        ):
            with self.assertRaisesRegex(ValueError, r"\[0, 255\].*Received"):
                call(model, x)
        self.assertEqual(int(model.step), 0)

    def test_batches_of_tensorflow_datasets_and_in_a_list(self):
        images = random_images(16)
        named = {"image": images, "label": np.arange(16)}
        data = batches(named, 8)
        model = self.build(queue_size=np.int64(8), seed=np.int64(0))
        model.compile(seed_tf.training.SGD(0.1))
        expected = model.predict_on_batch(images)
        for x in (named, data, [images]):
            outputs = model.predict(x, verbose=0)
            np.testing.assert_allclose(outputs, expected, atol=1e-6)
        model.fit(data, validation_data=data, verbose=0)
        model.train_on_batch([images[:8]])
        self.assertEqual(int(model.step), 3)

    @parameterized.parameters(
        "moco_v2", None, seed_tf.views.moco_v2, keras.layers.Rescaling
    )
    def test_views_that_are_none(self, views):
        with self.assertRaisesRegex(ValueError, r"`views`.*moco_v2\(224\)"):
            self.build(views=views)

    @parameterized.parameters("student", "teacher")
    def test_a_model_of_another_size(self, role):
        fixed = keras.Sequential(
            [
                keras.layers.Input((3, 3, 3)),
                keras.layers.Flatten(),
                keras.layers.Dense(4),
            ]
        )
        message = rf"`{role}`.* 2 x 2 pixels.* 3 x 3 only.*moco_v2\(3\)"
        with self.assertRaisesRegex(ValueError, message):
            self.build(**{role: fixed})

    def test_a_student_without_weights_to_train(self):
        teacher = towers()[1]
        path = os.path.join(self.create_tempdir(), "teacher.keras")
        self.build(teacher=teacher)  # which freezes it
        teacher.save(path)
        for student in (
            keras.models.clone_model(teacher),
            keras.models.load_model(path),
            keras.Sequential(teacher.layers),
        ):
            with self.assertRaisesRegex(ValueError, "`student`.*trainable"):
                self.build(student=student, teacher=teacher)

    def test_float_images_in_0_to_255_are_welcome(self):
        model = self.build()
        model.compile(seed_tf.training.SGD(0.1))
        model.fit(random_images(8).astype("float32"), batch_size=4, verbose=0)
        self.assertEqual(int(model.step), 2)

    def test_a_loss_in_compile(self):
        model = self.build()
        model.compile(seed_tf.training.SGD(0.1), loss="mse")
        with self.assertRaisesRegex(ValueError, "objective.*mse"):
            model.fit(random_images(8), verbose=0)

    def test_a_loss_that_turns_nan_stops_the_run_and_names_the_step(self):
        path = os.path.join(self.create_tempdir(), "student.keras")
        layers = [keras.layers.Flatten(), keras.layers.Dense(4)]
        student = keras.Sequential([keras.layers.Input((2, 2, 3)), *layers])
        model = self.build(student=student)
        model.compile(seed_tf.training.SGD(0.1))
        images = random_images(32).astype("float32")
        images[20] = np.nan  # the third batch of eight
        saver = keras.callbacks.ModelCheckpoint(
            path, save_freq=1, save_weights_only=False
        )
        with self.assertRaisesRegex(FloatingPointError, "step 3"):
            model.fit(batches(images, 8), callbacks=[saver], verbose=0)
        saved = keras.models.load_model(path)
        self.assertEqual(int(saved.step), 2)
        for weight in saved.student.get_weights():
            self.assertTrue(np.all(np.isfinite(weight)))


if __name__ == "__main__":
    absltest.main()
