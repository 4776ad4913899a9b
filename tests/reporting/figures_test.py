"""Figures, their texts and colours read back."""

import io
import itertools
import re

import matplotlib
import numpy as np
from absl.testing import absltest, parameterized
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text

from seed_tf.detection.comparison import drawn_detections
from seed_tf.evaluation.advice import Advice, Target
from seed_tf.evaluation.results import Results
from seed_tf.reporting import figures


class FiguresTest(parameterized.TestCase):
    def tearDown(self):
        super().tearDown()
        # Figures are drawn without touching what others draw with pyplot.
        self.assertNotEqual(matplotlib.rcParams["figure.dpi"], 130)

    def test_palette(self):
        colours = figures.palette("abcdef")
        self.assertLen(set(colours.values()), 6)
        for colour in colours.values():
            self.assertRegex(colour, "^#[0-9A-F]{6}$")

    def test_bars(self):
        results = {
            "alone": {"k-NN": [70.0, 80.0], "probe": [60.0]},
            "SEED": {"k-NN": [91.0, 93.0, 95.0]},
        }
        colours = {"alone": "#111111", "SEED": "#222222"}
        figure = figures.bars(results, colours=colours)
        first, second = figure.axes
        self.assertEqual(
            [bar.get_width() for bar in first.patches], [75.0, 93.0]
        )
        self.assertEqual(
            [to_hex(bar.get_facecolor()) for bar in first.patches],
            ["#111111", "#222222"],
        )
        self.assertEqual([t.get_text() for t in first.texts], ["75.0", "93.0"])
        seeds = [
            points.get_offsets()[:, 0].tolist()
            for points in first.collections
            if len(points.get_offsets()) > 1
        ]
        self.assertEqual(seeds, [[70.0, 80.0], [91.0, 93.0, 95.0]])
        self.assertLen(second.patches, 1)
        self.assertEqual(
            [label.get_text() for label in first.get_yticklabels()],
            ["alone", "SEED"],
        )
        self.assertEqual(first.get_xlabel(), "top-1 accuracy (%)")

    def test_curves(self):
        histories = {
            "alone": {"loss": [3.0, 2.0, 1.0]},
            "SEED": {"loss": [5.0, 4.0], "gap": [1.0, 0.5]},
        }
        figure = figures.curves(
            histories,
            {"loss": "loss (nats)", "gap": "gap (nats)"},
            every=25,
            xlabel="step",
        )
        loss, gap = figure.axes
        self.assertEqual(loss.get_title(loc="left"), "loss (nats)")
        self.assertEqual(loss.get_xlabel(), "step")
        alone, seed = loss.lines
        np.testing.assert_array_equal(
            alone.get_xydata(), [[25, 3], [50, 2], [75, 1]]
        )
        drawn = [line for line in gap.lines if len(line.get_xdata())]
        self.assertLen(drawn, 1)
        self.assertEqual(drawn[0].get_color(), seed.get_color())
        self.assertNotEqual(alone.get_color(), seed.get_color())
        (legend,) = figure.legends
        names = [text.get_text() for text in legend.get_texts()]
        self.assertEqual(names, ["alone", "SEED"])
        figure.savefig(io.BytesIO())

    def points(self, axes):
        return np.concatenate([c.get_offsets() for c in axes.collections])

    def test_embedding_map_by_principal_components(self):
        rng = np.random.default_rng(0)
        features = rng.standard_normal((60, 5)) * [9, 4, 1, 1, 1]
        labels = rng.integers(0, 3, 60)
        figure = figures.embedding_map(
            {"a": features, "b": 7 * features}, labels, method="pca"
        )
        a, b = figure.axes
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        unit -= unit.mean(0)
        expected = unit @ np.linalg.svd(unit)[2][:2].T
        order = np.argsort(np.abs(expected[:, 0]))
        drawn = self.points(a)
        drawn = drawn[np.argsort(np.abs(drawn[:, 0]))]
        np.testing.assert_allclose(
            np.abs(drawn), np.abs(expected[order]), atol=1e-4
        )
        np.testing.assert_allclose(self.points(a), self.points(b), atol=1e-4)
        sizes = [len(c.get_offsets()) for c in a.collections]
        self.assertEqual(sizes, np.bincount(labels).tolist())
        figure.savefig(io.BytesIO())

    def test_embedding_map_by_tsne_is_seeded_and_bounded(self):
        rng = np.random.default_rng(0)
        features = rng.standard_normal((90, 5))
        labels = np.repeat(np.arange(15), [9, 3] + [6] * 13)
        maps = [
            self.points(
                figures.embedding_map(
                    {"a": features}, labels, max_points=40, seed=seed
                ).axes[0]
            )
            for seed in (1, 1, 2)
        ]
        self.assertEqual(maps[0].shape, (40, 2))
        np.testing.assert_array_equal(maps[0], maps[1])
        self.assertFalse(np.allclose(maps[0], maps[2]))
        figure = figures.embedding_map(
            {"a": features},
            labels,
            method="pca",
            class_names=list("ABCDEFGHIJKLMNO"),
        )
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        self.assertEqual(names, list("ACDEFGHIJK"))  # ten, the largest
        with self.assertRaisesRegex(ValueError, "method='umap'"):
            figures.embedding_map({"a": features}, labels, method="umap")

    def test_a_legend_of_long_names_fits(self):
        history = {"loss": [2.0, 1.0]}
        for metrics in (["loss"], ["loss", "gap", "cosine"]):
            figure = figures.curves(
                {f"a name of some length {i}": history for i in range(7)},
                metrics,
            )
            FigureCanvasAgg(figure).draw()
            extent = figure.legends[0].get_window_extent()
            self.assertGreater(extent.x0, 0)
            self.assertLess(extent.x1, figure.bbox.width)

    def test_points(self):
        colours = figures.palette(["teacher", "small", "large"])
        values = {"small": (4e6, 36.3), "large": (11e6, 57.9)}
        figure = figures.points(
            values,
            xlabel="parameters",
            ylabel="top-1",
            colours=colours,
        )
        (axes,) = figure.axes
        drawn = [tuple(c.get_offsets()[0]) for c in axes.collections]
        self.assertEqual(drawn, list(values.values()))
        for name, dots in zip(values, axes.collections, strict=True):
            self.assertEqual(
                to_hex(dots.get_facecolor()[0]).upper(), colours[name].upper()
            )
        names = [text.get_text() for text in axes.texts]
        self.assertEqual(names, ["small", "large"])
        self.assertEqual(axes.get_xscale(), "log")
        self.assertEqual(axes.get_xlabel(), "parameters")
        self.assertEqual(axes.xaxis.get_major_formatter()(5e6), "5 M")

    def test_names_of_points_do_not_overlap(self):
        values = {f"run {i}": (1e6, 50 + 0.01 * i) for i in range(18)}
        values |= {"low": (2e6, 20.0), "high": (2e6, 80.0)}
        figure = figures.points(values, xlabel="x", ylabel="y")
        figure.draw_without_rendering()
        # An annotation's own extent is that of its line, too.
        boxes = [Text.get_window_extent(x) for x in figure.axes[0].texts]
        boxes.sort(key=lambda box: box.y0)
        for below, above in itertools.pairwise(boxes):
            self.assertLess(below.y1, above.y0)
        names = sorted(figure.axes[0].texts, key=lambda x: x.xyann[1])
        self.assertEqual(names[0].get_text(), "low")
        self.assertEqual(names[-1].get_text(), "high")
        ticked = figures.points(
            {"a": (0.5, 1)}, xlabel="x", ylabel="y", ticks="{x:g} h"
        )
        self.assertEqual(
            ticked.axes[0].xaxis.get_major_formatter()(0.5), "0.5 h"
        )

    def test_target_curve(self):
        measured = [Target(0.001, 1.0, 0.9), Target(0.1, 50.0, 0.25)]
        expected = [Target(0.001, 1.0, 0.8), Target(0.1, 200.0, 0.0)]
        advice = Advice(
            sample=512,
            images=9999,
            queue_size=1024,
            measured=measured,
            expected=expected,
            doubt=1.1,
            temperature=0.1,
            reasons=[],
            warnings=[],
        )
        left, right = figures.target_curve(advice).axes
        for axes, values in (
            (left, ([1.0, 50.0], [1.0, 200.0])),
            (right, ([90.0, 25.0], [80.0, 0.0])),
        ):
            *lines, recommended = axes.lines
            for line, heights in zip(lines, values, strict=True):
                np.testing.assert_allclose(line.get_xdata(), [0.001, 0.1])
                np.testing.assert_allclose(line.get_ydata(), heights)
            self.assertEqual(set(recommended.get_xdata()), {0.1})
        labels = [text.get_text() for text in left.get_legend().get_texts()]
        self.assertIn("512, measured", labels[0])
        self.assertIn("1,024, about", labels[1])
        self.shown(left.figure)
        ticks = [text.get_text() for text in right.get_xticklabels()]
        self.assertIn("0.001", ticks)

    def shown(self, figure):
        """The texts of a figure that can be drawn; none is a formula."""
        figure.savefig(io.BytesIO())
        texts = figure.findobj(Text)
        for text in texts:
            if "$" in text.get_text():
                self.assertFalse(text.get_parse_math(), text.get_text())
        return [text.get_text() for text in texts if text.get_visible()]

    def test_names_are_texts(self):
        """Names of files, classes and runs are shown as they are."""
        names = ["price_$^$.jpg", "_$x_1$", r"$\frac{", "a$b$c"]
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (4, 4, 4, 3), np.uint8)
        curve = {"loss": [2.0, 1.0]}
        detected = {"boxes": [[[0, 0, 2, 2]]], "classes": [[0]]}
        for figure in (
            figures.bars({name: {names[0]: [50.0]} for name in names}),
            figures.curves(dict.fromkeys(names, curve), {"loss": names[0]}),
            figures.points(
                {name: (i + 1, 3) for i, name in enumerate(names)},
                xlabel=names[0],
                ylabel="y",
            ),
            figures.embedding_map(
                {names[0]: rng.standard_normal((8, 3))},
                np.repeat(np.arange(4), 2),
                method="pca",
                class_names=names,
            ),
            figures.neighbours(
                images, {x: (images, np.eye(4, 2, dtype=int)) for x in names}
            ),
            Results({name: {names[0]: [50.0]} for name in names}).figure(),
            drawn_detections(
                images[:1],
                dict.fromkeys(names, detected),
                names=[names[0]],
            ),
        ):
            texts = self.shown(figure)
            for name in names:
                self.assertIn(name, texts)

    def test_neighbours(self):
        rng = np.random.default_rng(0)
        bank = rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
        bank_labels = np.array([0, 1, 0, 1, 0, 1])
        queries, query_labels = bank[:2] // 2, np.array([0, 1])
        indices = np.array([[4, 3, 0], [1, 2, 5]])
        figure = figures.neighbours(
            queries,
            {"alone": (bank, indices), "SEED": (bank, indices[:, :2])},
            query_labels=query_labels,
            bank_labels=bank_labels,
        )
        query, alone, seed = figure.axes
        shown = [image.get_array() for image in query.images]
        np.testing.assert_array_equal(shown, queries)
        shown = [image.get_array() for image in alone.images]
        np.testing.assert_array_equal(shown, bank[indices.flatten()])
        outlines = [to_hex(p.get_edgecolor()) for p in alone.patches]
        right, wrong = outlines[0], outlines[1]
        self.assertEqual(outlines, [right, wrong, right, right, wrong, right])
        red, green, _ = (int(wrong[i : i + 2], 16) for i in (1, 3, 5))
        self.assertGreater(red, 2 * green)
        red, green, _ = (int(right[i : i + 2], 16) for i in (1, 3, 5))
        self.assertGreater(green, 2 * red)
        self.assertTrue(re.match("4 of 6", alone.get_xlabel()))
        self.assertLen(seed.images, 4)
        plain = figures.neighbours(queries, {"SEED": (bank, indices)})
        self.assertEmpty(plain.axes[1].patches)
        figure.savefig(io.BytesIO())


if __name__ == "__main__":
    absltest.main()
