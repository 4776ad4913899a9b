"""k-NN and linear probe against scikit-learn and NumPy."""

import os
import resource
import sys
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from keras import ops
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seed_tf import evaluation
from seed_tf.evaluation import labels as labels_module
from seed_tf.evaluation import nearest_neighbours

knn_module = sys.modules[nearest_neighbours.__module__]


def blobs(count, width=16, classes=7, noise=1.5, seed=0):
    """Overlapping classes: features `[N, C]` and labels `[N]`."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((classes, width))
    labels = rng.integers(0, classes, count)
    features = centres[labels] + noise * rng.standard_normal((count, width))
    return features.astype(np.float32), labels


def digit_features():
    """Digits through a fixed random ReLU layer: (train, test)."""
    pixels, labels = load_digits(return_X_y=True)
    weights = np.random.default_rng(0).standard_normal((64, 64)) / 64
    features = np.maximum(pixels @ weights, 0).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(labels))
    return [(features[i], labels[i]) for i in (order[:1500], order[1500:])]


def cosines(bank, queries):
    bank, queries = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)
    )
    return queries @ bank.T


class NearestNeighboursTest(parameterized.TestCase):
    @parameterized.product(
        blocks=[(64, 100), (7, 30), (1000, 1000), (1, 3)], k=[1, 10]
    )
    def test_follows_the_full_matrix(self, blocks, k):
        bank, queries = blobs(101)[0], blobs(23, seed=1)[0]
        similarities, indices = evaluation.nearest_neighbours(
            bank, queries, k, query_block=blocks[0], bank_block=blocks[1]
        )
        full = cosines(bank.astype(float), queries.astype(float))
        expected = np.argsort(-full, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_allclose(
            similarities, np.take_along_axis(full, expected, 1), atol=1e-6
        )
        self.assertEqual(similarities.dtype, np.float32)
        self.assertEqual(indices.dtype, np.int64)

    @parameterized.parameters(2, 5, 100)
    def test_of_equals_the_lower_index_wins(self, bank_block):
        bank = np.tile(np.eye(2), (6, 1))
        _, indices = evaluation.nearest_neighbours(
            bank, np.eye(2), 8, bank_block=bank_block
        )
        expected = [[0, 2, 4, 6, 8, 10, 1, 3], [1, 3, 5, 7, 9, 11, 0, 2]]
        np.testing.assert_array_equal(indices, expected)

    @pytest.mark.slow
    def test_memory_stays_within_blocks(self):
        # Their similarities would be 3.2 GB.
        rng = np.random.default_rng(0)
        path = os.path.join(self.create_tempdir().full_path, "bank.npy")
        bank = np.lib.format.open_memmap(path, "w+", np.float16, (200_000, 8))
        bank[:] = rng.standard_normal(bank.shape)
        queries = bank[rng.integers(0, len(bank), 4000)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        similarities, _ = evaluation.nearest_neighbours(
            bank, queries, 1, query_block=500, bank_block=20_000
        )
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        np.testing.assert_allclose(similarities, 1, atol=1e-5)
        self.assertLess(after - before, 400_000)  # kB

    def test_zero_features(self):
        similarities, indices = evaluation.nearest_neighbours(
            np.array([[0.0, 0], [1, 0]]), np.array([[0.0, 0], [-1, 0]]), 1
        )
        np.testing.assert_array_equal(similarities, [[0], [0]])
        np.testing.assert_array_equal(indices, [[0], [0]])


class KNNTest(parameterized.TestCase):
    @parameterized.parameters(1, 2, 3, 10, 25, 150)
    def test_predicts_as_scikit_learn(self, k):
        (bank, labels), (queries, _) = blobs(150), blobs(301, seed=1)
        oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
        predicted = oracle.fit(bank, labels).predict(queries)
        self.assertGreater(len(set(predicted)), 1 if k < 150 else 0)
        for blocks in ({}, {"query_block": 100, "bank_block": 37}):
            # Accuracy 1 against predictions: every single one is the same.
            agreement = evaluation.knn(
                (bank, labels), (queries, predicted), k=k, **blocks
            )
            self.assertEqual(agreement, 1.0)

    def test_grid_is_each_alone_in_one_pass(self):
        bank, queries = blobs(150), blobs(100, seed=1)
        ks, votes = [20, 1, 7], ["similarity", "uniform"]
        with mock.patch.object(
            knn_module,
            "nearest_neighbours",
            wraps=knn_module.nearest_neighbours,
        ) as search:
            found = evaluation.knn_grid(bank, queries, ks=ks, weightings=votes)
        search.assert_called_once()
        self.assertEqual(
            found,
            {
                (k, vote): evaluation.knn(bank, queries, k=k, weighting=vote)
                for k in ks
                for vote in votes
            },
        )
        self.assertGreater(len(set(found.values())), 2)

    @parameterized.parameters(0.5, 0.07, 1e-4)
    def test_weighted_vote(self, temperature):
        (bank, labels), (queries, truth) = blobs(150), blobs(100, seed=1)
        full = cosines(bank.astype(float), queries.astype(float))
        predicted = []
        for row in full:
            nearest = np.argsort(-row)[:20]
            logits = row[nearest] / temperature
            weights = np.exp(logits - logits.max())
            predicted.append(np.bincount(labels[nearest], weights, 7).argmax())
        options = {
            "k": 20,
            "weighting": "similarity",
            "temperature": temperature,
        }
        agreement = evaluation.knn(
            (bank, labels), (queries, np.array(predicted)), **options
        )
        self.assertEqual(agreement, 1.0)
        self.assertAlmostEqual(
            evaluation.knn((bank, labels), (queries, truth), **options),
            np.mean(predicted == truth),
        )

    def test_of_equal_votes_the_smallest_label_wins(self):
        bank = np.array([[1.0, 0], [1, 0.1], [1, 0.2], [1, 0.3]])
        labels = np.array([3, 1, 1, 3])
        query = np.array([[1.0, 0]]), np.array([1])
        self.assertEqual(evaluation.knn((bank, labels), query, k=4), 1.0)
        self.assertEqual(evaluation.knn((bank, labels), query, k=1), 0.0)

    @parameterized.named_parameters(
        ("k_zero", {"k": 0}, "k=0, 20 rows"),
        ("k_large", {"k": 21}, "k=21, 20 rows"),
        ("weighting", {"weighting": "rank"}, "weighting='rank'"),
        ("temperature", {"temperature": 0}, "temperature=0"),
        ("classes", {"num_classes": 6}, r"labels in \[0, 6\], num_classes=6"),
    )
    def test_options(self, options, message):
        with self.assertRaisesRegex(ValueError, message):
            evaluation.knn(blobs(20), blobs(20), **options)

    @parameterized.named_parameters(
        ("width", lambda x, y: (x[:, :3], y), r"\(20, 16\) and \(20, 3\)"),
        ("count", lambda x, y: (x, y[:-1]), r"labels of shape \(19,\)"),
        ("empty", lambda x, y: (x[:0], y[:0]), "at least one"),
        ("negative", lambda x, y: (x, y - 1), r"labels in \[-1, 5\]"),
        ("float", lambda x, y: (x, y * 1.0), "float64"),
        ("nan", lambda x, y: (np.where(x == x[3, 3], np.nan, x), y), "NaN"),
        ("no_pair", lambda x, y: x, "ndarray"),
        ("rank", lambda x, y: (x[..., None], y), "must be"),
    )
    def test_bad_data(self, change, message):
        with self.assertRaisesRegex(ValueError, message):
            evaluation.knn(blobs(20), change(*blobs(20)), k=1)
        with self.assertRaises(ValueError):
            evaluation.linear_probe(blobs(20), change(*blobs(20)), epochs=1)


class FewLabelsTest(parameterized.TestCase):
    def test_balanced_and_seeded(self):
        labels = blobs(300)[1]
        chosen = evaluation.few_labels(labels, 10, 3)
        self.assertLen(set(chosen), 70)
        np.testing.assert_array_equal(np.bincount(labels[chosen]), [10] * 7)
        same, other = (evaluation.few_labels(labels, 10, s) for s in (3, 4))
        np.testing.assert_array_equal(chosen, same)
        self.assertFalse(np.array_equal(chosen, other))

    def test_too_few(self):
        with self.assertRaisesRegex(ValueError, "Class 1 has 2 .*per_class=3"):
            evaluation.few_labels(np.array([0, 0, 0, 1, 1]), 3)
        with self.assertRaisesRegex(ValueError, "per_class=0"):
            evaluation.few_labels(np.array([0, 1]), 0)


class LabelFractionTest(parameterized.TestCase):
    @parameterized.parameters(0.03, 0.1, 0.5, 1.0)
    def test_a_share_of_every_class(self, fraction):
        labels = np.repeat([3, 0, 9], [100, 40, 60])
        chosen = evaluation.label_fraction(labels, fraction, seed=1)
        counts = np.bincount(labels[chosen], minlength=10)[[3, 0, 9]]
        np.testing.assert_array_equal(
            counts, [round(fraction * n) for n in (100, 40, 60)]
        )
        self.assertLen(set(chosen), len(chosen))
        np.testing.assert_array_equal(chosen, np.sort(chosen))
        same, other = (
            evaluation.label_fraction(labels, fraction, seed=s) for s in (1, 2)
        )
        np.testing.assert_array_equal(chosen, same)
        self.assertEqual(np.array_equal(chosen, other), fraction == 1)

    def test_a_class_without_examples(self):
        labels = np.repeat([0, 1], [1000, 40])
        with self.assertRaisesRegex(ValueError, "0.01, 40 examples of class 1"):
            evaluation.label_fraction(labels, 0.01)
        with self.assertRaisesRegex(ValueError, "fraction=0"):
            evaluation.label_fraction(labels, 0)

    def test_classes_of_train_and_test(self):
        check = labels_module.check_classes
        check([0, 1, 2, 2], [2, 1, 0])
        with self.assertRaisesRegex(
            ValueError, "2 classes in train, 3 in test; not in train: 5, 7"
        ):
            check([0, 1, 1], [5, 1, 7])
        with self.assertRaisesRegex(ValueError, "not in train: owl"):
            check([0], [1], {0: "bat", 1: "owl"})
        with self.assertRaisesRegex(ValueError, "not in train: owl, 2"):
            check([0], [1, 2], {1: "owl"})  # names of some
        with self.assertLogs(level="WARNING") as logs:
            check(np.arange(9), [1])
        self.assertIn("8 of 9 classes", logs.output[0])
        self.assertIn("0, 2, 3, 4, 5 and 3 more", logs.output[0])

    def test_accuracies(self):
        truth = np.array([0, 0, 0, 4, 4, 2])
        predicted = np.array([0, 0, 1, 4, 2, 0])
        top1, mean = evaluation.accuracies(predicted, truth)
        self.assertAlmostEqual(top1, 3 / 6)
        self.assertAlmostEqual(mean, (2 / 3 + 1 / 2 + 0) / 3)


@keras.saving.register_keras_serializable(package="evaluation_test")
class TinyEncoder(keras.Model):
    """Pooled features [B, 5] beside embeddings [B, 2]; BatchNorm inside."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.convolution = keras.layers.Conv2D(5, 3, strides=2)
        self.norm = keras.layers.BatchNormalization()
        self.head = keras.layers.Dense(2)

    def features(self, images, training=False):
        x = self.convolution(ops.cast(images, self.compute_dtype) / 255)
        return ops.mean(ops.abs(self.norm(x, training=training)), (1, 2))

    def call(self, images, training=False):
        return self.head(self.features(images, training))


def pictures(count, seed=0):
    """Images whose class is their brightest channel: (uint8, labels)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 160, (count, 8, 8, 3))
    images[np.arange(count), :, :, labels] += 60
    return images.astype(np.uint8), labels


class EmbedTest(parameterized.TestCase):
    @parameterized.parameters(1, 10, 16, 37, 100)
    def test_arrays(self, batch_size):
        model, (images, _) = TinyEncoder(), pictures(37)
        features = evaluation.embed(model, images, batch_size=batch_size)
        self.assertEqual(features.dtype, np.float32)
        expected = model.features(images)
        np.testing.assert_allclose(features, expected, atol=1e-5)
        embeddings = evaluation.embed(model, images, output="embeddings")
        np.testing.assert_allclose(embeddings, model(images), atol=1e-5)

    def test_datasets(self):
        model, (images, labels) = TinyEncoder(), pictures(37)
        expected = evaluation.embed(model, images.astype("float32"))
        pairs = tf.data.Dataset.from_tensor_slices((images, labels)).batch(10)
        features, numbers = evaluation.embed(model, pairs)
        np.testing.assert_allclose(features, expected, atol=1e-5)
        np.testing.assert_array_equal(numbers, labels)
        alone = evaluation.embed(model, pairs.map(lambda x, y: x))
        np.testing.assert_allclose(alone, expected, atol=1e-5)

    def test_any_model_in_mixed_precision(self):
        layers = [keras.layers.Flatten(), keras.layers.Dense(4)]
        model = keras.Sequential(layers)
        for layer in layers:
            layer.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
        features = evaluation.embed(model, pictures(5)[0])
        self.assertEqual((features.shape, features.dtype), ((5, 4), np.float32))

    def test_traced_once(self):
        traces = []

        def forward(images, training):
            traces.append(images.shape)
            return images[:, 0, 0]

        evaluation.embed(forward, pictures(37)[0], batch_size=10)
        self.assertLen(traces, 1)

    @parameterized.named_parameters(
        ("range", lambda x: x / 255.0, "by 255"),
        (
            "normalised",
            lambda x: x / 50.0 - 2,
            "by 255",
        ),
        ("channels", lambda x: x[..., :1], r"\(5, 8, 8, 1\)"),
        ("single", lambda x: x[0], r"\(8, 8, 3\)"),
        ("none", lambda x: x[:0], "at least one image"),
    )
    def test_bad_images(self, change, message):
        with self.assertRaisesRegex(ValueError, message):
            evaluation.embed(TinyEncoder(), change(pictures(5)[0]))

    def test_black_images_are_fine(self):
        evaluation.embed(TinyEncoder(), np.zeros((2, 8, 8, 3), "float32"))

    def test_bad_models(self):
        images = pictures(5)[0]
        with self.assertRaisesRegex(ValueError, "output='logits'"):
            evaluation.embed(TinyEncoder(), images, output="logits")
        with self.assertRaisesRegex(ValueError, r"pools.*\(None, 8, 8, 3\)"):
            evaluation.embed(keras.layers.Identity(), images)
        damaged = TinyEncoder()
        damaged(images)
        damaged.convolution.bias.assign([np.nan] * 5)
        with self.assertRaisesRegex(ValueError, "features must be finite"):
            evaluation.embed(damaged, images)


class LinearProbeTest(parameterized.TestCase):
    @parameterized.parameters(
        {"learning_rate": 10.0, "standardize": True},  # of the protocol linear
        {"learning_rate": 1.0, "standardize": True},
        {"learning_rate": 0.3},
    )
    @pytest.mark.slow
    def test_within_half_a_point_of_logistic_regression(self, **options):
        train, test = blobs(1500), blobs(4000, seed=1)
        oracle = LogisticRegression(max_iter=3000).fit(*train).score(*test)
        self.assertBetween(oracle, 0.75, 0.85)
        result = evaluation.linear_probe(train, test, **options)
        self.assertAlmostEqual(result.accuracy, oracle, delta=0.005)

    @pytest.mark.slow
    def test_as_good_as_logistic_regression_on_digits(self):
        train, test = digit_features()
        oracle = make_pipeline(StandardScaler(), LogisticRegression())
        result = evaluation.linear_probe(
            train, test, learning_rate=10.0, standardize=True
        )
        self.assertAlmostEqual(
            result.accuracy, oracle.fit(*train).score(*test), delta=0.005
        )
        # The classifier that comes with it is the one that was scored.
        logits = test[0] @ result.kernel + result.bias
        accuracy = np.mean(logits.argmax(1) == test[1])
        self.assertAlmostEqual(result.accuracy, accuracy, places=6)
        self.assertLess(result.loss, 0.2)

    @parameterized.parameters(0.0, 0.01)
    def test_follows_torch_sgd(self, weight_decay):
        features, labels = blobs(64)
        options = {"learning_rate": 0.7, "weight_decay": weight_decay}
        # Batches as large as the data: their order does not matter.
        start, result = (
            evaluation.linear_probe(
                *((features, labels),) * 2,
                batch_size=64,
                seed=5,
                epochs=epochs,
                **(options | extra),
            )
            for epochs, extra in ((1, {"learning_rate": 0.0}), (10, {}))
        )
        kernel, bias = start.kernel.astype(float), np.zeros(7)
        velocity = [np.zeros_like(kernel), np.zeros_like(bias)]
        for epoch in range(10):
            rate = 0.7 * (1 if epoch < 6 else 0.1 if epoch < 8 else 0.01)
            logits = features @ kernel + bias
            odds = np.exp(logits - logits.max(1, keepdims=True))
            error = odds / odds.sum(1, keepdims=True) - np.eye(7)[labels]
            gradients = features.T @ error / 64, error.mean(0)
            for w, v, g in zip(
                (kernel, bias), velocity, gradients, strict=True
            ):
                v *= 0.9
                v += g + weight_decay * w
                w -= rate * v
        np.testing.assert_allclose(result.kernel, kernel, atol=1e-5)
        np.testing.assert_allclose(result.bias, bias, atol=1e-5)

    def test_start(self):
        features, labels = blobs(500, width=200)
        result = evaluation.linear_probe(
            *((features, labels),) * 2, learning_rate=0.0, epochs=1
        )
        self.assertAlmostEqual(result.kernel.std(), 0.01, delta=0.001)
        np.testing.assert_array_equal(result.bias, np.zeros(7))

    def test_every_example_counts_once_an_epoch(self):
        # One class per example, batches of 4: each class is seen 6 times, and
        # its bias ends where a rate this small puts it.
        features = np.zeros((10, 2), np.float32)
        labels = np.arange(10)
        result = evaluation.linear_probe(
            *((features, labels),) * 2,
            batch_size=4,
            epochs=6,
            learning_rate=1e-3,
            milestones=(),
            momentum=0.0,
        )
        # 2 batches of 4 and one of 2: weights 1/4 or 1/2 by place in the epoch,
        # less the three batches' mean pull of 1/10.
        moved = np.rint((result.bias / 1e-3 + 6 * 0.3) * 4).astype(int)
        self.assertEqual(moved.sum(), 6 * (8 * 1 + 2 * 2))
        self.assertTrue(np.all(moved >= 6))
        self.assertGreater(len(set(moved)), 1)  # shuffled anew each epoch

    def test_a_function_of_the_seed(self):
        data, options = blobs(90), {"epochs": 2, "batch_size": 16}
        tf.random.set_seed(1)
        first = evaluation.linear_probe(data, data, **options)
        tf.random.set_seed(2)
        same = evaluation.linear_probe(data, data, **options)
        other = evaluation.linear_probe(data, data, **options, seed=1)
        np.testing.assert_array_equal(first.kernel, same.kernel)
        self.assertFalse(np.allclose(first.kernel, other.kernel))

    @parameterized.product(width=[8, 300], learning_rate=[1, 30])
    @pytest.mark.slow
    def test_standardize_suits_every_width(self, width, learning_rate):
        train, test = blobs(600, width, noise=1), blobs(400, width, 7, 1, 1)
        oracle = LogisticRegression(max_iter=1000).fit(*train)
        result = evaluation.linear_probe(
            *((5 + x / 100, y) for x, y in (train, test)),
            learning_rate=learning_rate,
            standardize=True,
        )
        self.assertGreater(result.accuracy, oracle.score(*test) - 0.04)

    def test_standardize_does_not_depend_on_scale(self):
        (x, y), (a, b) = digit_features()
        options = {"learning_rate": 1.0, "epochs": 5, "standardize": True}
        shift = np.arange(64, dtype=np.float32)
        plain = evaluation.linear_probe((x, y), (a, b), **options)
        moved = evaluation.linear_probe(
            (1000 * x + shift, y), (1000 * a + shift, b), **options
        )
        self.assertAlmostEqual(plain.accuracy, moved.accuracy, delta=0.004)
        moves = x.std(0) > 0
        np.testing.assert_allclose(
            moved.kernel[moves] * 1000,
            plain.kernel[moves],
            rtol=1e-3,
            atol=2e-3,
        )

    def test_standardize_with_a_constant_feature(self):
        features, labels = blobs(50)
        features[:, 3] = 0.3
        result = evaluation.linear_probe(
            *((features, labels),) * 2, epochs=3, standardize=True
        )
        self.assertTrue(np.isfinite(result.kernel).all())
        self.assertLess(np.abs(result.kernel[3]).max(), 0.1)

    def test_encoder_without_views_equals_its_features(self):
        encoder, train, test = TinyEncoder(), pictures(50), pictures(20, 1)
        options = {"epochs": 4, "batch_size": 16, "learning_rate": 1.0}
        direct = evaluation.linear_probe(
            train, test, encoder=encoder, **options
        )
        before = [np.copy(weight) for weight in encoder.get_weights()]
        features = [
            (evaluation.embed(encoder, images), labels)
            for images, labels in (train, test)
        ]
        probed = evaluation.linear_probe(*features, **options)
        np.testing.assert_allclose(direct.kernel, probed.kernel, atol=1e-4)
        self.assertAlmostEqual(direct.accuracy, probed.accuracy)
        for weight, kept in zip(encoder.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, kept)

    @pytest.mark.slow
    def test_encoder_with_datasets_and_views(self):
        seen = []

        def view(images, seeds):
            seen.append((images.dtype, images.shape[1:], seeds.dtype))
            shift = tf.cast(seeds[:, :1, None, None] % 50, tf.float32)
            return tf.cast(images[:, :6, :6], tf.float32) + shift

        encoder = TinyEncoder()
        train, test = (
            tf.data.Dataset.from_tensor_slices(pictures(60, i)).batch(16)
            for i in range(2)
        )
        options = {"num_classes": 3, "epochs": 30, "learning_rate": 1.0}
        options["standardize"] = True
        options["log"] = (told := []).append
        viewed, again = (
            evaluation.linear_probe(
                train, test, encoder=encoder, view=view, **options
            )
            for _ in range(2)
        )
        plain = evaluation.linear_probe(train, test, encoder=encoder, **options)
        self.assertLen(told, 90)
        self.assertRegex(told[29], r"epoch 30/30, loss .*, 0.0 min left")
        self.assertEqual(seen[0], (tf.uint8, (8, 8, 3), tf.uint32))
        np.testing.assert_array_equal(viewed.kernel, again.kernel)
        self.assertFalse(np.allclose(viewed.kernel, plain.kernel, atol=1e-3))
        self.assertGreater(viewed.accuracy, 0.6)

    def test_dataset_of_all_epochs(self):
        train, test = blobs(50), blobs(20, seed=1)
        options = {"num_classes": 7, "learning_rate": 0.5, "epochs": 4}
        rng = np.random.default_rng(0)
        order = np.concatenate([rng.permutation(50) for _ in range(4)])
        one, rest = (
            tf.data.Dataset.from_tensor_slices(
                (train[0][rows], train[1][rows])
            ).batch(25)
            for rows in (order[:50], order)
        )
        found = evaluation.linear_probe(
            rest, test, steps_per_epoch=2, **options
        )
        repeated = evaluation.linear_probe(one, test, **options)
        self.assertFalse(np.allclose(found.kernel, repeated.kernel, atol=1e-4))
        # By hand: two steps an epoch, a tenth of the rate from 60 % on.
        start = evaluation.linear_probe(
            one, test, num_classes=7, learning_rate=0.0, epochs=1
        )
        kernel, bias = start.kernel.astype(float), np.zeros(7)
        velocity = [np.zeros_like(kernel), np.zeros_like(bias)]
        for step, (x, y) in enumerate(rest.as_numpy_iterator()):
            rate = 0.5 * (1, 1, 1, 0.1)[step // 2]
            logits = x @ kernel + bias
            odds = np.exp(logits - logits.max(1, keepdims=True))
            error = odds / odds.sum(1, keepdims=True) - np.eye(7)[y]
            for w, v, g in zip(
                (kernel, bias),
                velocity,
                (x.T @ error / 25, error.mean(0)),
                strict=True,
            ):
                v *= 0.9
                v += g
                w -= rate * v
        np.testing.assert_allclose(found.kernel, kernel, atol=1e-5)
        with self.assertRaisesRegex(ValueError, "steps_per_epoch=2.*tuple"):
            evaluation.linear_probe(train, test, steps_per_epoch=2)

    def test_features_are_never_in_memory_as_a_whole(self):
        class OnDisk:
            def __init__(self, array):
                self._array = array
                self.shape, self.dtype = array.shape, array.dtype

            def __len__(self):
                return len(self._array)

            def __getitem__(self, rows):
                block = self._array[rows]
                assert len(block) <= 4096, len(block)
                return block

            def __array__(self, *_, **__):
                raise AssertionError("read as a whole")

        x, y = blobs(9000, width=3)
        stored, plain = (OnDisk(x), y), (x, y)
        for probe in (
            lambda data: evaluation.linear_probe(data, data, epochs=1).loss,
            lambda data: evaluation.choose_learning_rate(
                data, [0.1, 1.0], epochs=1
            ),
        ):
            self.assertEqual(probe(stored), probe(plain))
        x[8000, 1] = np.inf
        with self.assertRaisesRegex(ValueError, "rows 4096 to 8191"):
            evaluation.linear_probe((x, y), (x, y))

    def test_mean_per_class(self):
        # One class is rare in test and never predicted: it counts a half.
        train = np.eye(2)[[0, 0, 0, 1]], np.array([0, 0, 0, 1])
        test = np.eye(2)[[0, 0, 0, 0]], np.array([0, 0, 0, 1])
        found = evaluation.linear_probe(
            train, test, learning_rate=1.0, epochs=20
        )
        self.assertAlmostEqual(found.accuracy, 0.75)
        self.assertAlmostEqual(found.mean_per_class, 0.5)

    def test_choice_of_the_learning_rate(self):
        train = blobs(300)
        rates = [1e-6, 0.3, 1e38]
        rate, found = evaluation.choose_learning_rate(train, rates, epochs=5)
        self.assertEqual(rate, 0.3)
        self.assertIsNone(found[1e38])
        self.assertGreater(found[0.3], found[1e-6] + 0.2)
        with self.assertRaisesRegex(
            evaluation.DivergenceError, "every.*1e\\+38"
        ):
            evaluation.choose_learning_rate(train, [1e38], epochs=2)

    @pytest.mark.slow
    def test_choice_of_the_learning_rate_holds_images_out(self):
        # Of labels at random, whatever is learnt by heart is worth nothing.
        rng = np.random.default_rng(0)
        train = rng.normal(size=(200, 300)), rng.integers(0, 2, 200)
        whole = evaluation.linear_probe(train, train, learning_rate=1.0)
        self.assertEqual(whole.accuracy, 1.0)
        _, found = evaluation.choose_learning_rate(train, [1.0], held_out=0.3)
        self.assertBetween(found[1.0], 0.25, 0.75)

    def test_divergence(self):
        data = blobs(50)
        with self.assertRaisesRegex(
            ValueError, "diverged: loss (nan|inf).*standardize.*rate=30.0"
        ):
            # Weight decay beyond 2 / rate: the weights grow without bound.
            evaluation.linear_probe(data, data, weight_decay=1.0)
        with self.assertLogs(level="WARNING") as logs:
            x, y = data
            evaluation.linear_probe((100 * x, y), (x, y), epochs=5)
        self.assertIn("Lower the learning rate, 30", logs.output[0])

    def test_errors(self):
        data, images = blobs(20), pictures(20)
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(5)
        probe = evaluation.linear_probe
        with self.assertRaisesRegex(ValueError, "`view` needs `encoder`"):
            probe(data, data, view=lambda x: x)
        with self.assertRaisesRegex(ValueError, "epochs=0"):
            probe(data, data, epochs=0)
        with self.assertRaisesRegex(ValueError, "`num_classes`.*`train`"):
            probe(dataset, data)
        with self.assertRaisesRegex(ValueError, "batches .examples, labels."):
            probe(dataset.map(lambda x, y: x), data, num_classes=7)
        with self.assertRaisesRegex(ValueError, "by 255"):
            scaled = images[0] / 255.0, images[1]
            probe(images, scaled, encoder=TinyEncoder())
        self.assertEqual(
            probe(dataset, data, num_classes=7, epochs=1).kernel.shape, (16, 7)
        )


if __name__ == "__main__":
    absltest.main()
