"""Recall, average precision and ridge probe against scikit-learn and NumPy."""

import tracemalloc

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from sklearn.metrics import average_precision_score

from seed_tf import evaluation


def blobs(count, width=12, classes=5, noise=1.5, seed=0):
    """Overlapping classes: features `[N, C]` and labels `[N]`."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((classes, width))
    labels = rng.integers(0, classes, count)
    features = centres[labels] + noise * rng.standard_normal((count, width))
    return features.astype(np.float32), labels


def brute_force(bank, queries, ks, alone=False):
    """Recalls by k and mean average precision, row by row."""
    (x, labels), (q, truth) = bank, queries
    x, q = (
        v.astype(np.float64) / np.linalg.norm(v, axis=1, keepdims=True)
        for v in (x, q)
    )
    recalls, precisions = {k: [] for k in ks}, []
    for i, (row, label) in enumerate(zip(q, truth, strict=True)):
        similarities = np.float32(x @ row)
        others = np.arange(len(x)) != (i if alone else -1)
        relevant = (labels == label)[others]
        if not relevant.any():
            continue
        order = np.argsort(-similarities[others], kind="stable")
        for k in ks:
            recalls[k].append(relevant[order[:k]].any())
        precisions.append(
            average_precision_score(relevant, similarities[others])
        )
    return {k: np.mean(r) for k, r in recalls.items()}, np.mean(precisions)


class RetrievalTest(parameterized.TestCase):
    @parameterized.parameters(None, 1, 7)
    def test_queries_against_a_bank(self, query_block):
        bank, queries = blobs(90), blobs(41, seed=1)
        found = evaluation.retrieval(
            bank, queries, ks=(1, 2, 30), query_block=query_block
        )
        recall, precision = brute_force(bank, queries, (1, 2, 30))
        self.assertEqual(found.recall, recall)
        self.assertAlmostEqual(found.mean_average_precision, precision, 6)
        self.assertEqual(found.queries, 41)
        self.assertBetween(precision, 0.3, 0.9)

    @parameterized.parameters(None, 7)
    def test_a_set_against_itself(self, query_block):
        data = blobs(60)
        data[1][5] = 8  # the only one of its class
        found = evaluation.retrieval(data, ks=(1, 3), query_block=query_block)
        recall, precision = brute_force(data, data, (1, 3), alone=True)
        self.assertEqual(found.recall, recall)
        self.assertLess(found.recall[1], 1)
        self.assertAlmostEqual(found.mean_average_precision, precision, 6)
        self.assertEqual(found.queries, 59)

    def test_equal_rows_count_together(self):
        bank = np.eye(3)[[0, 0, 1, 1, 1, 2, 0]], np.array([0, 1, 0, 0, 1, 1, 0])
        found = evaluation.retrieval(bank, bank, ks=(1,))
        _, precision = brute_force(bank, bank, (1,))
        self.assertAlmostEqual(found.mean_average_precision, precision, 6)

    @pytest.mark.slow
    def test_memory_is_that_of_a_block(self):
        bank, queries = blobs(2**18, width=4), blobs(300, width=4, seed=1)
        tracemalloc.start()
        try:
            evaluation.retrieval(bank, queries, ks=(1,))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertBetween(peak, 256e6, 300e6)  # 315 MB in one block

    def test_errors(self):
        bank, queries = blobs(20), blobs(10)
        with self.assertRaisesRegex(ValueError, "`train` must be finite"):
            evaluation.retrieval((bank[0] * np.nan, bank[1]), queries)
        with self.assertRaisesRegex(ValueError, "k=20, 19 rows"):
            evaluation.retrieval(bank, ks=(20,))
        evaluation.retrieval(bank, queries, ks=(20,))
        with self.assertRaisesRegex(ValueError, "labels of shape .19,."):
            evaluation.retrieval((bank[0], bank[1][1:]), queries)
        with self.assertRaisesRegex(ValueError, "one width"):
            evaluation.retrieval(bank, (queries[0][:, 1:], queries[1]))
        with self.assertRaisesRegex(ValueError, r"some query.*\[50"):
            evaluation.retrieval(bank, (queries[0], queries[1] + 50))


class RidgeProbeTest(parameterized.TestCase):
    @parameterized.parameters(
        {"alpha": 0.1, "classes": 5},
        {"alpha": 300.0, "classes": 5},
        {"alpha": 10.0, "classes": 2},
    )
    def test_follows_scikit_learn(self, alpha, classes):
        train, (queries, _) = blobs(300, classes=classes), blobs(99, seed=1)
        shifted = train[0] + 1000, train[1]  # a mean that could cancel
        oracle = RidgeClassifier(alpha).fit(
            shifted[0].astype(np.float64), train[1]
        )
        predicted = oracle.predict(queries + 1000.0)
        found = evaluation.ridge_probe(
            shifted, (queries + 1000, predicted), alphas=[alpha]
        )
        self.assertEqual(found.accuracy, 1.0)
        if classes > 2:  # its targets are -1 and 1
            np.testing.assert_allclose(
                found.kernel, oracle.coef_.T / 2, atol=1e-6
            )

    @parameterized.parameters(40, 2000)
    def test_chooses_as_leaving_one_out(self, count):
        train = blobs(count, width=30, noise=4)
        alphas = 10.0 ** np.arange(-2, 6)
        oracle = RidgeClassifierCV(alphas).fit(*train)
        found = evaluation.ridge_probe(train, train, alphas=alphas)
        self.assertEqual(found.alpha, oracle.alpha_)
        self.assertBetween(found.alpha, 1, 1e4)  # none of the ends

    def test_does_not_depend_on_scale(self):
        train, test = blobs(400), blobs(200, seed=1)
        found = [
            evaluation.ridge_probe(
                (s * train[0], train[1]), (s * test[0], test[1])
            )
            for s in (1, 1000)
        ]
        self.assertEqual(found[0].accuracy, found[1].accuracy)
        self.assertAlmostEqual(found[1].alpha / found[0].alpha, 1e6, -1)

    def test_mean_per_class(self):
        features = np.repeat(np.eye(3), [30, 30, 30], axis=0)
        labels = np.repeat([0, 1, 2], 30)
        test = np.eye(3)[[0, 0, 0, 1, 1]], np.array([0, 0, 0, 1, 2])
        found = evaluation.ridge_probe((features, labels), test)
        self.assertAlmostEqual(found.accuracy, 4 / 5)
        self.assertAlmostEqual(found.mean_per_class, 2 / 3)

    def test_features_that_never_move(self):
        data = np.ones((10, 3)), np.arange(10) % 2
        self.assertEqual(evaluation.ridge_probe(data, data).accuracy, 0.5)

    def test_errors(self):
        data = blobs(20)
        with self.assertRaisesRegex(ValueError, r"`alphas`.*\[0\]"):
            evaluation.ridge_probe(data, data, alphas=[0])
        with self.assertRaisesRegex(ValueError, "num_classes=3"):
            evaluation.ridge_probe(data, data, num_classes=3)
        with self.assertRaisesRegex(ValueError, "`test` must be finite"):
            evaluation.ridge_probe(data, (data[0] * np.nan, data[1]))


if __name__ == "__main__":
    absltest.main()
