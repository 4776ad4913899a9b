"""Runs: stopped, killed, damaged and full disks, they go on or say why not."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.light_views import crop_and_flip

import seed_tf
from seed_tf.io import files
from seed_tf.io.files import read_json_lines
from seed_tf.io.fingerprints import fingerprint
from seed_tf.io.units import readable_bytes
from seed_tf.training import (
    Checkpoints,
    RunFolder,
    cost,
)

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS, EPOCHS, BATCH = 5, 4, 8


def tower(width):
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Rescaling(1 / 255.0),
            keras.layers.Conv2D(width, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(4),
        ]
    )


def model(rate=0.1, width=4, seed=0):
    keras.utils.set_random_seed(seed)
    model = seed_tf.SEED(
        student=tower(width),
        teacher=tower(6),
        views=crop_and_flip(8),
        queue_size=50,
        teacher_temperature=0.1,
    )
    model.compile(
        seed_tf.training.SGD(
            seed_tf.training.warmup_cosine(
                batch_size=256,
                steps_per_epoch=STEPS,
                epochs=EPOCHS,
                warmup_epochs=1,
                rate_per_256=rate,
            )
        )
    )
    return model


def load(first_step):
    """Batches that are another in every step."""

    def batch(step):
        seeds = tf.stack([step, 0])
        shape = [BATCH, 12, 12, 3]
        values = tf.random.stateless_uniform(shape, seeds, 0, 256, tf.int32)
        return tf.cast(values, tf.uint8)

    return tf.data.Dataset.range(first_step, STEPS * EPOCHS).map(batch)


def train(folder, model, load=load, config=None, **kwargs):
    folder = RunFolder(folder, config or {})
    folder.claim()
    try:
        return seed_tf.training.train(
            model,
            load,
            encoder=model.student,
            epochs=EPOCHS,
            steps_per_epoch=STEPS,
            batch_size=BATCH,
            folder=folder,
            **kwargs,
        )
    finally:
        folder.close()


def weights(model):
    values = model.student.get_weights() + model.queue.get_weights()
    return values + [v.numpy() for v in model.optimizer.variables]


def at_step(number, action):
    """`load` with an action just before the batch of a step is read."""

    def acting(first_step):
        def act(step, batch):
            tf.py_function(
                lambda s: action() if s == number else None, [step], []
            )
            return batch

        steps = tf.data.Dataset.range(first_step, STEPS * EPOCHS)
        dataset = tf.data.Dataset.zip(steps, load(first_step)).map(act)
        options = tf.data.Options()
        options.autotune.enabled = False
        return dataset.with_options(options)

    return acting


class GoesOnTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path

    def assert_equals_uninterrupted(self, resumed, folder):
        whole, alone = model(), self.create_tempdir().full_path
        train(alone, whole)
        self.assertEqual(resumed.step.numpy(), STEPS * EPOCHS)
        for a, b in zip(weights(whole), weights(resumed), strict=True):
            np.testing.assert_array_equal(a, b)
        lines = [
            read_json_lines(os.path.join(path, "metrics.jsonl"))
            for path in (folder, alone)
        ]
        steps = [[line["step"] for line in each] for each in lines]
        self.assertEqual(*steps)
        self.assertEqual(steps[0], [5, 10, 15, 20])

    @parameterized.parameters(
        (signal.SIGTERM, 2),
        (signal.SIGTERM, 4),  # at the end of an epoch
        (signal.SIGINT, 13),
        (signal.SIGINT, 19),  # at the end of the run
    )
    def test_told_to_stop_it_saves_and_goes_on_as_if_nothing_happened(
        self, number, step
    ):
        handler = signal.getsignal(number)
        first = model()
        with self.assertRaisesRegex(
            seed_tf.training.Stopped, r"Stopped after step \d+, which is saved"
        ) as caught:
            train(
                self.folder,
                first,
                at_step(step, lambda: os.kill(os.getpid(), number)),
            )
        self.assertEqual(caught.exception.signal, number)
        self.assertEqual(signal.getsignal(number), handler)
        saved = int(first.step.numpy())
        self.assertBetween(saved, 1, step + 1)
        with open(os.path.join(self.folder, "summary.json")) as f:
            self.assertStartsWith(json.load(f)["ended"], "Stopped after step")
        second = model()
        train(self.folder, second)
        self.assert_equals_uninterrupted(second, self.folder)

    def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(self):
        with self.assertRaises(seed_tf.training.Stopped):
            train(
                self.folder,
                model(),
                at_step(13, lambda: os.kill(os.getpid(), signal.SIGTERM)),
                checkpoint_minutes=0,
            )
        checkpoints = os.path.join(self.folder, "checkpoints")
        names = sorted(os.listdir(checkpoints))
        self.assertLen(names, 3)
        data = os.path.join(checkpoints, names[-1], "state.data-00000-of-00001")
        index = os.path.join(checkpoints, names[-2], "state.index")
        with open(data, "r+b") as f:
            f.seek(os.path.getsize(data) // 2)
            byte = f.read(1)
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte[0] ^ 1]))
        with open(index, "r+b") as f:
            f.truncate(20)
        resumed = model()
        with self.assertLogs(level="WARNING") as logs:
            train(self.folder, resumed)
        self.assertLen([x for x in logs.output if "is damaged" in x], 2)
        self.assertContainsSubset(
            [f"{name}.damaged" for name in names[-2:]], os.listdir(checkpoints)
        )
        self.assert_equals_uninterrupted(resumed, self.folder)

    def test_a_finished_run_is_left_as_it_is(self):
        first, second = model(), model()
        train(self.folder, first)
        result = train(self.folder, second)
        self.assertEqual(result["ended"], "finished")
        for a, b in zip(weights(first), weights(second), strict=True):
            np.testing.assert_array_equal(a, b)
        lines = read_json_lines(os.path.join(self.folder, "metrics.jsonl"))
        self.assertLen(lines, EPOCHS)

    @pytest.mark.slow
    def test_killed_at_any_moment(self):
        """Also while a checkpoint is written: one is, after every step."""
        script = os.path.join(self.folder, "script.py")
        output = os.path.join(self.folder, "run")
        with open(script, "w") as f:
            f.write(
                textwrap.dedent(f"""
                import sys
                sys.path[:0] = {[str(HERE), str(HERE.parent), str(ROOT)]}
                import run_test
                print("ready", flush=True)
                run_test.train({output!r}, run_test.model(),
                               checkpoint_minutes=0)
                """)
            )
        reached = []
        rng = np.random.default_rng(0)
        for kill in (True, True, True, False):
            process = subprocess.Popen(
                [sys.executable, script],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if kill:
                # Some way into the steps that this process makes.
                wanted = (reached[-1] if reached else 0) + rng.integers(1, 5)
                self.wait_for_checkpoint(output, wanted, process)
                time.sleep(rng.uniform(0, 0.05))
                process.kill()
            printed, _ = process.communicate()
            self.assertEqual(process.returncode != 0, kill, printed[-3000:])
            reached.append(self.newest(output))
        self.assertEqual(reached[-1], STEPS * EPOCHS)
        resumed = model()
        folder = os.path.join(output, "checkpoints")
        Checkpoints(folder, resumed).restore()
        self.assert_equals_uninterrupted(resumed, output)
        self.assertCountEqual(
            os.listdir(folder), [f"step-{n:09d}" for n in (18, 19, 20)]
        )

    def newest(self, output):
        folder = os.path.join(output, "checkpoints")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return max([int(n[5:]) for n in names if n[5:].isdigit()], default=0)

    def wait_for_checkpoint(self, output, step, process):
        deadline = time.monotonic() + 120
        while self.newest(output) < step:
            self.assertIsNone(process.poll())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.005)


class StopsTest(parameterized.TestCase):
    """What ends a run, and what is left of it then."""

    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path

    def steps(self):
        folder = os.path.join(self.folder, "checkpoints")
        return sorted(int(name[5:]) for name in os.listdir(folder))

    def test_disk_full(self):
        write, calls = tf.train.Checkpoint.write, []

        def full(checkpoint, path, *args, **kwargs):
            calls.append(path)
            write(checkpoint, path, *args, **kwargs)
            if len(calls) == 3:
                raise tf.errors.ResourceExhaustedError(
                    None, None, "No space left on device"
                )

        with (
            mock.patch.object(tf.train.Checkpoint, "write", full),
            self.assertRaisesRegex(
                OSError,
                "step 3 could not be written.*quota is full.*steps 1, 2 are "
                "intact",
            ),
        ):
            train(self.folder, model(), checkpoint_minutes=0)
        self.assertEqual(self.steps(), [1, 2])  # and nothing unfinished
        resumed = model()
        train(self.folder, resumed)
        self.assertEqual(resumed.step.numpy(), STEPS * EPOCHS)

    @parameterized.parameters(1e3, 150e6)
    def test_no_space_left_is_found_before_training(self, free):
        large = model(width=300_000)
        usage = shutil.disk_usage(self.folder)._replace(free=free)
        with (
            mock.patch.object(shutil, "disk_usage", return_value=usage),
            self.assertRaisesRegex(
                OSError, f"No space left.* has {free / 1e6:.0f} MB free"
            ),
        ):
            train(self.folder, large)
        self.assertNotIn("checkpoints", os.listdir(self.folder))

    def test_a_loss_that_is_not_finite(self):
        broken = model()

        def spoil():
            weight = broken.student.weights[0]
            weight.assign(np.full(weight.shape, np.nan, "float32"))

        with self.assertRaisesRegex(
            FloatingPointError, "became (nan|NaN) .*Lower the learning rate"
        ) as caught:
            train(self.folder, broken, at_step(8, spoil), checkpoint_minutes=0)
        with open(os.path.join(self.folder, "summary.json")) as f:
            self.assertStartsWith(json.load(f)["ended"], str(caught.exception))
        checked = model()
        step = Checkpoints(
            os.path.join(self.folder, "checkpoints"), checked
        ).restore()
        self.assertGreater(step, 0)
        for value in weights(checked):
            self.assertTrue(np.isfinite(value).all())

    def test_no_checkpoint_is_whole(self):
        train(self.folder, model())
        for path in pathlib.Path(self.folder).glob("checkpoints/*/*.index"):
            path.write_bytes(b"")
        with self.assertRaisesRegex(
            ValueError, "No checkpoint .* is whole: steps 20 .*`overwrite"
        ):
            train(self.folder, model())

    def test_checkpoint_of_another_model(self):
        train(self.folder, model())
        with self.assertRaisesRegex(ValueError, "is of another model"):
            train(self.folder, model(width=5))
        self.assertEqual(self.steps(), [20])

    def test_best_is_kept_and_patience_ends(self):
        values = iter([0.1, 0.9, 0.5, 0.6])
        trained, kept = model(), {}

        def measure():
            value = next(values)
            kept[value] = trained.student.get_weights()
            return value

        result = train(
            self.folder,
            trained,
            measures={"knn": (measure, 1)},
            monitor="knn",
            patience=2,
            checkpoint_minutes=0,
        )
        self.assertEqual(
            result["ended"],
            "stopped early: knn did not rise in 2 evaluations",
        )
        self.assertEqual(result["step"], 20)
        self.assertEqual(result["encoder_of_step"], 10)
        self.assertEqual(result["knn"], 0.9)
        counted = cost.of_step(
            trained, encoder=trained.student, batch_size=BATCH
        )
        self.assertEqual(result["flops_per_step"], sum(counted.flops.values()))
        self.assertEqual(self.steps(), [10, 18, 19, 20])
        encoder = seed_tf.checkpoints.load_encoder(self.folder)
        for a, b in zip(encoder.get_weights(), kept[0.9], strict=True):
            np.testing.assert_array_equal(a, b)
        # Its patience is lost for good.
        result = train(
            self.folder,
            model(),
            measures={"knn": (measure, 1)},
            monitor="knn",
            patience=2,
        )
        self.assertStartsWith(result["ended"], "stopped early")

    def test_early_stop_in_the_middle(self):
        result = train(
            self.folder,
            model(),
            measures={"knn": (iter([0.5, 0.4, 0.3, 0.2]).__next__, 1)},
            monitor="knn",
            patience=1,
        )
        self.assertEqual(result["step"], 10)
        lines = read_json_lines(os.path.join(self.folder, "metrics.jsonl"))
        self.assertEqual([line["knn"] for line in lines], [0.5, 0.4])


class RunFolderTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = self.create_tempdir().full_path

    def train(self):
        os.makedirs(os.path.join(self.path, "checkpoints", "step-000000001"))

    def test_a_failed_start_does_not_refuse_the_corrected_command(self):
        folder = RunFolder(self.path, {"launcher": "distill", "epochs": 2})
        folder.claim()
        folder.write("summary.json", {"ended": "Out of memory"})
        folder.close()
        notes = os.path.join(self.path, "notes.txt")
        pathlib.Path(notes).write_text("mine")
        corrected = RunFolder(self.path, {"launcher": "distill", "epochs": 3})
        corrected.claim()
        corrected.close()
        self.assertCountEqual(
            os.listdir(self.path), ["config.json", "notes.txt"]
        )
        self.assertEqual(corrected.read("config.json")["epochs"], 3)

    def test_a_path_is_the_same_however_it_is_written(self):
        RunFolder(self.path, {"data_dir": "./d//photos/"}).claim()
        self.train()
        RunFolder(self.path, {"data_dir": "d/photos"}, paths=["data_dir"])
        with self.assertRaisesRegex(ValueError, "data_dir: 'd/photos' there"):
            RunFolder(self.path, {"data_dir": "d/x"}, paths=["data_dir"])

    def test_other_settings_are_refused_by_name(self):
        folder = RunFolder(self.path, {"epochs": 2, "seed": 1, "output": "a"})
        folder.claim(teacher="x")
        folder.close()
        self.train()
        with self.assertRaisesRegex(
            ValueError, r"other settings\. epochs: 2 there, 3 here\. .*`overw"
        ):
            RunFolder(self.path, {"epochs": 3, "seed": 1, "output": "a"})
        same = RunFolder(
            self.path,
            {"epochs": 2, "seed": 1, "output": "b"},
            ignore=["output"],
        )
        with self.assertRaisesRegex(ValueError, "teacher: 'x' there, 'y' here"):
            same.claim(teacher="y")

    def test_a_key_that_older_code_lacked_has_its_default(self):
        RunFolder(self.path, {"epochs": 2}).claim()
        self.train()
        config, defaults = {"epochs": 2, "seed": 0}, {"seed": 0}
        RunFolder(self.path, config, defaults=defaults)
        with self.assertRaisesRegex(ValueError, "seed: 0 there, 1 here"):
            RunFolder(self.path, {**config, "seed": 1}, defaults=defaults)

    def test_overwrite_removes_the_run_and_nothing_else(self):
        train(self.path, model(), config={"seed": 1})
        notes = os.path.join(self.path, "notes.txt")
        pathlib.Path(notes).write_text("mine")
        folder = RunFolder(self.path, {"seed": 2}, overwrite=True)
        self.assertIn("checkpoints", os.listdir(self.path))  # until claimed
        folder.claim()
        folder.close()
        self.assertCountEqual(
            os.listdir(self.path), ["config.json", "notes.txt"]
        )
        self.assertEqual(folder.read("config.json"), {"seed": 2})

    def test_one_process_at_a_time(self):
        first = RunFolder(self.path, {})
        first.claim()
        with self.assertRaisesRegex(ValueError, "Another process is writing"):
            RunFolder(self.path, {}).claim()
        first.close()
        RunFolder(self.path, {}).claim()

    def test_unwritable(self):
        file = os.path.join(self.path, "file")
        pathlib.Path(file).write_text("")
        for path in (file, os.path.join(file, "below")):
            with self.assertRaisesRegex(OSError, "cannot be written"):
                RunFolder(path, {})
        with (
            mock.patch.object(os, "access", return_value=False),
            self.assertRaisesRegex(OSError, "not yours to write to"),
        ):
            RunFolder(self.path, {})
        with (
            mock.patch.object(
                files, "flush", side_effect=OSError(28, "No space left")
            ),
            self.assertRaisesRegex(OSError, "the disk or a quota is full"),
        ):
            RunFolder(self.path, {}).claim()
        self.assertEqual(os.listdir(self.path), ["file"])

    def test_fingerprint_tells_weights_apart(self):
        a, b = tower(3), tower(3)
        self.assertNotEqual(fingerprint(a), fingerprint(b))
        b.set_weights(a.get_weights())
        self.assertEqual(fingerprint(a), fingerprint(b))
        self.assertRegex(fingerprint(a), "^[0-9a-f]{16}$")


class RecordsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path

    def test_lines_are_means_over_the_steps_since_the_line_before(self):
        trained, losses = model(), []

        class EveryLoss(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                losses.append(float(trained._means["loss"].total.numpy()))

        path = os.path.join(self.folder, "metrics.jsonl")
        events = os.path.join(self.folder, "events")
        trained.fit(
            load(0),
            epochs=2,
            steps_per_epoch=10,
            verbose=0,
            callbacks=[
                EveryLoss(),
                seed_tf.training.Evaluate({"knn": (lambda: 0.5, 2)}, 2),
                seed_tf.training.MetricsLog(
                    path,
                    batch_size=BATCH,
                    steps_per_epoch=10,
                    every=4,
                    events=events,
                ),
            ],
        )
        lines = read_json_lines(path)
        steps = [4, 8, 10, 12, 16, 20]
        self.assertEqual([line["step"] for line in lines], steps)
        self.assertEqual(
            [line["epoch"] for line in lines], [s / 10 for s in steps]
        )
        each = np.diff([0, *losses[:10]]), np.diff([0, *losses[10:]])
        each = np.concatenate(each)
        for start, line in zip([0, *steps], lines, strict=False):
            self.assertAlmostEqual(
                line["loss"], each[start : line["step"]].mean(), places=4
            )
            self.assertBetween(line["waiting"], 0, 1)
            self.assertGreater(line["images_per_second"], 0)
        self.assertEqual(
            [line.get("knn") for line in lines], [None] * 5 + [0.5]
        )
        seconds = [line["seconds"] for line in lines]
        self.assertEqual(seconds, sorted(seconds))
        # TensorBoard's format, read by its protocol.
        (name,) = os.listdir(events)
        found = {}
        for record in tf.data.TFRecordDataset(os.path.join(events, name)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                self.assertEqual(plugin, "scalars")
                found[value.tag, event.step] = tf.make_ndarray(value.tensor)
        for line in lines:
            self.assertAlmostEqual(
                found["loss", line["step"]], line["loss"], places=5
            )
        self.assertEqual(found["knn", 20], 0.5)

    def test_dry_run_tells_the_cost_and_leaves_nothing(self):
        before = os.listdir(self.folder)
        trained = model()
        with mock.patch.object(os, "getcwd", return_value=self.folder):
            printed = seed_tf.training.dry_run(
                trained,
                load,
                encoder=trained.student,
                teacher=trained.teacher,
                epochs=EPOCHS,
                steps_per_epoch=STEPS,
                batch_size=BATCH,
            )
        self.assertEqual(trained.step.numpy(), 5)
        self.assertEqual(os.listdir(self.folder), before)
        rows = dict(line.split("  ", 1) for line in printed.splitlines()[2:])
        rows = {name: value.strip() for name, value in rows.items()}
        self.assertEqual(
            rows["parameters, trained encoder"],
            str(trained.student.count_params()),
        )
        self.assertEqual(rows["queue"], "800 B")  # 50 x 4 float32
        self.assertEqual(rows["steps"], "20 = 4 epochs of 5")
        for name in ("peak memory", "images per second", "time for all steps"):
            self.assertRegex(rows[name], r"\d")
        self.assertRegex(rows["waiting for data"], r"^\d+% of the time$")

    @parameterized.parameters(None, BATCH - 1)
    def test_dry_run_of_a_single_step(self, fit):
        # Five are measured, of fewer images if that is all that fit.
        trained = model()
        with mock.patch.object(
            cost, "images_that_fit", return_value=fit or BATCH
        ):
            printed = seed_tf.training.dry_run(
                trained,
                lambda first_step: load(first_step).take(1),
                encoder=trained.student,
                epochs=1,
                steps_per_epoch=1,
                batch_size=BATCH,
            )
        self.assertEqual(trained.step.numpy(), 5)
        self.assertRegex(printed, r"steps +1 = 1 epochs of 1\n")
        self.assertRegex(printed, r"images per second +[\d.]+\n")
        self.assertEqual(f"of {BATCH - 1} images" in printed, fit is not None)

    def test_the_checkpoint_is_as_large_as_told(self):
        checkpoints = Checkpoints(self.folder, model(width=2000))
        checkpoints.save(0)
        (written,) = pathlib.Path(self.folder).glob("*/state.data*")
        ratio = checkpoints.size() / written.stat().st_size
        self.assertBetween(ratio, 0.98, 1.02)

    def test_the_teacher_is_not_in_a_checkpoint(self):
        trained = model()
        Checkpoints(self.folder, trained).save(0)
        (path,) = pathlib.Path(self.folder).glob("*/state.index")
        names = tf.train.list_variables(str(path)[: -len(".index")])
        count = sum(
            int(np.prod(shape)) for name, shape in names if "GRAPH" not in name
        )
        self.assertLess(
            count,
            2 * trained.student.count_params() + 50 * 4 + 100,
        )

    def test_report(self):
        trained = model()
        folder = RunFolder(self.folder, {"secret": "<b>"})
        folder.claim()
        seed_tf.training.train(
            trained,
            load,
            encoder=trained.student,
            epochs=EPOCHS,
            steps_per_epoch=STEPS,
            batch_size=BATCH,
            folder=folder,
            measures={"knn": (lambda: 0.75, 2)},
        )
        images = np.zeros((9, 8, 8, 3), np.uint8)
        seed_tf.training.write_run_report(
            folder,
            "my run",
            views=images,
            neighbours=(images[:2], {"encoder": (images, [[0, 1], [1, 2]])}),
        )
        page = pathlib.Path(folder.file("report.html")).read_text()
        page, pictures = re.subn('data:image/png;base64,[^"]*', "", page)
        self.assertEqual(pictures, 3)
        self.assertIn("Step 20, epoch 4.00", page)
        self.assertIn("<td>k-NN top-1</td><td>0.75</td>", page)
        self.assertIn("secret = &lt;b&gt;", page)
        self.assertTrue(os.path.getsize(folder.file("report.png")) > 10_000)

    @parameterized.parameters(
        (999, "999 B"),
        (1500, "1.5 kB"),
        (33_554_432, "33.6 MB"),
        (4e10, "40.0 GB"),
    )
    def test_readable_bytes(self, count, expected):
        self.assertEqual(readable_bytes(count), expected)


if __name__ == "__main__":
    absltest.main()
