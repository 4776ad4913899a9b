"""Advice on temperature and queue, against NumPy; and its command."""

import json
import os

import numpy as np
from absl.testing import absltest, parameterized
from helpers.runs import (
    command,
    pictures,
    tiny_teacher,
)

import seed_tf
from seed_tf.evaluation import advice

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))


def embeddings(count, spread, dim=16, seed=0):
    """Unit vectors about a common direction; farther from it with `spread`."""
    rng = np.random.default_rng(seed)
    vectors = spread * rng.normal(size=(count, dim))
    vectors[:, 0] += 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def target(query, queue, temperature):
    """The target of one image in float64: its entropy's exp, its first mass."""
    points = np.concatenate([query[None], queue]).astype(np.float64)
    logits = points @ query.astype(np.float64) / temperature
    weights = np.exp(logits - logits.max())
    p = weights / weights.sum()
    entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
    return np.exp(entropy), p[0]


class TargetsTest(parameterized.TestCase):
    @parameterized.parameters((None, 1), (256, 4), (16, None))
    def test_against_numpy(self, queue_size, times):
        queries, queue = embeddings(9, 0.2), embeddings(64, 0.2, seed=1)
        temperatures = (1e-4, 0.01, 0.1)
        found = advice.targets(
            queries, queue, queue_size=queue_size, temperatures=temperatures
        )
        whole = np.concatenate([queue] * times) if times else queue[:16]
        for each, temperature in zip(found, temperatures, strict=True):
            self.assertEqual(each.temperature, temperature)
            of_images = [target(q, whole, temperature) for q in queries]
            expected = np.median(of_images, axis=0)
            np.testing.assert_allclose(
                (each.neighbours, each.self_mass), expected, rtol=1e-3
            )
        self.assertTrue(found[0].one_hot)
        self.assertFalse(found[2].one_hot)

    def test_a_larger_queue_is_foretold(self):
        queries, queue = embeddings(64, 0.3), embeddings(2048, 0.3, seed=1)
        temperatures = (0.05, 0.1, 0.2)
        foretold = advice.targets(
            queries, queue[:512], queue_size=2048, temperatures=temperatures
        )
        there = advice.targets(queries, queue, temperatures=temperatures)
        small = advice.targets(queries, queue[:512], temperatures=temperatures)
        for a, b, c in zip(foretold, there, small, strict=True):
            self.assertBetween(a.neighbours / b.neighbours, 1 / 1.3, 1.3)
            self.assertLess(c.neighbours, b.neighbours / 1.3)

    def test_sizes_that_do_not_divide(self):
        vectors = embeddings(8, 0.2)
        with self.assertRaisesRegex(
            ValueError, "multiple or a divisor.*queue_size=12, length 8"
        ):
            advice.targets(vectors, vectors, queue_size=12)


class AdviceTest(parameterized.TestCase):
    def test_the_papers_temperature_where_it_is_healthy(self):
        found = advice.advise(embeddings(200, 0.15), images=1_281_167)
        self.assertEqual(found.sample, 128)
        self.assertEqual(found.temperature, 0.01)
        self.assertEqual(found.queue_size, 65536)
        self.assertIn("At 0.01, the paper's", found.reasons[0])
        self.assertEqual(found.warnings, [])
        self.assertGreaterEqual(found.doubt, 1.0)
        chosen = next(t for t in found.expected if t.temperature == 0.01)
        self.assertBetween(chosen.neighbours, 2, 300)

    def test_images_far_apart_take_a_higher_one(self):
        found = advice.advise(embeddings(200, 0.3), images=1_281_167)
        self.assertGreater(found.temperature, 0.01)
        self.assertIn("paper's 0.01 the target has too few", found.reasons[0])
        self.assertRegex(found.warnings[0], "0.01 the target is one-hot: .*%")

    def test_images_close_together_take_a_lower_one(self):
        found = advice.advise(embeddings(200, 0.1), images=1_281_167)
        self.assertLess(found.temperature, 0.01)
        self.assertIn("paper's 0.01 the target has too many", found.reasons[0])

    def test_the_authors_default_is_one_hot_for_everyone(self):
        for spread in (0.05, 0.15, 2.0):
            found = advice.advise(
                embeddings(200, spread), images=1_281_167, temperature=1e-4
            )
            self.assertRegex(
                found.warnings[0], "of 0.0001 the target is one-hot"
            )

    @parameterized.parameters(
        (1_281_167, 65536, 65536, None),
        (100_000, 8192, 8192, None),
        (100_000, 65536, 8192, "holds 66% of 100,000"),
        (50_000, 65536, 4096, "holds 1.3 views of each of 50,000"),
        (512, 64, 64, None),
        (511, 64, 64, None),
        (300, 64, 64, None),
        (300, 150, 64, "holds 50% of 300"),
    )
    def test_queue(self, images, asked, recommended, warning):
        found = advice.advise(
            embeddings(100, 0.15), images=images, queue_size=asked
        )
        self.assertEqual(found.queue_size, recommended)
        # The reason is true: of few images even the smallest is a large part.
        reason, share = found.reasons[-1], recommended / images
        if recommended == 65536:
            self.assertIn(f"the paper's, holds {share:.1%} of", reason)
        elif 8 * recommended <= images:
            self.assertIn("no more than an eighth", reason)
            self.assertGreater(16 * recommended, images)
        else:
            self.assertIn(
                f"the smallest that is recommended; it holds "
                f"{share:.0%} of {images}",
                reason,
            )
        told = [w for w in found.warnings if "A queue of" in w]
        self.assertLen(told, 1 if warning else 0)
        if warning:
            self.assertIn(warning, told[0])

    def test_no_temperature_is_healthy(self):
        found = advice.advise(embeddings(200, 0.05), images=1_281_167)
        self.assertIn("No temperature gives a target", found.reasons[0])

    def test_too_few_and_collapsed(self):
        with self.assertRaisesRegex(ValueError, "64 images.*Received: 63"):
            advice.advise(embeddings(63, 0.2), images=63)
        with self.assertRaisesRegex(ValueError, "same embedding.*collapsed"):
            advice.advise(np.ones((100, 4), np.float32) / 2, images=100)

    @parameterized.parameters(
        (1234.5, "1,200"), (0.0123, "0.012"), (99.7, "100"), (65_537, "66,000")
    )
    def test_no_false_precision(self, value, expected):
        self.assertEqual(advice.about(value), expected)


class CommandTest(absltest.TestCase):
    def test_text_json_picture_page(self):
        folder = self.create_tempdir().full_path
        teacher = tiny_teacher(os.path.join(folder, "teacher.keras"))
        images = pictures(os.path.join(folder, "images"), 150)
        output = os.path.join(folder, "advice")
        printed = command(
            *("advise", f"--encoder={teacher}", f"--data_dir={images}"),
            *("--image_size=16", "--batch_size=32", "--max_images=128"),
            *("--teacher_temperature=1e-4", f"--output={output}"),
        )
        self.assertRegex(
            printed, r"Recommended: --teacher_temperature=\S+ --queue_size"
        )
        self.assertRegex(printed, r"0.0001 +1 +1 +100% +one-hot\n")
        self.assertRegex(printed, "Warning: .*one-hot")
        self.assertRegex(printed, "Warning: A queue of 65,536 holds 43")
        self.assertCountEqual(
            os.listdir(output), ["advice.json", "advice.png", "report.html"]
        )
        with open(os.path.join(output, "advice.json")) as f:
            written = json.load(f)
        self.assertEqual((written["sample"], written["images"]), (64, 150))
        self.assertLen(written["measured"], len(advice.TEMPERATURES))

        # The same embeddings from the library, of training's own views.
        views = seed_tf.views.moco_v2(16)
        batches = seed_tf.datasets.load(
            "folder", data_dir=images, image_size=18, batch_size=32, views=views
        )
        network = seed_tf.checkpoints.load_encoder(teacher)
        z = advice.view_embeddings(network, batches, views)
        self.assertEqual(z.shape, (128, 16))
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
        model = seed_tf.SEED(
            student=seed_tf.Encoder(network.backbone, embedding_dim=16),
            teacher=network,
            views=views,
            queue_size=4,
        )
        for step, batch in enumerate(batches):
            view = model.augment(batch, step)[0]
            expected = network(view, training=False).numpy()
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
            np.testing.assert_allclose(
                z[32 * step :][: len(expected)], expected, atol=1e-5
            )
        again = advice.advise(z, images=150)
        np.testing.assert_allclose(
            [t.neighbours for t in again.measured],
            [t["neighbours"] for t in written["measured"]],
            rtol=1e-3,
        )


if __name__ == "__main__":
    absltest.main()
