"""What the benchmarks compare is the same work, and their statistics."""

import json
import pathlib
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, flagsaver, parameterized

import seed_tf
from benchmarks import cifar10_gpu, hlo_step, timing

try:
    import torch

    from benchmarks import torch_seed
except ImportError:
    torch = None


def keras_network(seed):
    """Convolution, BatchNorm, LeakyReLU, dense; of images."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Rescaling(1 / 64, offset=-2),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(epsilon=1e-5),
            # Not one of those that a frozen teacher runs in 16 bits.
            keras.layers.LeakyReLU(negative_slope=0.2),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(16),
        ]
    )


def torch_network(model):
    """The same in PyTorch, of images after the rescaling."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.LeakyReLU(0.2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 16),
    )
    convolution, norm, dense = (model.layers[i] for i in (1, 2, 5))
    values = [
        convolution.kernel.numpy().transpose(3, 2, 0, 1),
        convolution.bias.numpy(),
        norm.gamma.numpy(),
        norm.beta.numpy(),
        dense.kernel.numpy().T,
        dense.bias.numpy(),
    ]
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), values, strict=True):
            parameter.copy_(torch.from_numpy(value.copy()))
    return net


class StatisticsTest(absltest.TestCase):
    rounds = [
        {"slow": 4.0, "fast": 1.0},
        {"slow": 9.0, "fast": 3.0},
        {"slow": 8.0, "fast": 4.0},
    ]

    def test_medians(self):
        self.assertEqual(
            timing.medians(self.rounds), {"slow": 8.0, "fast": 3.0}
        )

    def test_ratios_are_taken_within_rounds(self):
        ratios = timing.ratios(self.rounds, "slow")
        self.assertEqual(ratios["slow"], (1.0, 1.0, 1.0))
        # Of 4, 3 and 2; the ratio of the medians would be 8 / 3.
        self.assertEqual(ratios["fast"], (3.0, 2.5, 3.5))

    def test_ratio_of_one_round(self):
        ratios = timing.ratios(self.rounds[:1], "slow")
        self.assertEqual(ratios["fast"], (4.0, 4.0, 4.0))

    def test_markdown(self):
        table = timing.markdown([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}])
        self.assertEqual(
            table, "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | y |"
        )


class LinearityTest(parameterized.TestCase):
    def test_exponents(self):
        found = timing.exponents([1, 2, 8], [3, 6, 24 * 4])
        np.testing.assert_allclose(found, [1, 2])

    @parameterized.parameters(
        ([1.0, 2.0, 4.0, 8.0], "linear from 10 to 80"),
        (
            [1.9, 2.0, 4.0, 8.0],
            "less than linear from 10 to 20; linear from 20 to 80",
        ),
        (
            [1.0, 2.0, 4.0, 9.0],
            "linear from 10 to 40; more than linear from 40 to 80",
        ),
        ([1.0, 1.1, 1.2, 1.3], "less than linear from 10 to 80"),
    )
    def test_linearity(self, seconds, expected):
        sentence = timing.linearity([10, 20, 40, 80], [1, 2, 4, 8], seconds)
        self.assertEqual(sentence, expected)


WORKER = """
import sys, time
from benchmarks import timing

print("what a library says")
turns = timing.Turns()
if "fail" in sys.argv[1]:
    raise OSError("no such thing")
if "whole" in sys.argv[1]:
    turns.repeat_whole(lambda steps: time.sleep(0.06 * steps) or 2 * steps)
turns.repeat(lambda: time.sleep(0.03))
"""


class WorkerTest(absltest.TestCase):
    def start(self, spec):
        module = self.create_tempfile("a_worker.py", WORKER)
        folders = [str(module.full_path).rpartition("/")[0], *sys.path]
        worker = timing.Worker(
            "a_worker", spec, {"PYTHONPATH": ":".join(folders)}
        )
        self.addCleanup(worker.close)
        return worker

    def test_turns(self):
        workers = {name: self.start(name) for name in ("one", "whole")}
        rounds, peaks = timing.take_turns(workers, rounds=2, steps=10)
        self.assertLen(rounds, 2)
        for seconds in rounds:
            self.assertEqual(set(seconds), set(workers))
            for value in seconds.values():
                self.assertBetween(value, 0.03, 0.29)  # of one step
        self.assertGreater(peaks["one"], 1)

    def test_failure(self):
        with self.assertRaisesRegex(
            timing.ContenderError, "OSError: no such thing"
        ):
            self.start("fail").run(1)


class WriteTest(absltest.TestCase):
    def test_write(self):
        stem = self.create_tempdir().full_path + "/new/step"
        timing.write(stem, {"cases": [1]}, "text\n")
        with open(stem + ".json") as file:
            self.assertEqual(json.load(file), {"cases": [1]})
        with open(stem + ".md") as file:
            self.assertEqual(file.read(), "text\n")


class HloStepTest(absltest.TestCase):
    def test_redrawn_weights_take_little_room(self):
        rng = np.random.default_rng(0)
        values = rng.normal(2, 3, (90, 100)).astype(np.float32)
        one, same = (keras.Variable(values) for _ in range(2))
        small = keras.Variable(values[:40])
        hlo_step.redraw([one, same, small])
        np.testing.assert_array_equal(small, values[:40])
        np.testing.assert_array_equal(one, same)
        self.assertFalse(np.array_equal(one, values))
        self.assertContainsSubset(one.numpy().ravel(), values.ravel())
        self.assertAlmostEqual(float(np.std(one)), 3, delta=0.1)
        self.assertAlmostEqual(float(np.mean(one)), 2, delta=0.1)

    def test_write(self):
        rng = np.random.default_rng(0)
        drawn, learned = (
            keras.Variable(rng.normal(size=(90, 100)).astype(np.float32))
            for _ in range(2)
        )
        half = keras.Variable(np.arange(100.0), dtype="bfloat16")
        hlo_step.redraw([drawn])

        def step(x):
            y = tf.matmul(x, drawn.value * learned.value)
            learned.assign(2.0 * learned)
            return y + tf.cast(half.value, tf.float32)

        stem = self.create_tempdir().full_path + "/step"
        places = hlo_step.write(
            tf.function(step, jit_compile=True), [tf.ones([3, 90])], stem
        )
        i, j, k = (places[x.value.handle.ref()] for x in (drawn, learned, half))
        self.assertCountEqual((i, j, k), (1, 2, 3))  # 0 is the argument
        with np.load(stem + ".npz") as saved:
            self.assertLen(saved[f"parameter_{i}"], 4096)
            np.testing.assert_array_equal(saved[f"shape_{i}"], (90, 100))
            np.testing.assert_array_equal(saved[f"parameter_{j}"], learned)
            self.assertNotIn(f"shape_{j}", saved)
            # The second output is the new value of `learned`.
            np.testing.assert_array_equal(saved["updates"], [(1, j)])
            np.testing.assert_array_equal(saved["bfloat16"], [k])


COMPARE = """
import pathlib, sys
from benchmarks import step_gpu

class Worker:
    def __init__(self, seconds):
        self.seconds = seconds
    def run(self, steps):
        return {"seconds": self.seconds, "peak_mb": 1}

folder, *precisions = sys.argv[1:]
step_gpu.FLAGS(["", *(f"--precision={x}" for x in precisions)])
notes, workers = step_gpu.contenders("b", pathlib.Path(folder))
workers = {x: Worker(1 if "PyTorch" in x else 0.5) for x in workers}
flops = next(iter(notes.values()))["flops"]
results, rows = step_gpu.compare(notes, workers, {"float32": 4 * flops})
print(*("|".join(row.values()) for row in rows), sep="\\n")
"""


@pytest.mark.slow
class StepGPUTest(absltest.TestCase):
    def run_python(self, *arguments):
        # Not in this process, whose flags are those of other benchmarks.
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=pathlib.Path(__file__).resolve().parents[2],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def test_writes_and_compares(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        sizes = {"batch": 2, "size": 32, "source": 40, "queue_size": 4}
        self.run_python(
            *("-m", "benchmarks.step_gpu", f"--write={folder}", "--case=b"),
            *("--precision=float32", "--teacher=resnet18", "--losses=2"),
            *(f"--{key}={value}" for key, value in sizes.items()),
        )
        notes = json.loads((folder / "b.float32.json").read_text())
        self.assertLen(notes["losses"], 2)
        self.assertTrue(np.isfinite(notes["losses"]).all())
        # As for a GPU: blocks of images, see `encoders.convolutions`.
        program = (folder / "b.float32.hlo").read_bytes()
        self.assertIn(b"SpaceToDepth", program)
        with np.load(folder / "b.float32.npz") as saved:
            shapes = [
                hlo_step.value(saved, int(name.partition("_")[2])).shape
                for name in saved.files
                if name.startswith("parameter_")
            ]
        self.assertIn((4, 128), shapes)  # the queue
        # Images are the program's argument.
        self.assertNotIn((2, 40, 40, 3), shapes)
        printed = self.run_python("-c", COMPARE, str(folder), "float32")
        self.assertEqual(
            [line.split("|") for line in printed.splitlines()],
            [
                ["PyTorch float32", "1000.0", "2", "1.00", "1", "25 %"],
                ["seed_tf, float32", "500.0", "4", "2.00", "1", "50 %"],
            ],
        )


@pytest.mark.slow
class Cifar10GPUTest(absltest.TestCase):
    def test_networks_come_back_as_they_were_sent(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        written = []

        def write_step(model, *others):
            written.append(model)
            self.assertTrue(model.acceleration.plan.hardware.accelerated)
            return self.write_step(model, *others)

        self.write_step = cifar10_gpu.write_step
        self.addCleanup(keras.mixed_precision.set_global_policy, "float32")
        with (
            flagsaver.as_parsed(
                data_dir="none", output=str(folder / "runs"), batch_size="16"
            ),
            mock.patch.object(cifar10_gpu, "write_step", write_step),
        ):
            of_one = [
                run for run in cifar10_gpu.runs() if run.name == "teacher"
            ]
            with mock.patch.object(cifar10_gpu, "runs", lambda: of_one):
                cifar10_gpu.write(folder / "programs")
                for run in of_one:
                    self.train(folder, run.name)
                cifar10_gpu.read(folder / "trained")
            files = [cifar10_gpu.student_file(run) for run in of_one]
        for model, file in zip(written, files, strict=True):
            read = seed_tf.checkpoints.load_encoder(file)
            for one, other in zip(
                read.weights, model.encoder.weights, strict=True
            ):
                np.testing.assert_array_equal(one, other)

    def train(self, folder, name):
        """What `benchmarks.train_gpu` leaves, after no step."""
        (folder / "trained").mkdir(exist_ok=True)
        notes = json.loads((folder / f"programs/{name}.json").read_text())
        rates = notes["rates"]
        self.assertEqual((rates[0], rates[-1]), (0, 0))
        self.assertAlmostEqual(max(rates), 0.06 * 16 / 256, places=5)
        with np.load(folder / f"programs/{name}.npz") as saved:
            weights = {
                f"weight_{i}": hlo_step.value(saved, place)
                for i, place in notes["weights"].items()
            }
        np.savez(folder / f"trained/{name}.npz", **weights)
        (folder / f"trained/{name}.json").write_text("{}")


@absltest.skipIf(torch is None, "needs PyTorch: pip install seed_tf[torch]")
class TorchSeedTest(absltest.TestCase):
    def test_same_losses_as_ours(self):
        """Three steps from the same weights, queue and images."""
        student, teacher = keras_network(0), keras_network(1)
        before = student.layers[1].kernel.numpy()
        ours = seed_tf.SEED(
            student=student,
            teacher=teacher,
            views=lambda images: tf.cast(images, tf.float32),
            queue_size=32,
        )
        ours.compile(seed_tf.training.SGD(0.5))
        step = torch_seed.Step(
            torch_network(student),
            torch_network(teacher),
            torch.from_numpy(ours.queue.embeddings.numpy().T.copy()),
            torch_seed.Options(channels_last=True, fused=True),
            learning_rate=0.5,
        )
        images = np.random.default_rng(0).integers(
            0, 256, (3, 16, 8, 8, 3), np.uint8
        )
        actual, expected = [], []
        for batch in images:
            data = tf.data.Dataset.from_tensors(batch)
            history = ours.fit(data, verbose=0).history
            actual += history["loss"]
            rescaled = torch.from_numpy(batch).float() / 64 - 2
            expected.append(step(step.put(rescaled.movedim(-1, 1))))
        np.testing.assert_allclose(actual, expected, rtol=1e-4)
        # Training counts: it would tell another optimiser or gradient.
        moved = np.abs(student.layers[1].kernel.numpy() - before)
        self.assertGreater(moved.max(), 0.01)
        # The third batch overwrote the first.
        self.assertEqual(step.cursor, 16)
        np.testing.assert_allclose(
            step.queue.numpy().T, ours.queue.embeddings.numpy(), atol=1e-5
        )


if __name__ == "__main__":
    absltest.main()
