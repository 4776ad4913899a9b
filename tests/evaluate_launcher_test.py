"""Protocols on several encoders, one table, and the launcher of them."""

import csv
import inspect
import json
import os
import re
from unittest import mock

import keras
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from absl.testing import absltest, flagsaver, parameterized
from PIL import Image
from run_helpers import import_launcher

import seed_tf
from seed_tf import evaluation
from seed_tf.evaluation import protocols, transfer
from seed_tf.evaluation.labelled_images import LabelledImages

FLAGS = flags.FLAGS
CLASSES = {  # of data sets of TFDS
    **{"caltech101": 102, "cars196": 196, "cifar10": 10, "cifar100": 100},
    **{"dtd": 47, "food101": 101, "imagenet2012": 1000},
    **{"oxford_flowers102": 102, "oxford_iiit_pet": 37},
    **{"sun397": 397, "sun397/standard-part1-120k": 397},
}


def setUpModule():
    global launcher
    launcher = import_launcher("experiments.evaluate")


def tiny_encoder(seed=0):
    keras.utils.set_random_seed(seed)
    return seed_tf.Encoder(
        keras.Sequential(
            [
                keras.Input((None, None, 3)),
                keras.layers.Conv2D(6, 3, 2),
                keras.layers.ReLU(),
            ]
        ),
        embedding_dim=5,
    )


def digits(split):
    return LabelledImages("digits", split, image_size=12)


def task(**options):
    return protocols.Task(digits("train"), digits("test"), **options)


def class_folders(root, sizes):
    rng = np.random.default_rng(0)
    for name, size in sizes.items():
        folder = os.path.join(root, name)
        os.makedirs(folder)
        for i in range(size):
            image = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(image).save(os.path.join(folder, f"{i}.png"))
    return root


class ProtocolsTest(parameterized.TestCase):
    def test_equals_the_library(self):
        encoder, lines = tiny_encoder(), []
        results = protocols.evaluate(
            {"a": encoder},
            ["knn", "ridge", "retrieval", "linear"],
            task(ks=(1, 5), probe_epochs=5, tell=lines.append),
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
        self.assertEqual(found, {"encoder": "a"})
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
        work = protocols.Task(
            digits("train").fraction(0.1, os.path.join(folder, "some")),
            digits("test"),
            label_fractions=(0.2,),
            fine_tune_epochs=1,
            probe_epochs=1,
            metric="mean per class",
        )
        with mock.patch.object(
            protocols, "fine_tune", wraps=evaluation.fine_tune
        ) as tuned:
            results = protocols.evaluate(
                {"a": tiny_encoder()}, ["fine_tune", "transfer"], work
            )
        few, all_of_them = (
            sum(len(y) for _, y in call.args[1]) for call in tuned.mock_calls
        )
        self.assertEqual((few, all_of_them), (30, 130))
        self.assertEqual(
            results.columns,
            [
                "fine-tuned, 20 % of labels",
                "transfer, linear (mean per class)",
                "transfer, fine-tuned (mean per class)",
            ],
        )

    def test_settings_of_fine_tuning(self):
        work = task(label_fractions=(0.01, 0.1), fine_tune_rate=0.3)
        with mock.patch.object(protocols, "fine_tune") as tuned:
            for images in work.subsets(4).values():
                work.fine_tune(None, images, 4)
        # SimCLR's epochs, by the share of labels.
        options = [call.kwargs for call in tuned.mock_calls]
        self.assertEqual([x["epochs"] for x in options], [60, 30])
        for given in options:
            self.assertEqual(given["num_classes"], 10)
            self.assertEqual(given["learning_rate"], 0.3)
            self.assertEqual(given["seed"], 4)

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
            protocols.Task(images, images, ks=(1,)),
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
                task(tell=refuse, **options),
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
        encoders = {"a": tiny_encoder()}
        with self.assertRaisesRegex(
            ValueError, "2 classes in train, 2 in test; not in train: owl"
        ):
            protocols.evaluate(encoders, ["knn"], protocols.Task(train, test))
        with self.assertRaisesRegex(ValueError, "split 'train' for both"):
            protocols.evaluate(encoders, ["knn"], protocols.Task(train, train))
        unlabelled = class_folders(
            self.create_tempdir().full_path, {"train": 3, "test": 3}
        )
        bad = LabelledImages("folder", "test", unlabelled, 16)
        with self.assertRaisesRegex(ValueError, "in no class folder"):
            protocols.evaluate(encoders, ["knn"], protocols.Task(train, bad))

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
        self.assertLen(os.listdir(folder), 4)

    def test_figure(self):
        axes = self.results.figure().axes[0]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        self.assertEqual(labels, ["knn", "probe"])

    def test_many_columns_become_rows(self):
        many = protocols.Results({"a": {f"c{i}": [1.0 * i] for i in range(7)}})
        lines = many.table().splitlines()
        self.assertLen(lines, 9)
        self.assertEqual(lines[-1].split(), ["c6", "6.0"])


class LauncherTest(absltest.TestCase):
    def test_flags_become_a_task(self):
        folder = self.create_tempdir().full_path
        with flagsaver.flagsaver(
            dataset="food101",
            k=["1", "20"],
            learning_rate=["1", "0.3"],
            label_fraction=["0.01", "0.1"],
            output=folder,
        ):
            made = launcher.task()
        self.assertEqual(made.ks, (1, 20))
        self.assertEqual(made.learning_rates, (1.0, 0.3))
        self.assertEqual(made.label_fractions, (0.01, 0.1))
        self.assertEqual(made.cache_dir, os.path.join(folder, "features"))
        self.assertEqual(made.test.split, "validation")
        self.assertEqual(made.metric, "top-1")
        with (
            flagsaver.flagsaver(k=["ten"]),
            self.assertRaisesRegex(ValueError, "--k must be numbers.*ten"),
        ):
            launcher.task()

    def test_three_encoders_in_one_call_and_a_second_from_the_cache(self):
        folder = self.create_tempdir().full_path
        names = []
        for seed in range(3):
            names.append(os.path.join(folder, f"{seed}.keras"))
            tiny_encoder(seed).save(names[-1])
        output = os.path.join(folder, "results")
        arguments = {
            "encoder": names,
            "dataset": "digits",
            "image_size": 12,
            "batch_size": 128,
            "output": output,
        }
        printed = []
        for protocol in (["knn"], ["ridge"]):
            with (
                flagsaver.flagsaver(**arguments, protocol=protocol),
                mock.patch(
                    "builtins.print", lambda *x, **_: printed.append(x[0])
                ),
            ):
                launcher.main(None)
            with open(os.path.join(output, "results.json")) as file:
                rows = json.load(file)
            self.assertEqual([row["encoder"] for row in rows], names)
        embedded = [x for x in printed if x.startswith("Embedding")]
        self.assertLen(embedded, 6)
        self.assertIn("ridge probe", rows[0])
        self.assertIn("10-NN, embeddings", "".join(printed))

    def test_detection_is_another_launcher(self):
        with flagsaver.flagsaver():
            FLAGS(
                [
                    *("evaluate", "--encoder=a b", "--encoder=c"),
                    *("--protocol=knn,detection", "--dataset=voc/2007"),
                    *("--train_split=train+validation", "--output=out"),
                ]
            )
            with self.assertRaises(ValueError) as raised:
                launcher.main(None)
        detect = str(raised.exception).splitlines()[-1].strip()
        self.assertEqual(
            detect,
            "python -m experiments.detect '--encoder=a b' --encoder=c "
            "--dataset=voc/2007 --train_split=train+validation --output=out",
        )


if __name__ == "__main__":
    absltest.main()
