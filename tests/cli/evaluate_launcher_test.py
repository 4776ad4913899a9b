"""The command `seed-tf evaluate`."""

import json
import os
from unittest import mock

import numpy as np
from absl.testing import absltest
from helpers.labelled import class_folders, digits, tiny_encoder
from helpers.runs import command

from seed_tf import evaluation
from seed_tf.cli import evaluate
from seed_tf.evaluation import protocols
from seed_tf.evaluation.fine_tune import training_view
from seed_tf.evaluation.labelled_images import LabelledImages
from seed_tf.training.finished_run import read_results


class LauncherTest(absltest.TestCase):
    def evaluated(self, *words):
        """The arguments that `protocols.evaluate` receives."""
        with (
            mock.patch.object(protocols, "evaluate") as called,
            mock.patch.object(protocols, "load_encoder", str),
        ):
            called.return_value = self.enter_context(
                mock.patch.object(protocols, "Results")
            )
            command("evaluate", *words)
        return called.call_args

    def test_flags_become_a_configuration(self):
        folder = self.create_tempdir().full_path
        call = self.evaluated(
            *("--encoder=a", "--dataset=food101", "--k=1,20"),
            *("--learning_rate=1,0.3", "--label_fraction=0.01,0.1"),
            f"--output={folder}",
        )
        made = call.args[2]
        self.assertEqual(made.ks, (1, 20))
        self.assertFalse(made.train.download)
        self.assertEqual(made.learning_rates, (1.0, 0.3))
        self.assertEqual(made.label_fractions, (0.01, 0.1))
        self.assertEqual(made.cache_dir, os.path.join(folder, "features"))
        self.assertEqual(made.test.split, "validation")
        self.assertEqual(made.metric, "top-1")
        call = self.evaluated(
            *("--encoder=a", "--encoder=b,c", "--dataset=oxford_iiit_pet"),
            *("--metric=top-1", "--train_split=train[:50%]"),
            *("--test_split=test[:5%]", "--probe_epochs=7"),
            *("--fine_tune_learning_rate=0.2", "--cache_dir=cache"),
            *("--fine_tune_epochs=8", "--fine_tune_batch_size=9"),
            *("--label_list=list.txt", "--download", "--learning_rate=3"),
            *("--image_size=96", "--batch_size=5", "--seeds=4"),
            "--protocol=knn,fine_tune",
        )
        encoders, names, made = call.args
        self.assertEqual(encoders, {"a": "a", "b,c": "b,c"})
        self.assertEqual(names, ("knn", "fine_tune"))
        self.assertEqual(call.kwargs, {"seeds": 4})
        self.assertEqual(made.metric, "top-1")  # not the usual one
        self.assertEqual(made.learning_rates, (3.0,))
        self.assertEqual(made.probe_epochs, 7)
        self.assertEqual(made.fine_tune_rate, 0.2)
        self.assertEqual(made.fine_tune_epochs, 8)
        self.assertEqual(made.fine_tune_batch_size, 9)
        self.assertEqual(made.label_list, "list.txt")
        self.assertEqual(made.cache_dir, "cache")
        for images, split in (
            (made.train, "train[:50%]"),
            (made.test, "test[:5%]"),
        ):
            self.assertEqual(
                images,
                LabelledImages(
                    "oxford_iiit_pet", split, None, 96, 5, download=True
                ),
            )
        printed = command("evaluate", "--encoder=a", "--k=ten", code=1)
        self.assertRegex(printed, "Error: flag --k=ten: .*'ten'")

    def test_images_have_the_size_that_encoders_were_trained_at(self):
        small, large, unknown = (tiny_encoder(seed) for seed in range(3))
        small.image_size, large.image_size = 20, 36
        for encoders, expected, reason in (
            ((small, unknown), 20, "the encoders were trained at"),
            ((small, large), 36, r"largest .*\(a 20, b 36\)"),
            ((unknown,), 224, "no encoder remembers"),
        ):
            named = dict(zip("ab", encoders, strict=False))
            size, found = protocols.common_image_size(named)
            self.assertEqual(size, expected)
            self.assertRegex(found, reason)
        path = os.path.join(self.create_tempdir().full_path, "small.keras")
        small.save(path)
        printed = command(
            *("evaluate", f"--encoder={path}", "--dataset=digits"),
            "--protocol=ridge",
        )
        self.assertIn("Images of 20 pixels", printed)

    def test_protocols_of_the_library(self):
        self.assertEqual(
            evaluate.PROTOCOLS, (*protocols.PROTOCOLS, "detection")
        )

    def test_three_encoders_in_one_call_and_a_second_from_the_cache(self):
        folder = self.create_tempdir().full_path
        names = []
        for seed in range(3):
            names.append(os.path.join(folder, f"{seed}.keras"))
            tiny_encoder(seed).save(names[-1])
        output = os.path.join(folder, "results")
        arguments = (
            *("--dataset=digits", "--image_size=12", "--batch_size=128"),
            f"--output={output}",
        )
        encoders = [f"--encoder={name}" for name in names]
        printed = []
        for protocol in ("knn", "ridge"):
            printed.append(
                command(
                    *("evaluate", *encoders, *arguments),
                    f"--protocol={protocol}",
                )
            )
            rows = self.rows(output)
            self.assertEqual([row["encoder"] for row in rows], names)
        self.assertEqual("".join(printed).count("Embedding"), 6)
        # One table of both calls, printed and written.
        for row in rows:
            self.assertContainsSubset(
                ["10-NN, embeddings", "ridge probe"], list(row)
            )
        with open(os.path.join(output, "results.md")) as file:
            written = file.read()
        for table in (printed[-1], written):
            self.assertIn("10-NN, embeddings", table)
            self.assertIn("ridge probe", table)

        # A third encoder's weights change; the first two stay as they are.
        tiny_encoder(7).save(names[2])
        command(
            *("evaluate", encoders[2], *arguments, "--protocol=ridge"),
        )
        changed = self.rows(output)
        self.assertEqual(changed[:2], rows[:2])
        self.assertEqual(set(changed[2]), {"encoder", "ridge probe"})

        # Other data do not belong into the table; nothing runs.
        with mock.patch.object(protocols, "evaluate") as evaluated:
            refused = command(
                *("evaluate", *encoders, *arguments, "--image_size=16"), code=1
            )
        self.assertRegex(refused, "image_size: 12 there, 16 here.*--output")
        evaluated.assert_not_called()
        self.assertEqual(self.rows(output), changed)
        path = os.path.join(output, "results.json")
        self.assertEqual(read_results(path), changed)  # as report reads it

    def rows(self, output):
        with open(os.path.join(output, "results.json")) as file:
            return json.load(file)

    def test_the_papers_probe_by_hand(self):
        folder, epochs = self.create_tempdir().full_path, 5
        names = [os.path.join(folder, f"{x}.keras") for x in ("one", "other")]
        encoders = [tiny_encoder(), tiny_encoder(name="efficientnet_b0")]
        for name, encoder in zip(names, encoders, strict=True):
            encoder.save(name)
        command(
            *("evaluate", *(f"--encoder={name}" for name in names)),
            *("--dataset=digits", "--image_size=12", f"--output={folder}"),
            *("--protocol=linear_views", f"--probe_epochs={epochs}"),
        )
        found = self.rows(folder)
        test, labels = evaluation.embed(encoders[0], digits("test").load())
        batches, steps = digits("train").training(
            training_view(12),
            epochs=epochs,
            batch_size=256,
            drop_remainder=False,
        )
        self.assertEqual(steps, 6)  # of 1,297 images, the last of 17
        batches = [(encoders[0].features(x).numpy(), y) for x, y in batches]
        start = evaluation.linear_probe(
            batches[0], (test, labels), learning_rate=0.0, epochs=1
        )
        for row, rate in zip(found, (30, 3), strict=True):
            self.assertEqual(row["linear probe on views, rate"], str(rate))
            kernel, bias = start.kernel.astype(np.float32), np.zeros(10)
            velocity = [0, 0]
            for step, (x, y) in enumerate(batches):
                decay = (1, 1, 1, 0.1, 0.01)[step // steps]
                logits = x @ kernel + bias
                odds = np.exp(logits - logits.max(1, keepdims=True))
                error = odds / odds.sum(1, keepdims=True) - np.eye(10)[y]
                gradients = x.T @ error / len(y), error.mean(0)
                velocity = [
                    0.9 * v + g
                    for v, g in zip(velocity, gradients, strict=True)
                ]
                kernel = kernel - rate * decay * velocity[0]
                bias = bias - rate * decay * velocity[1]
            right = (test @ kernel + bias).argmax(1) == labels
            self.assertAlmostEqual(
                row["linear probe on views"], 100 * right.mean(), delta=0.5
            )
            self.assertGreater(right.mean(), 0.2)

    def test_label_list(self):
        root = self.create_tempdir().full_path
        sizes = {"bat": 5, "owl": 4}
        for split in ("train", "test"):
            class_folders(os.path.join(root, split), sizes)
            for name in sizes:  # names that tell the class
                folder = os.path.join(root, split, name)
                for file in os.listdir(folder):
                    os.rename(
                        os.path.join(folder, file),
                        os.path.join(folder, f"{name}_{file}"),
                    )
        listed = os.path.join(root, "few.txt")
        with open(listed, "w") as file:
            file.write("bat_1.png\nbat_3.png\nowl_0.png\n")
        encoder = os.path.join(root, "tiny.keras")
        tiny_encoder().save(encoder)
        seen = []

        def fine_tune(model, train, test, **options):
            seen.extend(sorted(int(y) for _, labels in train for y in labels))
            return mock.Mock(accuracy=0.5)

        with mock.patch.object(protocols, "fine_tune", fine_tune):
            command(
                *("evaluate", f"--encoder={encoder}", f"--data_dir={root}"),
                *("--image_size=12", "--protocol=fine_tune"),
                *("--fine_tune_epochs=1", f"--label_list={listed}"),
                f"--output={root}/results",
            )
        self.assertEqual(seen, [0, 0, 1])
        (row,) = self.rows(os.path.join(root, "results"))
        self.assertEqual(row, {"encoder": encoder, "fine-tuned, few.txt": 50.0})

    def test_detection_is_another_command(self):
        printed = command(
            *("evaluate", "--encoder=a b", "--encoder=c"),
            *("--protocol=knn,detection", "--dataset=voc/2007"),
            *("--train_split=train+validation", "--output=out"),
            code=1,
        )
        self.assertEqual(
            printed.splitlines()[-1].strip(),
            "seed-tf detect '--encoder=a b' --encoder=c "
            "--dataset=voc/2007 --train_split=train+validation --output=out",
        )


if __name__ == "__main__":
    absltest.main()
