"""Several workers: real processes on this host, joined by TF_CONFIG."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
from absl.testing import absltest, parameterized
from run_helpers import (
    free_ports,
    newest,
    pictures,
    state,
    tiny_teacher,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 200  # until a process that hangs is killed

SCRIPT = textwrap.dedent(
    """
    import sys
    import tensorflow as tf
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

    views = seed_tf.views.moco_v2(8)
    with strategy.scope():
        keras.utils.set_random_seed(0)
        if sys.argv[2] == "seed":
            model = seed_tf.SEED(
                tower(4), tower(8), views=views, queue_size=50)
            trained = model.student
        else:
            model = seed_tf.MoCo(
                tower(4), views=views, queue_size=50, shuffle_groups=2)
            trained = model.encoder
        devices.synchronise_batch_norm(trained)
        model.compile(seed_tf.training.SGD(0.1))

    def load(shard):
        return seed_tf.datasets.load(
            "digits", image_size=8, batch_size=8, shard=shard)

    data = devices.distribute(strategy, load)
    devices.barrier(strategy)
    logs = model.fit(data, steps_per_epoch=20, verbose=0).history
    np.savez(sys.argv[3], *model.weights, loss=logs["loss"][0])
    """
)


class MultiWorkerTest(parameterized.TestCase):
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

    @parameterized.parameters("seed", "moco")
    def test_two_workers_equal_one_process(self, method):
        outputs = [os.path.join(self.folder, f"{i}.npz") for i in range(3)]
        run = ("-c", SCRIPT)
        alone = self.start(None, *run, "one", method, outputs[2])
        self.finish(alone)
        both = [
            self.start(i, *run, "auto", method, outputs[i]) for i in range(2)
        ]
        for process in both:
            self.finish(process)
        expected = np.load(outputs[2])
        for output in outputs[:2]:
            found = np.load(output)
            self.assertCountEqual(found.files, expected.files)
            for name in expected.files:
                np.testing.assert_allclose(
                    found[name], expected[name], atol=1e-5, err_msg=name
                )

    def test_a_killed_worker_is_restarted_and_the_run_goes_on(self):
        output = os.path.join(self.folder, "run")
        images = pictures(os.path.join(self.folder, "images"), 160)
        teacher = tiny_teacher(os.path.join(self.folder, "teacher.keras"))
        command = (
            *("-m", "experiments.distill", f"--data_dir={images}"),
            *(f"--teacher={teacher}", "--student=resnet18", "--image_size=16"),
            *("--batch_size=16", "--queue_size=64", "--epochs=4"),
            *("--held_out=0", "--checkpoint_minutes=0", f"--output={output}"),
        )
        first, second = (self.start(i, *command) for i in range(2))
        deadline = time.monotonic() + SECONDS
        while newest(output) < 3:
            for process in (first, second):
                self.assertIsNone(process.poll())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        second.send_signal(signal.SIGKILL)
        second.wait()
        reached = newest(output)
        self.assertLess(reached, 40)
        again = self.start(1, *command)
        printed = self.finish(first)
        self.finish(again)
        self.assertIn("Another worker is gone", printed)
        self.assertRegex(printed, r"Going on after step \d+ of 40")
        self.assertEqual(newest(output), 40)
        for name, value in state(output).items():
            self.assertTrue(np.isfinite(value).all(), name)


if __name__ == "__main__":
    absltest.main()
