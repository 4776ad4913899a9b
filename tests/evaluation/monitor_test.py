"""What is measured during training, against NumPy."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.light_views import crop_and_flip

import seed_tf
from seed_tf import evaluation
from seed_tf.evaluation import (
    knn,
    nearest_others,
    neighbour_agreement,
)
from seed_tf.evaluation.features import embedder
from seed_tf.evaluation.monitor import HeldOut, LabelledKNN
from seed_tf.reporting import figures


def normals(count, width, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width))


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def tower(width, seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 127.5, -1.0),
            keras.layers.Flatten(),
            keras.layers.Dense(width),
        ]
    )


def shared(first, second, k):
    """The definition, one image after the other."""
    found = 0
    for i in range(len(first)):
        nearest = []
        for features in (first, second):
            unit = features / np.linalg.norm(features, axis=1, keepdims=True)
            cosines = unit @ unit[i]
            cosines[i] = -np.inf
            nearest.append(set(np.argsort(-cosines)[:k]))
        found += len(nearest[0] & nearest[1])
    return found / (k * len(first))


class NeighbourAgreementTest(parameterized.TestCase):
    @parameterized.product(k=[1, 7, 39], related=[False, True])
    def test_is_the_share_of_common_neighbours(self, k, related):
        first = normals(40, 6)
        second = normals(40, 9, seed=1)
        if related:
            second[:, :6] += 2 * first
        self.assertAlmostEqual(
            neighbour_agreement(first, second, k=k), shared(first, second, k)
        )

    def test_by_chance_it_is_k_of_the_others(self):
        values = [
            neighbour_agreement(normals(200, 8, i), normals(200, 8, i + 50))
            for i in range(5)
        ]
        self.assertAlmostEqual(np.mean(values), 10 / 199, delta=0.005)

    def test_an_image_is_not_its_own_neighbour_even_among_its_copies(self):
        features = np.repeat(normals(3, 4), 5, axis=0)
        nearest = nearest_others(features, 4)
        for i, row in enumerate(nearest):
            copies = set(range(5 * (i // 5), 5 * (i // 5) + 5)) - {i}
            self.assertEqual(set(row), copies)

    def test_refuses_what_cannot_be_compared(self):
        with self.assertRaisesRegex(ValueError, "Received: 4 and 5 rows"):
            neighbour_agreement(normals(4, 2), normals(5, 2))
        for k in (0, 4):
            with self.assertRaisesRegex(ValueError, f"k={k}, 4 images"):
                neighbour_agreement(normals(4, 2), normals(4, 2), k=k)


class MonitorTest(parameterized.TestCase):
    def test_held_out_follows_the_encoder(self):
        encoder, teacher = tower(8, seed=0), tower(8, seed=1)
        images = pictures(60)
        held_out = HeldOut(
            encoder,
            tf.data.Dataset.from_tensor_slices(images).batch(25),
            teacher,
        )
        expected = shared(
            encoder.predict(images, verbose=0),
            teacher.predict(images, verbose=0),
            10,
        )
        self.assertAlmostEqual(held_out.agreement(), expected)
        self.assertLess(expected, 0.9)
        encoder.set_weights(teacher.get_weights())
        self.assertEqual(held_out.agreement(), 1.0)
        queries, found = held_out.neighbours(queries=3, k=4)
        self.assertEqual(queries.shape, (3, 8, 8, 3))
        self.assertEqual(list(found), ["teacher", "encoder"])
        for bank, indices in found.values():
            np.testing.assert_array_equal(bank, images)
            self.assertEqual(indices.shape, (3, 4))
        figures.neighbours(queries, found)
        self.assertEqual(
            list(HeldOut(encoder, images).neighbours()[1]), ["encoder"]
        )

    def test_few_images_have_few_neighbours(self):
        held_out = HeldOut(tower(8, 0), pictures(5), tower(8, 1))
        self.assertEqual(held_out.agreement(), 1.0)

    def test_labelled_knn_follows_the_encoder(self):
        labels = np.arange(40) % 3
        images = pictures(40)
        data = tf.data.Dataset.from_tensor_slices((images, labels))
        train, test = data.take(30).batch(7), data.skip(30).batch(7)
        encoder = tower(4, seed=0)
        measured = LabelledKNN(encoder, train, test)
        for seed in (0, 1):
            encoder.set_weights(tower(4, seed).get_weights())
            features = encoder.predict(images, verbose=0)
            expected = knn(
                (features[:30], labels[:30]), (features[30:], labels[30:]), k=10
            )
            self.assertAlmostEqual(measured.accuracy(), expected)

    def test_callbacks_of_a_plain_fit(self):
        images, labels = pictures(40), np.arange(40) % 3
        data = tf.data.Dataset.from_tensor_slices((images, labels))
        train, test = data.take(30).batch(7), data.skip(30).batch(7)
        encoder, teacher = tower(4, seed=0), tower(4, seed=1)
        encoder.compile(keras.optimizers.SGD(1e-3), "mse")
        history = encoder.fit(
            images / 255.0,
            np.zeros([40, 4]),
            epochs=3,
            verbose=0,
            callbacks=[
                evaluation.NeighbourAgreement(images, teacher),
                evaluation.KNN(train, test, every=2, name="k3", k=3),
            ],
        ).history
        self.assertLen(history["agreement"], 3)
        self.assertLen(history["k3"], 2)  # of the second and the last epoch
        self.assertEqual(
            history["agreement"][-1],
            HeldOut(encoder, images, teacher).agreement(),
        )
        self.assertEqual(
            history["k3"][-1], LabelledKNN(encoder, train, test).accuracy(3)
        )
        with self.assertRaisesRegex(ValueError, "k=0, every=1"):
            evaluation.KNN(train, test, k=0)

    def test_callbacks_measure_the_student_of_seed(self):
        images = pictures(24)
        student, teacher = tower(8, seed=0), tower(8, seed=1)
        model = seed_tf.SEED(
            student=student,
            teacher=teacher,
            views=crop_and_flip(8),
            queue_size=64,
        )
        measured = evaluation.NeighbourAgreement(images, teacher)
        measured.set_model(model)
        measured.set_params({"epochs": 1})
        measured.on_train_begin()
        logs = {}
        measured.on_epoch_end(0, logs)
        expected = HeldOut(student, images, teacher).agreement()
        self.assertEqual(logs, {"agreement": expected})

    def test_embedder_is_traced_once(self):
        traces = []

        class Counting(keras.layers.Layer):
            def call(self, x):
                traces.append(1)
                return tf.reduce_mean(x, [1, 2])

        run = embedder(keras.Sequential([Counting()]))
        run(pictures(9), batch_size=4)
        traces.clear()
        run(pictures(3), batch_size=2)
        self.assertEmpty(traces)


class CurvesTest(absltest.TestCase):
    def test_along_another_metric_without_missing_values(self):
        history = {"step": [5, 10, 30], "loss": [3.0, 2.0, 1.0]}
        history["knn"] = [None, 0.4, 0.5]
        figure = figures.curves({"a": history}, ["loss", "knn"], x="step")
        loss, knn_line = (axes.lines[0] for axes in figure.axes[:2])
        np.testing.assert_array_equal(loss.get_xdata(), [5, 10, 30])
        np.testing.assert_array_equal(knn_line.get_xdata(), [10, 30])
        np.testing.assert_array_equal(knn_line.get_ydata(), [0.4, 0.5])

    def test_mosaic_has_all_images_in_rows(self):
        images = pictures(10)
        figure = figures.mosaic(images, columns=5)
        drawn = [image.get_array() for image in figure.axes[0].images]
        np.testing.assert_array_equal(drawn, images)


if __name__ == "__main__":
    absltest.main()
