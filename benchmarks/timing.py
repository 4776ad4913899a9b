"""Contenders timed in turns, each a process of its own.

Times on a shared machine drift by tens of percent, ratios within a minute
hardly: contenders stay resident and work one at a time, some steps each in
every round, in an order that rotates; ratios are taken within a round and
their median is quoted. One that waits reads a pipe and takes no processor
time.
"""

import concurrent.futures
import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

# glibc's malloc as it should be for large tensors: memory once got is kept,
# in pages of 2 MB, where by default each tensor is mapped, zeroed and unmapped.
TUNED_MALLOC = {
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}={value}"
        for name, value in {
            "hugetlb": 1,
            "mmap_threshold": 2**40,
            "trim_threshold": 2**40,
            "top_pad": 2**28,
        }.items()
    )
}

# Those that choices of kernels depend on.
_INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16"),
)
_LIMIT, _SWITCH = "ONEDNN_MAX_CPU_ISA", "TF_ENABLE_ONEDNN_OPTS"

# A pipe of their own, since libraries print to the standard output.
_REPLIES = "BENCHMARK_REPLIES"


class ContenderError(Exception):
    """A contender's process ended; the message is its last line of errors."""


class Worker:
    """A contender: the process `python -m module --worker=JSON`.

    Args:
        module: str, whose main takes turns by `Turns`.
        spec: what it takes, anything that JSON can hold.
        environment: dict of variables to set, such as `TUNED_MALLOC`.
        folder: the process's working folder, by default this process's own.
    """

    def __init__(self, module, spec, environment=None, folder=None):
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        replies, other_end = os.pipe()
        self._replies = os.fdopen(replies)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, f"--worker={json.dumps(spec)}"],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            text=True,
            cwd=folder,
            env={
                **os.environ,
                "TF_CPP_MIN_LOG_LEVEL": "2",
                **(environment or {}),
                _REPLIES: str(other_end),
            },
            pass_fds=[other_end],
        )
        os.close(other_end)

    def run(self, steps):
        """Has it run some steps.

        Returns:
            dict of "seconds" per step and "peak_mb", the most memory that the
            process ever had.

        Raises:
            ContenderError: if it does not.
        """
        try:
            print(steps, file=self._process.stdin, flush=True)
            reply = self._replies.readline()
        except BrokenPipeError:
            reply = ""
        if reply:
            return json.loads(reply)
        code = self._process.wait()
        self._output.seek(0)
        lines = self._output.read().strip().splitlines() or ["no message"]
        raise ContenderError(f"exit code {code}: {lines[-1][:300]}")

    def close(self):
        """Ends the process, also a second time."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()
        self._output.close()


class Turns:
    """The worker's side: waits for its turn, times it, replies.

    Args:
        peak: function that gives the most memory, in MB, used so far; by
            default the process's.
    """

    def __init__(self, peak=None):
        self._peak = peak or peak_mb
        self._replies = os.fdopen(int(os.environ[_REPLIES]), "w", buffering=1)
        self._left = 0

    def before_step(self):
        """Waits if a turn is over; ends the process with the last one."""
        if self._left:
            return
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        self._steps = self._left = int(line)
        self._start = time.perf_counter()

    def after_step(self):
        self._left -= 1
        if not self._left:
            seconds = (time.perf_counter() - self._start) / self._steps
            reply = {"seconds": seconds, "peak_mb": self._peak()}
            print(json.dumps(reply), file=self._replies)

    def repeat(self, step):
        """Runs a function without arguments until there are no more turns."""
        while True:
            self.before_step()
            step()
            self.after_step()

    def repeat_whole(self, run):
        """The same by a function that takes a turn's number of steps.

        It may make more, and returns how many.
        """
        while True:
            self.before_step()
            self._steps, self._left = run(self._steps), 1
            self.after_step()


def peak_mb():
    """The largest resident size that this process ever had (Linux)."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status names no VmHWM.")


def start(stack, workers, warm_up, at_once=False):
    """Starts workers and warms them up.

    Args:
        stack: contextlib.ExitStack that is to close them.
        workers: dict of names to functions that start a `Worker`.
        warm_up: int, steps.
        at_once: bool, whether not to start one after the other.

    Returns:
        dicts by name: the workers, and why those that failed did.
    """
    started, failed = {}, {}

    def begin(name):
        print(f"Starting {name} ...", flush=True)
        worker = workers[name]()
        stack.callback(worker.close)
        try:
            worker.run(warm_up)
            started[name] = worker
        except ContenderError as error:
            print(f"  left out, {name}, {error}", flush=True)
            failed[name] = str(error)

    most = len(workers) if at_once else 1
    with concurrent.futures.ThreadPoolExecutor(most) as pool:
        list(pool.map(begin, workers))
    return {name: started[name] for name in workers if name in started}, failed


def take_turns(workers, rounds, steps):
    """Seconds per step of each worker in each round.

    Returns:
        list of dicts of names to seconds, one of each round; and a dict of
        names to peak memory in MB.
    """
    measured, peaks, names = [], {}, list(workers)
    for i in range(rounds):
        first = i % len(names)
        seconds = {}
        for name in names[first:] + names[:first]:
            reply = workers[name].run(steps)
            seconds[name], peaks[name] = reply["seconds"], reply["peak_mb"]
        measured.append(seconds)
    return measured, peaks


def medians(rounds):
    """Median seconds by name."""
    return {
        name: statistics.median(seconds[name] for seconds in rounds)
        for name in rounds[0]
    }


def ratios(rounds, baseline):
    """How many times faster than a baseline each is.

    Returns:
        dict of names to (median, lower quartile, upper quartile) of the
        ratios within the rounds.
    """
    result = {}
    for name in rounds[0]:
        within = [seconds[baseline] / seconds[name] for seconds in rounds]
        low, _, high = (
            statistics.quantiles(within, n=4, method="inclusive")
            if len(within) > 1
            else 3 * within
        )
        result[name] = (statistics.median(within), low, high)
    return result


def exponents(xs, ys):
    """Exponents e of y ~ x**e between neighbouring points."""
    pairs = zip(xs, xs[1:], ys, ys[1:], strict=False)
    return [math.log(y / v) / math.log(x / u) for u, x, v, y in pairs]


def linearity(values, xs, ys, tolerance=0.1):
    """Where y is proportional to x, a sentence in terms of the values."""
    parts = []  # (kind, from, to)
    pairs = zip(values, values[1:], exponents(xs, ys), strict=False)
    for low, high, e in pairs:
        kind = "linear"
        if abs(e - 1) > tolerance:
            kind = f"{'less' if e < 1 else 'more'} than linear"
        if parts and parts[-1][0] == kind:
            low = parts.pop()[1]
        parts.append((kind, low, high))
    return "; ".join(f"{x} from {a:,} to {b:,}" for x, a, b in parts)


def machine(*packages):
    """What the times were measured on, for a reader: a dict of strings."""
    cpu, instructions = platform.processor(), []
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            re.split(r"\s*:\s*", line, maxsplit=1)
            for line in info.read_text().splitlines()
            if ":" in line
        )
        cpu = fields.get("model name", cpu)
        found = fields.get("flags", "").split()
        instructions = [name for name in _INSTRUCTIONS if name in found]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "instructions": " ".join(instructions) or "unknown",
        # What it uses of them, in TensorFlow and in PyTorch.
        "oneDNN": f"up to {os.environ.get(_LIMIT, 'all')}",
        # `import seed_tf` turns it on unless the variable says no.
        "oneDNN in TensorFlow": "off"
        if os.environ.get(_SWITCH) == "0"
        else "on",
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GB",
        # PyTorch's threads wait for each other by spinning: on a busy machine
        # it is slowed down far more than we are.
        "load before": f"{os.getloadavg()[0]:.1f} (should be near 0)",
        "versions": ", ".join(versions),
    }


def markdown(rows):
    """A table of dicts with the same keys, which are its head."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[str(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(stem, results, text):
    """Writes stem.json and stem.md."""
    stem = pathlib.Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
