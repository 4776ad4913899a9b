"""The losses against float64 NumPy written from the paper's equation."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from seed_tf import losses
from seed_tf.embeddings import l2_normalise


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("float32")


def batch(b, d, k, seed=0):
    """Student, teacher and queue; the student is near its teacher."""
    rng = np.random.default_rng(seed)
    teacher, queue = unit(rng, b, d), unit(rng, k, d)
    student = teacher + 0.5 * unit(rng, b, d)
    student /= np.linalg.norm(student, axis=1, keepdims=True)
    return student, teacher, queue


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def oracle(student, teacher, queue, t_s, t_t, include_teacher=True):
    """-sum_j p_j log q_j and its gradient, in float64, nothing streamed."""
    z_s, z_t, queue = (x.astype("float64") for x in (student, teacher, queue))
    points = np.broadcast_to(queue, (len(z_s), *queue.shape))
    if include_teacher:
        points = np.concatenate([z_t[:, None], points], axis=1)
    p = softmax(np.einsum("bd,bkd->bk", z_t, points) / t_t)
    logits = np.einsum("bd,bkd->bk", z_s, points) / t_s
    q = softmax(logits)
    peak = logits.max(axis=1, keepdims=True)
    log_q = logits - peak - np.log(np.exp(logits - peak).sum(1, keepdims=True))
    loss = -(p * log_q).sum(axis=1)
    gradient = np.einsum("bk,bkd->bd", q - p, points) / t_s
    return loss, gradient, p, q


def entropy(p):
    return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1)


def value_and_gradient(f, x, *args, **kwargs):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = f(x, *args, **kwargs)
        total = tf.reduce_sum(value)
    return value.numpy(), tape.gradient(total, x).numpy()


def assert_relative(actual, desired, tolerance):
    """Largest error over the largest value of the array.

    Values under 1e-30 are beyond float32 and count as zero.
    """
    scale = max(np.abs(desired).max(), 1e-30)
    np.testing.assert_allclose(actual, desired, rtol=0, atol=tolerance * scale)


class SimilarityDistillationTest(parameterized.TestCase):
    @parameterized.product(
        shape=[(4, 8, 64), (1, 16, 33), (7, 128, 1000), (9, 4, 5)],
        block_size=[1, 7, 64, 4096],
        temperatures=[(0.2, 0.01), (1.0, 1.0), (0.07, 0.1), (0.2, 0.001)],
    )
    def test_equals_the_equation(self, shape, block_size, temperatures):
        b, d, k = shape
        if k // block_size > 200:
            block_size = 11  # as many steps add nothing but time
        student, teacher, queue = batch(b, d, k)
        t_s, t_t = temperatures
        loss, gradient = value_and_gradient(
            losses.similarity_distillation,
            student,
            teacher,
            queue,
            student_temperature=t_s,
            teacher_temperature=t_t,
            block_size=block_size,
        )
        expected_loss, expected_gradient, _, _ = oracle(
            student, teacher, queue, t_s, t_t
        )
        # A float32 cosine is known to 6e-8; over t_t = 0.001 that is 6e-5.
        tolerance = max(1e-5, 1e-7 / t_t)
        assert_relative(loss, expected_loss, tolerance)
        assert_relative(gradient, expected_gradient, tolerance)

    @parameterized.parameters(1e-4, 1e-3)
    def test_stable_at_tiny_temperatures(self, temperature):
        student, teacher, queue = batch(5, 32, 500)
        # Targets that are one-hot whatever the rounding: no near ties.
        loss, gradient = value_and_gradient(
            losses.similarity_distillation,
            student,
            teacher,
            queue,
            student_temperature=temperature,
            teacher_temperature=temperature,
        )
        expected_loss, expected_gradient, _, _ = oracle(
            student, teacher, queue, temperature, temperature
        )
        # The loss itself may be a difference of logits near 1 / temperature,
        # each rounded at 6e-8 of that.
        np.testing.assert_allclose(
            loss, expected_loss, rtol=1e-5, atol=5e-7 / temperature
        )
        assert_relative(gradient, expected_gradient, 1e-5)

    def test_without_the_image_itself(self):
        student, teacher, queue = batch(6, 16, 50)
        loss, gradient = value_and_gradient(
            losses.similarity_distillation,
            student,
            teacher,
            queue,
            include_teacher=False,
            student_temperature=0.001,  # exp underflows without a maximum
            block_size=16,
        )
        expected_loss, expected_gradient, _, _ = oracle(
            student, teacher, queue, 0.001, 0.01, include_teacher=False
        )
        assert_relative(loss, expected_loss, 1e-5)
        assert_relative(gradient, expected_gradient, 1e-5)

    def test_metrics_are_entropies_and_masses_of_the_distributions(self):
        student, teacher, queue = batch(6, 16, 50)
        loss, metrics = losses.similarity_distillation(
            student,
            teacher,
            queue,
            teacher_temperature=0.1,
            block_size=16,
            return_metrics=True,
        )
        expected_loss, _, p, q = oracle(student, teacher, queue, 0.2, 0.1)
        expected = {
            "gap": expected_loss - entropy(p),
            "teacher_neighbours": np.exp(entropy(p)),
            "student_neighbours": np.exp(entropy(q)),
            "self_mass": p[:, 0],
        }
        self.assertEqual(set(metrics), set(expected))
        assert_relative(loss, expected_loss, 1e-5)
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4)

    def test_gap_is_zero_for_a_perfect_student(self):
        _, teacher, queue = batch(6, 16, 50)
        _, metrics = losses.similarity_distillation(
            teacher,
            teacher,
            queue,
            student_temperature=0.1,
            teacher_temperature=0.1,
            return_metrics=True,
        )
        np.testing.assert_allclose(metrics["gap"], 0, atol=1e-5)

    def test_becomes_info_nce_as_the_teacher_temperature_goes_to_zero(self):
        student, teacher, queue = batch(6, 16, 50)
        loss = losses.similarity_distillation(
            student, teacher, queue, teacher_temperature=1e-4
        )
        nce = losses.info_nce(student, teacher, queue)
        np.testing.assert_allclose(loss, nce, rtol=1e-5)

    def test_gradient_reaches_the_student_only(self):
        tensors = [tf.constant(x) for x in batch(4, 8, 20)]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = tf.reduce_sum(losses.similarity_distillation(*tensors))
        student, teacher, queue = tape.gradient(value, tensors)
        self.assertIsNotNone(student)
        self.assertIsNone(teacher)
        self.assertIsNone(queue)

    @parameterized.parameters("float16", "bfloat16")
    def test_half_precision_inputs_are_computed_in_float32(self, dtype):
        inputs = [tf.cast(x, dtype) for x in batch(4, 8, 300)]
        loss = losses.similarity_distillation(*inputs)
        self.assertEqual(loss.dtype, tf.float32)
        exact = oracle(
            *(x.numpy().astype("float32") for x in inputs), 0.2, 0.01
        )
        assert_relative(loss, exact[0], 1e-5)

    def test_compiled_equals_eager(self):
        inputs = batch(8, 16, 300)

        @tf.function(jit_compile=True)
        def compiled(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = losses.similarity_distillation(
                    x, *inputs[1:], block_size=64
                )
                total = tf.reduce_sum(loss)
            return loss, tape.gradient(total, x)

        eager = value_and_gradient(losses.similarity_distillation, *inputs)
        for actual, desired in zip(
            compiled(tf.constant(inputs[0])), eager, strict=True
        ):
            assert_relative(actual.numpy(), desired, 1e-5)

    @parameterized.parameters(0, -0.1, float("nan"), float("inf"))
    def test_refuses_a_temperature_that_is_not_positive(self, value):
        inputs = batch(2, 4, 8)
        for name in ("student_temperature", "teacher_temperature"):
            with self.assertRaisesRegex(
                ValueError, f"{name}.*Received.*{value}"
            ):
                losses.similarity_distillation(*inputs, **{name: value})

    def test_refuses_widths_and_batches_that_differ(self):
        student, teacher, queue = batch(4, 8, 20)
        for wrong in (
            (student[:, :4], teacher, queue),
            (student, teacher[:2], queue),
            (student, teacher, queue[:, :4]),
            (student[0], teacher, queue),
        ):
            with self.assertRaisesRegex(ValueError, r"one width D. Received"):
                losses.similarity_distillation(*wrong)


class InfoNCETest(parameterized.TestCase):
    @parameterized.product(block_size=[7, 4096], temperature=[0.07, 0.2, 1e-3])
    def test_equals_cross_entropy_with_the_key(self, block_size, temperature):
        query, key, queue = batch(6, 16, 50)
        (loss, metrics), _ = (
            losses.info_nce(
                query,
                key,
                queue,
                temperature=temperature,
                block_size=block_size,
                return_metrics=True,
            ),
            None,
        )
        points = np.concatenate(
            [key[:, None], np.broadcast_to(queue, (6, 50, 16))], axis=1
        ).astype("float64")
        similarity = np.einsum("bd,bkd->bk", query.astype("float64"), points)
        q = softmax(similarity / temperature)
        np.testing.assert_allclose(
            loss, -np.log(q[:, 0]), rtol=1e-5, atol=1e-6 / temperature
        )
        np.testing.assert_array_equal(
            metrics["accuracy"], similarity.argmax(axis=1) == 0
        )
        _, gradient = value_and_gradient(
            losses.info_nce, query, key, queue, temperature=temperature
        )
        expected = np.einsum("bk,bkd->bd", q, points) - key
        np.testing.assert_allclose(
            gradient, expected / temperature, atol=3e-5 / temperature
        )

    def test_accuracy_falls_where_a_queue_point_is_nearer(self):
        query, _, queue = batch(4, 8, 20)
        queue[11] = query[2]
        key = query.copy()
        key[2] = -query[2]
        _, metrics = losses.info_nce(query, key, queue, return_metrics=True)
        np.testing.assert_array_equal(metrics["accuracy"], [1, 1, 0, 1])


class AlternativesTest(parameterized.TestCase):
    def test_l2(self):
        student, teacher, queue = batch(6, 16, 50)
        np.testing.assert_allclose(
            losses.l2(student, teacher, queue),
            2 - 2 * (student * teacher).sum(axis=1),
            rtol=1e-4,
        )

    def test_binary_contrastive(self):
        student, teacher, queue = (
            x.astype("float64") for x in batch(6, 16, 50)
        )

        def sigmoid(x):
            return 1 / (1 + np.exp(-x))

        own = (student * teacher).sum(axis=1) / 0.2 - np.log(50)
        others = student @ queue.T / 0.2 - np.log(50)
        expected = -np.log(sigmoid(own)) - np.log(1 - sigmoid(others)).sum(1)
        np.testing.assert_allclose(
            losses.binary_contrastive(student, teacher, queue),
            expected,
            rtol=1e-5,
        )

    def test_kmeans_finds_planted_clusters(self):
        rng = np.random.default_rng(0)
        centres = np.eye(8, dtype="float32")[:4]
        members = rng.integers(0, 4, 200)
        members[:4] = [0, 1, 2, 3]
        queue = centres[members] + 0.05 * rng.standard_normal((200, 8))
        queue = keras.utils.normalize(queue).astype("float32")
        teacher = keras.utils.normalize(
            centres + 0.1 * rng.standard_normal((4, 8))
        )
        args = {"num_clusters": 4, "iterations": 5}
        near = losses.kmeans_clustering(centres, teacher, queue, **args)
        logits = np.full((4, 4), 0.0)
        np.fill_diagonal(logits, 1 / 0.2)
        expected = -np.log(np.diag(softmax(logits)))
        np.testing.assert_allclose(near, expected, atol=0.02)
        far = losses.kmeans_clustering(centres[::-1], teacher, queue, **args)
        self.assertTrue(np.all(far > near + 4))

    def test_online_clustering_balances_its_codes(self):
        student, teacher, queue = batch(64, 8, 4)
        collapsed = np.broadcast_to(teacher[:1], teacher.shape)
        # Teachers that all agree get flat codes: every cluster is used alike.
        loss = losses.online_clustering(
            student, collapsed, queue, iterations=20
        )
        logits = student @ queue.T / 0.2
        log_q = np.log(softmax(logits.astype("float64")))
        np.testing.assert_allclose(loss, -log_q.mean(axis=1), rtol=1e-3)

    @parameterized.parameters(
        losses.l2,
        losses.binary_contrastive,
        losses.kmeans_clustering,
        losses.online_clustering,
    )
    def test_is_an_objective_that_pulls_the_student_to_its_teacher(self, f):
        student, teacher, queue = batch(16, 8, 40)
        loss, gradient = value_and_gradient(
            f,
            student,
            teacher,
            queue,
            student_temperature=0.2,
            teacher_temperature=0.01,
        )
        self.assertEqual(loss.shape, (16,))
        moved = keras.utils.normalize(student - 0.05 * gradient)
        self.assertLess(np.mean(f(moved, teacher, queue)), np.mean(loss) - 1e-4)
        self.assertLess(np.mean(f(teacher, teacher, queue)), np.mean(loss))


class NormaliseTest(absltest.TestCase):
    def test_gives_unit_float32_and_survives_zero(self):
        x = tf.constant([[3.0, 4.0], [0.0, 0.0]], tf.float16)
        y = l2_normalise(x)
        self.assertEqual(y.dtype, tf.float32)
        np.testing.assert_allclose(y, [[0.6, 0.8], [0, 0]], rtol=1e-6)


if __name__ == "__main__":
    absltest.main()
