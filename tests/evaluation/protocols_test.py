"""Protocols on several encoders, their table and its files."""

import base64
import csv
import inspect
import json
import os
import re
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from helpers.labelled import class_folders, digits, tiny_encoder
from PIL import Image

import seed_tf
from seed_tf import evaluation
from seed_tf.evaluation import protocols, transfer
from seed_tf.evaluation.labelled_images import LabelledImages

CLASSES = {  # of data sets of TFDS
    **{"caltech101": 102, "cars196": 196, "cifar10": 10, "cifar100": 100},
    **{"dtd": 47, "food101": 101, "imagenet2012": 1000},
    **{"oxford_flowers102": 102, "oxford_iiit_pet": 37},
    **{"sun397": 397, "sun397/standard-part1-120k": 397},
}


def task(**options):
    return protocols.EvaluationConfig(
        digits("train"), digits("test"), **options
    )


class ProtocolsTest(parameterized.TestCase):
    def test_equals_the_library(self):
        encoder, lines = tiny_encoder(), []
        results = protocols.evaluate(
            {"a": encoder},
            ["knn", "ridge", "retrieval", "linear"],
            task(ks=(1, 5), probe_epochs=5, log=lines.append),
        )
        found = results.rows()[0]
        data = [
            [
                evaluation.embed(encoder, digits(split).load(), output=output)
                for split in ("train", "test")
            ]
            for output in ("features", "embeddings")
        ]
        for output, (train, test) in zip(
            ("features", "embeddings"), data, strict=True
        ):
            for (k, weighting), value in evaluation.knn_grid(
                train, test, ks=(1, 5)
            ).items():
                vote = " weighted" if weighting == "similarity" else ""
                column = f"{k}-NN{vote}, {output}"
                if (k, vote) != (1, " weighted"):
                    self.assertAlmostEqual(found.pop(column), 100 * value, 1)
            retrieved = evaluation.retrieval(train, test, ks=(1, 5))
            for k in (1, 5):
                self.assertAlmostEqual(
                    found.pop(f"recall@{k}, {output}"),
                    100 * retrieved.recall[k],
                    1,
                )
            self.assertAlmostEqual(
                found.pop(f"mAP, {output}"),
                100 * retrieved.mean_average_precision,
                1,
            )
        ridge = evaluation.ridge_probe(*data[0])
        self.assertAlmostEqual(
            found.pop("ridge probe"), 100 * ridge.accuracy, 1
        )
        probe = evaluation.linear_probe(
            *data[0], learning_rate=10, epochs=5, standardize=True
        )
        self.assertAlmostEqual(
            found.pop("linear probe"), 100 * probe.accuracy, 1
        )
        self.assertEqual(found, {"encoder": "a", "linear probe, rate": "10"})
        # Two splits, each seen once by the encoder.
        self.assertLen([x for x in lines if "Embedding" in x], 2)
        self.assertEqual(list(results.pictures), ["neighbours"])

    def test_seeds_and_rates(self):
        results = protocols.evaluate(
            {"a": tiny_encoder()},
            ["ridge", "linear"],
            task(probe_epochs=2, learning_rates=(1e-6, 3.0)),
            seeds=3,
        )
        found = results.scores["a"]
        self.assertLen(found["ridge probe"], 1)
        self.assertLen(found["linear probe"], 3)
        self.assertGreater(len(set(found["linear probe"])), 1)
        self.assertEqual(found["linear probe, rate"], ["3"] * 3)
        a = results.scores["a"]["linear probe"]
        row = results.rows()[0]
        self.assertAlmostEqual(row["linear probe"], np.mean(a), 1)
        self.assertAlmostEqual(row["linear probe, spread"], np.std(a), 1)
        self.assertNotIn("ridge probe, spread", row)
        self.assertEqual(row["linear probe, rate"], "3")
        cell = f"{np.mean(a):.1f} ± {np.std(a):.1f}"
        self.assertIn(cell, results.table())

    def test_fine_tune_and_transfer(self):
        folder = self.create_tempdir().full_path
        work = protocols.EvaluationConfig(
            digits("train").fraction(0.1, os.path.join(folder, "some")),
            digits("test"),
            label_fractions=(0.2,),
            fine_tune_epochs=1,
            probe_epochs=1,
            metric="mean per class",
        )
        sizes = []

        def fine_tune(model, train, *data, **options):
            sizes.append(sum(len(labels) for _, labels in train))
            return evaluation.fine_tune(model, train, *data, **options)

        with mock.patch.object(protocols, "fine_tune", fine_tune):
            results = protocols.evaluate(
                {"a": tiny_encoder()}, ["fine_tune", "transfer"], work
            )
        self.assertEqual(sizes, [30, 130])
        self.assertEqual(
            results.columns,
            [
                "fine-tuned, 20 % of labels",
                "transfer, linear (mean per class)",
                "transfer, rate",
                "transfer, fine-tuned (mean per class)",
            ],
        )

    def run_fine_tune(self, config, seed):
        folder = self.create_tempdir().full_path
        resources = protocols.Resources(
            evaluation.FeatureCache(), protocols.Subsets(config, folder)
        )
        run = protocols.PROTOCOLS["fine_tune"].run
        return run(None, config, resources, seed)

    def test_settings_of_fine_tuning(self):
        work = task(label_fractions=(0.01, 0.1), fine_tune_rate=0.3)
        with mock.patch.object(protocols, "fine_tune") as tuned:
            tuned.return_value.accuracy = 0.5
            self.run_fine_tune(work, 4)
        # SimCLR's epochs, by the share of labels.
        options = [call.kwargs for call in tuned.mock_calls]
        self.assertEqual([x["epochs"] for x in options], [60, 30])
        for given in options:
            self.assertEqual(given["num_classes"], 10)
            self.assertEqual(given["learning_rate"], 0.3)
            self.assertEqual(given["seed"], 4)

    def test_epochs_are_of_the_share_asked_for(self):
        # 2 of 150 images are more than the 1 % that is meant.
        root = class_folders(
            os.path.join(self.create_tempdir().full_path, "train"),
            {"bat": 150, "cat": 150},
        )
        images = LabelledImages("folder", "train", os.path.dirname(root), 12)
        work = protocols.EvaluationConfig(
            images, digits("test"), label_fractions=(0.01,)
        )
        with mock.patch.object(protocols, "fine_tune") as tuned:
            tuned.return_value.accuracy = 0.5
            self.run_fine_tune(work, 0)
        (call,) = tuned.mock_calls
        self.assertEqual(call.kwargs["epochs"], 60)
        self.assertEqual(sum(len(y) for _, y in call.args[1].take(1)), 4)

    def test_rates_of_the_paper(self):
        self.assertEqual(
            [
                protocols.paper_rate(tiny_encoder(name=name))
                for name in (
                    *("resnet34", "resnet50w4", "mobilenet_v3_large"),
                    *("efficientnet_b0", "efficientnet_b1", None),
                )
            ],
            [30, 30, 3, 3, 3, 30],
        )
        self.assertEqual(
            protocols.paper_rate(tiny_encoder(name="efficientnet_b0").backbone),
            3,
        )

    def test_rate_of_the_probe_on_views_is_chosen_on_images_held_out(self):
        told, probed = [], []
        work = task(
            learning_rates=(0.1, 2.0, 9.0), probe_epochs=2, log=told.append
        )

        def probe(*data, learning_rate, steps_per_epoch, **options):
            self.assertEqual(options["epochs"], 2)
            sizes = [sum(len(y) for _, y in part) for part in data]
            probed.append((learning_rate, *sizes, steps_per_epoch))
            if learning_rate == 9:
                raise evaluation.DivergenceError
            return mock.Mock(accuracy=learning_rate / 10)

        with mock.patch.object(protocols, "linear_probe", probe):
            results = protocols.evaluate(
                {"a": tiny_encoder()}, ["linear_views"], work
            )
        # Two epochs of 1,297 images, of which 130 are held out; then of all.
        self.assertEqual(
            probed,
            [(rate, 2334, 130, 5) for rate in (0.1, 2, 9)]
            + [(2, 2594, 500, 6)],
        )
        self.assertEqual(
            results.rows(),
            [
                {
                    "encoder": "a",
                    "linear probe on views": 20.0,
                    "linear probe on views, rate": "2",
                }
            ],
        )
        self.assertIn("0.1: 1.0, 2: 20.0, 9: diverged", told[-1])

    def test_scores_by_the_metric(self):
        result = evaluation.RidgeResult(0.5, 0.25, None, None, 1.0)
        self.assertEqual(task().score(result), 50)
        self.assertEqual(task(metric="mean per class").score(result), 25)

    def test_untrained_networks(self):
        first, same, other = (
            protocols.load_encoder("untrained:resnet18:cifar", seed)
            for seed in (0, 0, 1)
        )
        self.assertEqual(first.backbone.layers[1].strides, (1, 1))
        fingerprint = seed_tf.training.fingerprint
        self.assertEqual(fingerprint(first), fingerprint(same))
        self.assertNotEqual(fingerprint(first), fingerprint(other))
        with self.assertRaisesRegex(ValueError, "resnet17"):
            protocols.load_encoder("untrained:resnet17")
        with self.assertRaisesRegex(ValueError, "no such file"):
            protocols.load_encoder("nothing.keras")

    def test_retrieval_of_a_set_in_itself(self):
        images = digits("test")
        encoder = tiny_encoder()
        results = protocols.evaluate(
            {"a": encoder},
            ["retrieval"],
            protocols.EvaluationConfig(images, images, ks=(1,)),
        )
        data = evaluation.embed(encoder, images.load())
        expected = evaluation.retrieval(data, ks=(1,)).recall[1]
        row = results.rows()[0]
        self.assertAlmostEqual(row["recall@1, features"], 100 * expected, 1)
        self.assertLess(expected, 1)

    @parameterized.named_parameters(
        ("protocol", {}, ["knm"], 1, "knn, linear.*Received: knm"),
        ("seeds", {}, ["knn"], 0, "seeds=0"),
        ("metric", {"metric": "f1"}, ["knn"], 1, "metric='f1'"),
        ("k", {"ks": (5, 1298)}, ["knn"], 1, "k=1298, 1297 rows"),
        ("share", {"label_fractions": (1e-3,)}, ["fine_tune"], 1, "class 0"),
        ("none", {"label_fractions": (0.0,)}, ["fine_tune"], 1, "fraction=0"),
    )
    def test_errors_before_anything_runs(self, options, names, seeds, message):
        def refuse(text):
            raise AssertionError(text)

        with self.assertRaisesRegex(ValueError, message):
            protocols.evaluate(
                {"a": tiny_encoder()},
                names,
                task(log=refuse, **options),
                seeds=seeds,
            )

    def test_errors_of_data(self):
        root = self.create_tempdir().full_path
        class_folders(os.path.join(root, "train"), {"bat": 3, "cat": 3})
        class_folders(os.path.join(root, "test"), {"bat": 2, "owl": 2})
        train, test = (
            LabelledImages("folder", split, root, 16)
            for split in ("train", "test")
        )
        train_again = LabelledImages("folder", "train", root, 16, 8)
        encoders = {"a": tiny_encoder()}
        with self.assertRaisesRegex(
            ValueError, "2 classes in train, 2 in test; not in train: owl"
        ):
            protocols.evaluate(
                encoders, ["knn"], protocols.EvaluationConfig(train, test)
            )
        with self.assertRaisesRegex(
            ValueError, "tenth of every class.*Class bat has 3.*Received: 1, 3"
        ):
            protocols.evaluate(
                encoders,
                ["linear"],
                protocols.EvaluationConfig(
                    train, train_again, learning_rates=(1, 3)
                ),
            )
        with self.assertRaisesRegex(ValueError, "split 'train' for both"):
            protocols.evaluate(
                encoders, ["knn"], protocols.EvaluationConfig(train, train)
            )
        unlabelled = class_folders(
            self.create_tempdir().full_path, {"train": 3, "test": 3}
        )
        bad = LabelledImages("folder", "test", unlabelled, 16)
        with self.assertRaisesRegex(ValueError, "in no class folder"):
            protocols.evaluate(
                encoders, ["knn"], protocols.EvaluationConfig(train, bad)
            )

    def test_a_class_without_test_images(self):
        root = self.create_tempdir().full_path
        class_folders(os.path.join(root, "train"), {"bat": 4, "owl": 4})
        class_folders(os.path.join(root, "test"), {"bat": 2})
        train, test = (
            LabelledImages("folder", split, root, 16)
            for split in ("train", "test")
        )
        with self.assertLogs(level="WARNING") as logs:
            results = protocols.evaluate(
                {"a": tiny_encoder()},
                ["knn"],
                protocols.EvaluationConfig(train, test, ks=(1,)),
            )
        self.assertIn("1 of 2 classes have no test", logs.output[0])
        self.assertIn("owl", logs.output[0])
        self.assertIn("1-NN, features", results.columns)

    @parameterized.parameters("knn", "linear", "fine_tune", "linear_views")
    def test_unknown_classes_of_any_source_before_anything_runs(self, protocol):
        root = self.create_tempdir().full_path
        for split, classes in (("train", 2), ("test", 3)):
            class_folders(os.path.join(root, "images"), {split: 6})
            with open(os.path.join(root, f"{split}.tsv"), "wb") as rows:
                for i in range(6):
                    path = os.path.join(root, "images", split, f"{i}.png")
                    with open(path, "rb") as file:
                        data = base64.b64encode(file.read())
                    rows.write(b"k\t%d\t%s\n" % (i % classes, data))
        train, test = (
            LabelledImages("tsv", split, root, 16)
            for split in ("train", "test")
        )

        def refuse(text):
            raise AssertionError(text)

        with self.assertRaisesRegex(ValueError, "not in train: 2"):
            protocols.evaluate(
                {"a": tiny_encoder()},
                [protocol],
                protocols.EvaluationConfig(train, test, ks=(1,), log=refuse),
            )

    @parameterized.parameters(*CLASSES.items())
    def test_tfds_has_what_conventions_name(self, name, classes):
        builder = tfds.builder(
            name, data_dir=self.create_tempdir().full_path, try_gcs=False
        )
        label = builder.info.features["label"]
        self.assertEqual(label.num_classes, classes)
        # Before a data set is prepared only its builder's code knows splits.
        code = inspect.getsource(type(builder)._split_generators)
        splits = re.findall(
            r"Split\.(\w+)|name=[\"'](\w+)|[\"'](\w+)[\"']: self\._gen", code
        )
        splits = {"".join(each).lower() for each in splits}
        usual = transfer.convention(name)
        named = {*usual.train.split("+"), usual.test}
        self.assertContainsSubset(named, splits)
        if "validation" in splits and not name.startswith("sun397"):
            self.assertIn("validation", named)

    def test_conventions(self):
        usual = transfer.convention
        self.assertEqual(usual("oxford_flowers102").metric, "mean per class")
        self.assertEqual(usual("food101:2.0.0").test, "validation")
        self.assertEqual(usual("sun397/tfds:4.0.0").metric, "top-1")
        self.assertEqual(usual("folder"), ("top-1", "train", "test"))
        self.assertContainsSubset(transfer.CONVENTIONS, CLASSES)  # all tested


class ResultsTest(absltest.TestCase):
    results = protocols.Results(
        {
            "a": {"knn": [50.0], "probe": [60.0, 70.0], "rate": ["3", "10"]},
            "b": {"knn": [40.5]},
        }
    )

    def test_files_say_the_same(self):
        folder = os.path.join(self.create_tempdir().full_path, "new")
        self.results.write(folder)
        with open(os.path.join(folder, "results.json")) as file:
            rows = json.load(file)
        self.assertEqual(
            rows,
            [
                {
                    "encoder": "a",
                    "knn": 50.0,
                    "probe": 65.0,
                    "probe, spread": 5.0,
                    "rate": "3, 10",
                },
                {"encoder": "b", "knn": 40.5},
            ],
        )
        with open(os.path.join(folder, "results.csv"), newline="") as file:
            sheet = list(csv.DictReader(file))
        self.assertEqual(list(sheet[0]), list(rows[0]))
        self.assertEqual(sheet[0]["probe, spread"], "5.0")
        self.assertEqual(sheet[1]["probe"], "")
        with open(os.path.join(folder, "results.md")) as file:
            lines = file.read().splitlines()
        self.assertIn("65.0 ± 5.0", lines[2])
        self.assertLen(lines, 4)
        with Image.open(os.path.join(folder, "results.png")) as image:
            self.assertGreater(np.asarray(image)[..., :3].std(), 5)
        self.assertLen(os.listdir(folder), 5)
        again = protocols.Results.read(folder, {})
        self.assertEqual(again.scores, self.results.scores)

    def test_beside_earlier_ones(self):
        earlier = protocols.Results(
            {
                "a": {"knn": [1.0], "probe": [2.0, 4.0]},
                "b": {"knn": [3.0]},
                "c": {"knn": [4.0]},
            },
            fingerprints={"a": "1", "b": "2", "c": "3"},
            data={"size": 3},
        )
        later = protocols.Results(
            {"a": {"knn": [5.0]}, "b": {"ridge": [6.0]}, "d": {"knn": [7.0]}},
            {"neighbours": None},
            {"a": "1", "b": "other weights", "d": "4"},
            {"size": 3},
        )
        with self.assertLogs(level="WARNING") as logs:
            both = later.beside(earlier)
        self.assertLen(logs.output, 1)
        self.assertIn("The weights of b have changed", logs.output[0])
        self.assertIn("left out: knn", logs.output[0])
        self.assertEqual(
            both.scores,
            {
                "a": {"knn": [5.0], "probe": [2.0, 4.0]},
                "b": {"ridge": [6.0]},
                "c": {"knn": [4.0]},
                "d": {"knn": [7.0]},
            },
        )
        self.assertEqual(
            both.fingerprints,
            {"a": "1", "b": "other weights", "c": "3", "d": "4"},
        )
        self.assertEqual(both.data, {"size": 3})
        self.assertEqual(list(both.pictures), ["neighbours"])

    def test_files_that_are_not_to_be_replaced(self):
        folder = self.create_tempdir().full_path
        read = protocols.Results.read
        self.assertEqual(read(folder, {}).scores, {})
        path = os.path.join(folder, "results.json")
        with open(path, "w") as file:
            file.write("[]")
        with self.assertRaisesRegex(ValueError, "without a scores.json"):
            read(folder, {})
        results = protocols.Results(
            self.results.scores, data={"size": 3, "split": "a"}
        )
        results.write(folder)
        with self.assertRaisesRegex(
            ValueError, r"other data. size: 3 there, 4 here. Choose"
        ):
            read(folder, {"size": 4, "split": "a"})
        for content in ("{", "[]", '{"scores": {}}'):
            with open(os.path.join(folder, "scores.json"), "w") as file:
                file.write(content)
            with self.assertRaisesRegex(ValueError, "scores.json.*damaged"):
                read(folder, {})

    def test_figure(self):
        axes = self.results.figure().axes[0]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        self.assertEqual(labels, ["knn", "probe"])

    def test_many_columns_become_rows(self):
        many = protocols.Results({"a": {f"c{i}": [1.0 * i] for i in range(7)}})
        lines = many.table().splitlines()
        self.assertLen(lines, 9)
        self.assertEqual(lines[-1].split(), ["c6", "6.0"])


if __name__ == "__main__":
    absltest.main()
