"""k-NN over a bank on disk: time and memory, against NumPy's full matrix.

    python -m benchmarks.knn

Searches a bank of random features, a memory-mapped .npy file, for the nearest
of each query. Memory is the peak of the process's anonymous memory (RssAnon of
/proc/self/status, sampled every 10 ms): the file cache, which the kernel fills
with the bank and empties when others need room, is left out. The textbook form,
one matrix of all similarities, runs on a part that fits, in the same process;
its time for the whole is that part's, scaled.
"""

import os
import tempfile
import threading
import time

import numpy as np
from absl import app, flags

from seed_tf.evaluation import nearest_neighbours

FLAGS = flags.FLAGS
flags.DEFINE_integer("bank", 1_000_000, "Rows of the bank.", 1)
flags.DEFINE_integer("queries", 10_000, "Queries.", 1)
flags.DEFINE_integer("dim", 512, "Width of a feature.", 1)
flags.DEFINE_integer("k", 10, "Neighbours.", 1)
flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Of the bank.")
flags.DEFINE_integer("part", 1_000, "Queries of the textbook form.", 1)
flags.DEFINE_integer("part_bank", 100_000, "Rows of the textbook form.", 1)
flags.DEFINE_string("folder", None, "Where the bank lies; by default /tmp.")


class Peak:
    """The most anonymous memory, in MB, within a `with` block."""

    def __enter__(self):
        self.mb, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(0.01):
            with open("/proc/self/status") as file:
                line = next(x for x in file if x.startswith("RssAnon"))
            self.mb = max(self.mb, int(line.split()[1]) / 1024)


def make_bank(path):
    """Writes random features, in blocks; returns them memory-mapped."""
    rng = np.random.default_rng(0)
    shape = FLAGS.bank, FLAGS.dim
    bank = np.lib.format.open_memmap(path, "w+", FLAGS.dtype, shape)
    for start in range(0, len(bank), 16384):
        rows = bank[start : start + 16384]
        rows[:] = rng.standard_normal(rows.shape, np.float32)
    bank.flush()
    return np.load(path, mmap_mode="r")


def naive(bank, queries, k):
    """Indices of the nearest, by one matrix of all similarities."""
    bank, queries = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)
    )
    return np.argsort(-(queries @ bank.T), axis=1, kind="stable")[:, :k]


def main(_):
    queries = np.random.default_rng(1).standard_normal(
        (FLAGS.queries, FLAGS.dim), np.float32
    )
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
        bank = make_bank(os.path.join(folder, "bank.npy"))
        # Threads, kernels and tracing are not the search's.
        nearest_neighbours(bank[:100], queries[:10], 1)
        with Peak() as peak:
            start = time.perf_counter()
            _, found = nearest_neighbours(bank, queries, FLAGS.k)
            seconds = time.perf_counter() - start
        print(
            f"{FLAGS.queries:,} queries, {FLAGS.bank:,} x {FLAGS.dim} "
            f"{FLAGS.dtype}: {seconds:.1f} s, peak {peak.mb:.0f} MB",
            flush=True,
        )
        part = np.array(bank[: FLAGS.part_bank], np.float32)
        some = queries[: FLAGS.part]
        with Peak() as peak:
            start = time.perf_counter()
            expected = naive(part, some, FLAGS.k)
            seconds = time.perf_counter() - start
        whole = seconds * FLAGS.bank * FLAGS.queries / (len(part) * len(some))
        gigabytes = 4 * FLAGS.bank * FLAGS.queries / 1e9
        print(
            f"textbook, {len(some):,} queries, {len(part):,} rows: "
            f"{seconds:.1f} s, peak {peak.mb:.0f} MB; the whole would take "
            f"{whole:.0f} s and a matrix of {gigabytes:.0f} GB"
        )
        start = time.perf_counter()
        _, found = nearest_neighbours(part, some, FLAGS.k)
        print(f"ours, the same part: {time.perf_counter() - start:.1f} s")
        same = np.mean(found == expected)
        print(f"neighbours that agree: {100 * same:.2f} %")


if __name__ == "__main__":
    app.run(main)
