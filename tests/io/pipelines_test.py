"""No pipeline of this package waits for tf.data's tuning when it ends."""

import pathlib
import re
import threading
import time

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

import seed_tf
from seed_tf import datasets
from seed_tf.io.pipelines import ALL_CORES, steady


def is_steady(dataset):
    return dataset.options().autotune.enabled is False


class SteadyTest(parameterized.TestCase):
    def test_an_iterator_ends_at_once(self):
        """tf.data's tuning would wait until 1.3 or 2.5 s after the start."""
        iterators = []
        for _ in range(20):
            data = steady(tf.data.Dataset.range(100)).map(abs, ALL_CORES)
            iterators.append(iter(data))
            next(iterators[-1])
        time.sleep(0.7)
        start = time.perf_counter()
        iterators.clear()
        del data
        self.assertLess(time.perf_counter() - start, 0.4)

    def test_all_cores(self):
        """Two calls wait for each other."""
        meeting = threading.Barrier(2)

        def wait(number):
            meeting.wait(timeout=5)
            return number

        data = steady(tf.data.Dataset.range(2)).map(
            lambda x: tf.numpy_function(wait, [x], tf.int64), ALL_CORES
        )
        self.assertEqual(list(data.as_numpy_iterator()), [0, 1])

    def test_given_options_are_kept(self):
        options = tf.data.Options()
        options.autotune.enabled = True
        options.autotune.initial_parallelism = 3
        options.deterministic = False
        data = steady(tf.data.Dataset.range(3).with_options(options))
        found = data.options()
        self.assertTrue(found.autotune.enabled)
        self.assertEqual(found.autotune.initial_parallelism, 3)
        self.assertIs(found.deterministic, False)

    @parameterized.parameters(True, False)
    def test_what_load_returns(self, shuffle):
        folder = pathlib.Path(self.create_tempdir().full_path)
        for i in range(4):
            image = tf.io.encode_png(np.full((8, 8, 3), i, np.uint8))
            (folder / f"{i}.png").write_bytes(image.numpy())
        for name in ("digits", "folder"):
            data = datasets.load(
                name,
                data_dir=folder if name == "folder" else None,
                image_size=8,
                batch_size=2,
                shuffle=shuffle,
            )
            self.assertTrue(is_steady(data), name)

    def test_only_this_module_names_tf_data_s_tuning(self):
        package = pathlib.Path(seed_tf.__file__).parent
        names = {
            str(path.relative_to(package))
            for path in package.rglob("*.py")
            if re.search(r"(?<!=)tf\.data\.AUTOTUNE", path.read_text())
        }
        self.assertEqual(names, {"io/pipelines.py"})


if __name__ == "__main__":
    absltest.main()
