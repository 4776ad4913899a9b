"""Runs side by side: what is read, what is told of them, what is refused."""

import json
import os
import pathlib
from unittest import mock

import keras
import pytest
from absl.testing import absltest, parameterized
from helpers.runs import command

from seed_tf.training import comparison, finished_run

ROOT = pathlib.Path(__file__).resolve().parents[2]


def backbone():
    """A network of 3 * 3 * 3 * 5 + 5 weights and 4 * 5 of BatchNorm."""
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(5, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
        ]
    )


def write(folder, name, *, config=None, lines=None, summary=None, results=None):
    """A run folder as launchers leave it."""
    path = pathlib.Path(folder, name)
    path.mkdir(parents=True)
    config = {"launcher": "distill", "output": name, **(config or {})}
    (path / "config.json").write_text(json.dumps(config))
    if lines is None:
        lines = [
            {"step": 5, "seconds": 1800, "loss": 3.0, "gap": 2.0, "knn": 0.25},
            {"step": 10, "seconds": 5400, "loss": 2.5, "gap": 1.5},
        ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text)
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    if results is not None:
        (path / "results.json").write_text(json.dumps(results))
    return str(path)


class ReadTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path

    def test_what_a_run_tells(self):
        path = write(
            self.folder,
            "a",
            config={"student": "resnet18"},
            summary={"ended": "finished"},
        )
        network = backbone()
        network.save(os.path.join(path, "backbone.keras"))
        run = finished_run.read_run(path)
        self.assertEqual(run.config["student"], "resnet18")
        self.assertEqual(run.parameters, network.count_params())
        self.assertEqual(run.parameters, 3 * 3 * 3 * 5 + 5 + 4 * 5)
        self.assertEqual(run.last("loss"), 2.5)
        self.assertEqual(run.last("knn"), 0.25)  # measured less often
        self.assertIsNone(run.last("agreement"))

    def test_results_go_to_the_run_that_they_name(self):
        first, second = (write(self.folder, name) for name in "ab")
        rows = [
            {"encoder": first, "linear probe": 50.0},
            {"encoder": os.path.join(second, "student.keras"), "10-NN": 40.0},
            {"encoder": "somebody.else", "10-NN": 99.0},
        ]
        self.assertEqual(
            finished_run.read_run(first, rows).results, {"linear probe": 50.0}
        )
        self.assertEqual(
            finished_run.read_run(second + "/", rows).results, {"10-NN": 40.0}
        )
        third = os.path.join(self.folder, "c")
        write(self.folder, "c", results=[{"encoder": third, "10-NN": 30.0}])
        self.assertEqual(finished_run.read_run(third).results, {"10-NN": 30.0})

    def test_folders_that_are_no_runs(self):
        missing = os.path.join(self.folder, "missing")
        empty = os.path.join(self.folder, "empty")
        os.makedirs(empty)
        foreign = os.path.join(self.folder, "foreign")
        os.makedirs(foreign)
        pathlib.Path(foreign, "config.json").write_text('{"model": "bert"}')
        for path, message in (
            (missing, "'.*/missing' is no folder of a run: it does not exist"),
            (empty, "'.*/empty' is no folder of a run: it has no config.json"),
            (foreign, "'.*/foreign' is no folder of a run: it has no config"),
            (
                write(self.folder, "young", lines=[]),
                "run in '.*/young' has no metrics.jsonl, or nothing",
            ),
            (
                write(self.folder, "other", lines=[{"x": 1}]),
                "run in '.*/other' has no metrics.jsonl, or nothing",
            ),
        ):
            with self.assertRaisesRegex(ValueError, message):
                finished_run.read_run(path)

    def test_a_damaged_line_hides_no_other(self):
        path = write(self.folder, "a")
        file = pathlib.Path(path, "metrics.jsonl")
        first, last = file.read_text().splitlines()
        file.write_text(f"{first}\n{first[:20]}\n{last}\n")
        with self.assertLogs(level="WARNING") as logs:
            self.assertEqual(finished_run.read_run(path).last("loss"), 2.5)
        self.assertIn("Line 2 of", logs.output[0])

    @parameterized.parameters(
        ("config.json", "{", "config.json' is damaged"),
        ("summary.json", "{", "summary.json' is damaged"),
        ("results.json", "{", "results.json' is damaged"),
        ("config.json", "[1]", "config.json' is damaged: expected an object"),
        ("summary.json", "[1]", "summary.json' is damaged: expected an object"),
        ("results.json", "[1]", "results.json' is no results.json of"),
        ("results.json", "{}", "results.json' is damaged: expected a list"),
        ("backbone.keras", "{", "backbone.keras' is damaged"),
    )
    def test_damaged_files(self, name, content, message):
        path = write(self.folder, "a")
        pathlib.Path(path, name).write_text(content)
        with self.assertRaisesRegex(ValueError, message):
            finished_run.read_run(path)


class CompareTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.alone = write(
            self.folder,
            "alone",
            config={"launcher": "pretrain", "encoder": "b0", "seed": 1},
            summary={"ended": "finished", "flops_per_step": 2_500_000},
        )
        # Of code that did not count operations yet.
        self.seed = write(
            self.folder,
            "seed",
            config={"student": "b0", "seed": 1, "command": "other"},
            lines=[{"step": 12, "seconds": 90.0, "loss": 1.0, "knn": 0.5}],
            summary={"ended": "running"},
        )

    def compare(self, *paths, rows=(), output=None):
        runs = [finished_run.read_run(path, rows) for path in paths]
        return comparison.compare_runs(runs, output)

    def test_table_and_differences(self):
        table, differences = self.compare(self.alone, self.seed).split("\n\n")
        heading, _, *lines = (line.split() for line in table.splitlines())
        expected = [
            "run network parameters steps FLOPs hours loss gap knn ended",
            "alone b0 – 10 25_M 1.5 2.500 1.500 0.250 –",
            "seed b0 – 12 – 0.025 1.000 – 0.500 running",
        ]
        lines[0][4:6] = ["_".join(lines[0][4:6])]
        self.assertCountEqual(heading, expected[0].split())
        for line, cells in zip(lines, expected[1:], strict=True):
            self.assertEqual(
                dict(zip(heading, line, strict=True)),
                dict(zip(expected[0].split(), cells.split(), strict=True)),
            )
        settings = [line.split() for line in differences.splitlines()]
        self.assertEqual(settings[0], ["setting", "alone", "seed"])
        self.assertCountEqual(
            settings[2:],
            [
                ["launcher", "pretrain", "distill"],
                ["encoder", "b0", "–"],
                ["student", "–", "b0"],
            ],
        )

    def test_files(self):
        backbone().save(os.path.join(self.alone, "backbone.keras"))
        output = os.path.join(self.folder, "report")
        rows = [
            {"encoder": self.alone, "10-NN": 35.0, "linear probe": [45.5, 0.2]},
            {"encoder": self.seed, "10-NN": 55.0, "linear probe": [65.5, 0.2]},
        ]
        self.compare(self.alone, self.seed, rows=rows, output=output)
        self.assertCountEqual(
            os.listdir(output),
            [
                *("report.md", "report.json", "report.html"),
                *("parameters.png", "flops.png", "hours.png", "curves.png"),
            ],
        )
        with open(os.path.join(output, "report.json")) as f:
            written = json.load(f)["runs"]
        self.assertEqual([row["10-NN"] for row in written], [35.0, 55.0])
        self.assertEqual(written[0]["parameters"], 160)
        self.assertEqual([row["FLOPs"] for row in written], [25_000_000, None])
        self.assertEqual(written[0]["hours"], 1.5)
        page = pathlib.Path(output, "report.html").read_text()
        self.assertEqual(page.count("data:image/png"), 4)
        self.assertIn("45.5 ± 0.2", page)
        text = pathlib.Path(output, "report.md").read_text()
        self.assertIn("| setting", text)
        self.assertLess(
            text.index("(parameters.png)"),
            text.index("![Accuracy against FLOPs of training](flops"),
        )
        self.assertLess(
            text.index("(flops.png)"),
            text.index("![Accuracy against hours of training](hours.png)"),
        )

    def test_points_of_accuracy_against_cost(self):
        rows = [
            {"run": "a", "parameters": 2e6, "FLOPs": 4e15, "hours": 4.0},
            {"run": "b", "parameters": 5e6, "FLOPs": None, "hours": 6.0},
        ]
        rows = [row | {"linear probe": 50.0} for row in rows]
        runs = [finished_run.read_run(path) for path in (self.alone, self.seed)]
        with mock.patch.object(comparison.figures, "points") as points:
            comparison._pictures(["a", "b"], runs, rows)
        self.assertEqual(
            [call.args[0] for call in points.call_args_list],
            [
                {"a": (2e6, 50.0), "b": (5e6, 50.0)},
                {"a": (4e15, 50.0)},
                {"a": (4.0, 50.0), "b": (6.0, 50.0)},
            ],
        )

    def test_which_accuracy_is_drawn(self):
        rows = [
            {"knn": 0.25, "10-NN": 35.0, "linear probe": (45.5, 0.2)},
            {"knn": 0.5, "10-NN": 55.0, "linear probe": (65.5, 0.2)},
        ]
        self.assertEqual(
            comparison._accuracy(rows), ("linear probe", [45.5, 65.5])
        )
        del rows[0]["linear probe"]
        self.assertEqual(comparison._accuracy(rows), ("10-NN", [35.0, 55.0]))
        del rows[0]["10-NN"]
        self.assertEqual(
            comparison._accuracy(rows),
            ("k-NN top-1 during training", [25.0, 50.0]),
        )
        self.assertEqual(comparison._accuracy([{"loss": 1.0}]), (None, []))

    def test_names_that_tell_runs_apart(self):
        other = write(self.folder, "x/alone")
        text = self.compare(self.alone, other)
        self.assertIn("x/alone", text)
        with self.assertRaisesRegex(ValueError, "named twice.*alone"):
            self.compare(self.alone, self.alone)

    @pytest.mark.slow
    def test_command(self):
        results = os.path.join(self.folder, "results.json")
        with open(results, "w") as f:
            json.dump([{"encoder": self.seed, "10-NN": 55.0}], f)
        printed = command(
            "report", self.alone, self.seed, f"--results={results}"
        )
        self.assertRegex(printed, "seed .*55.0")
        printed = command("report", code=1)
        self.assertIn("Error: Name the folders", printed)


if __name__ == "__main__":
    absltest.main()
