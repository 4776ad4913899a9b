"""Several workers: real processes on this host, joined by TF_CONFIG."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from absl.testing import absltest
from helpers.runs import (
    free_ports,
    newest,
    pictures,
    state,
    tiny_teacher,
)
from helpers.tiny_student import NAME as TINY_STUDENT

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 200  # until a process that hangs is killed

# Trains what `expected` of the tests is compared with: weights, queue, loss.
SCRIPT = textwrap.dedent(
    """
    import sys
    from seed_tf.training import devices
    strategy = devices.make_strategy(sys.argv[1])
    import keras, numpy as np, seed_tf

    def tower(width):
        return keras.Sequential([
            keras.Input((None, None, 3)),
            keras.layers.Rescaling(1 / 255.0),
            keras.layers.Conv2D(width, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4),
        ])

    def load(shard):
        return seed_tf.datasets.load(
            "digits", image_size=8, batch_size=8, shard=shard)

    def train(name, views, synchronise=True, **options):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            student = tower(4)
            if name == "moco":
                model = seed_tf.MoCo(
                    student, views=views, queue_size=50, shuffle_groups=2)
            else:
                model = seed_tf.SEED(
                    student=student, teacher=tower(8), views=views,
                    queue_size=50)
            if synchronise:
                devices.synchronise_batch_norm(student)
            model.compile(seed_tf.training.SGD(0.1), **options)
        data = devices.distribute(strategy, load)
        devices.barrier(strategy)
        history = model.fit(data, steps_per_epoch=20, verbose=0).history
        results[f"{name} loss"] = history["loss"]
        for weight in model.weights:
            results[f"{name} {weight.path}"] = weight.numpy()
        return model

    results = {}
    light = seed_tf.views.View([
        seed_tf.views.RandomResizedCrop(8),
        seed_tf.views.RandomHorizontalFlip(),
    ])
    train("seed", light)
    train("moco", light)
    model = train(
        "apart", lambda images: keras.ops.cast(images, "float32"),
        synchronise=False, jit_compile=True, steps_per_execution=5)
    if strategy.num_replicas_in_sync > 1:
        try:
            model.fit(load((0, 1)), verbose=0)
        except ValueError as error:
            results["refused"] = str(error)
    np.savez(sys.argv[2], **results)
    """
)


@pytest.mark.slow
class MultiWorkerTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.workers = [f"localhost:{port}" for port in free_ports(2)]
        self.processes = []

    def tearDown(self):
        for process in self.processes:
            process.kill()
        super().tearDown()

    def start(self, worker, *command):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        if worker is not None:
            environment["TF_CONFIG"] = json.dumps(
                {
                    "cluster": {"worker": self.workers},
                    "task": {"type": "worker", "index": worker},
                }
            )
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def finish(self, process):
        printed, _ = process.communicate(timeout=SECONDS)
        self.assertEqual(process.returncode, 0, printed[-4000:])
        return printed

    def wait_for_step(self, step, output, *processes):
        deadline = time.monotonic() + SECONDS
        while newest(output) < step:
            for process in processes:
                if process.poll() is not None:
                    self.fail(process.communicate()[0][-4000:])
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)

    def test_two_workers_equal_one_process(self):
        outputs = [os.path.join(self.folder, f"{i}.npz") for i in range(3)]
        run = ("-c", SCRIPT)
        processes = [
            self.start(0, *run, "auto", outputs[0]),
            self.start(1, *run, "auto", outputs[1]),
            self.start(None, *run, "one", outputs[2]),
        ]
        for process in processes:
            self.finish(process)
        first, second, alone = (dict(np.load(output)) for output in outputs)
        for worker in (first, second):
            message = str(worker.pop("refused"))
            self.assertIn("Each worker must read its own rows", message)
            self.assertEqual(worker.keys(), alone.keys())
        for name, value in alone.items():
            # BatchNorm of each worker apart is another training than one
            # device's, but workers still agree.
            np.testing.assert_array_equal(first[name], second[name], name)
            if not name.startswith("apart"):
                np.testing.assert_allclose(
                    first[name], value, atol=1e-5, err_msg=name
                )

    def test_control_c_ends_the_wait_for_other_workers(self):
        code = "from seed_tf.training import devices as d; d.make_strategy()"
        process = self.start(0, "-c", code)
        for line in process.stdout:
            if "Waiting for all workers" in line:
                break
        self.assertIn(", ".join(self.workers), line)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=10), -signal.SIGINT)

    def test_a_run_survives_a_killed_worker_and_a_stop_of_all(self):
        output = os.path.join(self.folder, "run")
        images = pictures(os.path.join(self.folder, "images"), 160)
        teacher = tiny_teacher(os.path.join(self.folder, "teacher.keras"))
        command = (
            *("-m", "experiments.distill", f"--data_dir={images}"),
            *(f"--teacher={teacher}", f"--student={TINY_STUDENT}"),
            "--image_size=16",
            *("--batch_size=16", "--queue_size=64", "--epochs=2"),
            *("--held_out=0", "--checkpoint_minutes=0", f"--output={output}"),
        )
        first, second = (self.start(i, *command) for i in range(2))
        self.wait_for_step(3, output, first, second)
        second.send_signal(signal.SIGKILL)
        second.wait()
        reached = newest(output)
        self.assertLess(reached, 14)
        second = self.start(1, *command)
        self.wait_for_step(reached + 3, output, first, second)
        # Then all workers are told to stop.
        for process in (second, first):
            process.send_signal(signal.SIGTERM)
        printed = first.communicate(timeout=SECONDS)[0]
        stopped = second.communicate(timeout=SECONDS)[0]
        self.assertIn("Another worker is gone", printed)
        self.assertRegex(printed, r"Going on after step \d+ of 20")
        self.assertRegex(printed, r"Stopped after step \d+, which is saved")
        self.assertEqual(first.returncode, 128 + signal.SIGTERM, printed)
        self.assertIn("Stopped", stopped)
        self.assertEqual(second.returncode, 128 + signal.SIGTERM, stopped)
        last = int(re.search(r"after step (\d+), which", printed)[1])
        self.assertEqual(newest(output), last)
        for name, value in state(output).items():
            self.assertTrue(np.isfinite(value).all(), name)


if __name__ == "__main__":
    absltest.main()
