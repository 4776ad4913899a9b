"""Our step on a GPU machine that has JAX and PyTorch but no TensorFlow.

    python -m benchmarks.step_gpu --write=folder       # where TensorFlow is
    python -m benchmarks.step_gpu --profile=folder     # where the GPU is
    python -m benchmarks.step_gpu --run=folder

The first writes whole training steps as XLA programs (`benchmarks.hlo_step`):
views, both networks, loss, queue, optimiser. The second runs each alone and
shows the kernels that take longest. The third runs them in turns with the
authors' algorithm in PyTorch (`benchmarks.torch_seed`), which gets views ready
in the GPU's memory. The contenders of a case are compiled at once and share
that memory: on a GPU of 80 GB give case d one `--precision` at a time. The GPU
machine needs the folders `benchmarks` and `seed_tf` of this repository. Cases
as in `benchmarks.step`, batch 256, 224 px. "float32" means TF32 products on
both sides, as both frameworks' compilers choose.

Most of the time goes to XLA's trials of kernels, up to two minutes a program,
which are better made without others at work. XLA keeps their results:

    XLA_FLAGS=--xla_gpu_dump_autotune_results_to=tuned.txt \
        python -m benchmarks.step_gpu --profile=folder
    XLA_FLAGS=--xla_gpu_load_autotune_results_from=tuned.txt \
        python -m benchmarks.step_gpu --run=folder
"""

import collections
import contextlib
import functools
import json
import os
import pathlib
import tempfile
import time

import numpy as np
from absl import app, flags

from benchmarks import hlo_step, timing
from benchmarks.cases import CASES, Case, model

FLAGS = flags.FLAGS
flags.DEFINE_string("write", None, "Folder to write programs to.")
flags.DEFINE_string("profile", None, "Folder with programs to run alone.")
flags.DEFINE_string("run", None, "Folder with programs to compare.")
flags.DEFINE_multi_enum("case", ["a", "b", "d"], list(CASES), "Which steps.")
flags.DEFINE_multi_enum(
    "precision",
    ["float32", "mixed_bfloat16"],
    ["float32", "mixed_bfloat16"],
    "Of our networks; with bfloat16 the teacher is in it as a whole.",
)
flags.DEFINE_string("teacher", "resnet50", "A backbone.")
flags.DEFINE_integer("queue_size", 65536, "K, a multiple of the batch.", 1)
flags.DEFINE_integer("batch", 256, "Images.", 1)
flags.DEFINE_integer("size", 224, "Pixels of a view.", 1)
flags.DEFINE_integer("source", 256, "Pixels of the images before.", 1)
flags.DEFINE_integer(
    "losses", 0, "Steps to run here as well, whose losses --run compares."
)
flags.DEFINE_integer("rounds", 6, "Turns of each contender.", 1)
flags.DEFINE_integer("steps", 10, "Steps in a turn.", 1)
flags.DEFINE_integer("warm_up", 5, "Steps before the first round.", 1)
flags.DEFINE_string("output", None, "Where to write .json and .md, a stem.")
flags.DEFINE_string("worker", None, "Internal: a contender, as JSON.")

_FAST = {"channels_last": True, "fused": True}
TORCH = {
    "PyTorch float32": _FAST,
    "PyTorch autocast bfloat16": {**_FAST, "autocast": True},
    "PyTorch autocast bfloat16, torch.compile": {
        **_FAST,
        "autocast": True,
        "compile": True,
    },
    "PyTorch autocast bfloat16, torch.compile, teacher folded": {
        **_FAST,
        "autocast": True,
        "compile": True,
        "teacher": "bfloat16",
        "fold": True,
    },
}
# JAX would take most of the GPU's memory for itself.
SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


# -- Where TensorFlow is ---------------------------------------------------


def write_steps(folder):
    import seed_tf
    from seed_tf.training import cost

    folder.mkdir(parents=True, exist_ok=True)
    for name in FLAGS.case:
        case = CASES[name]._replace(
            teacher=FLAGS.teacher,
            queue_size=FLAGS.queue_size,
            batch=FLAGS.batch,
            size=FLAGS.size,
        )
        for precision in FLAGS.precision:
            print(f"Writing {name}, {precision} ...", flush=True)
            build = functools.partial(
                model,
                case,
                precision,
                views=seed_tf.views.moco_v2(case.size),
                teacher_precision=precision.removeprefix("mixed_"),
            )
            here = build()
            there = build(hardware=hlo_step.gpu())
            flops = cost.of_step(
                there, encoder=there.student, batch_size=case.batch
            ).flops
            stem = folder / f"{name}.{precision}"
            write_step(there, case, stem)
            notes = {
                "case": case._asdict(),
                "precision": precision,
                "source": FLAGS.source,
                "flops": sum(flops.values()),
                "losses": first_losses(here, case),
            }
            path = folder / f"{name}.{precision}.json"
            path.write_text(json.dumps(notes, indent=1) + "\n")


def write_step(seed, case, stem):
    """Writes one step as a GPU computes it."""
    import tensorflow as tf

    step, images = step_of(seed, case)
    compiled = tf.function(step, jit_compile=True, autograph=False)
    hlo_step.write(compiled, [images], stem)


def first_losses(seed, case):
    """Logged losses of `--losses` steps, which this processor computes."""
    import tensorflow as tf

    step, images = step_of(seed, case)
    run = tf.function(step)
    return [float(run(images)) for _ in range(FLAGS.losses)]


def step_of(seed, case):
    """A function of images that trains for a step, and the images."""
    import tensorflow as tf

    # So that files are small; times do not depend on it.
    hlo_step.redraw(seed.variables)
    seed.make_train_function(force=True)  # copies of the teacher follow it
    images = tf.constant(source_images(case.batch, FLAGS.source))
    return lambda images: seed.train_step(images)["loss"], images


def source_images(batch, size):
    shape = batch, size, size, 3
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# -- Where the GPU is ------------------------------------------------------


def work(stem=None, case=None, torch=None):
    if stem is None:
        work_torch(Case(*case), torch)
    else:
        work_ours(stem)


def work_ours(stem):
    notes, step, device = load(stem)
    expected = iter(notes["losses"])

    def checked():
        loss = step()
        value = next(expected, None)
        if value is not None:
            np.testing.assert_allclose(loss, value, rtol=0.02)

    timing.Turns(lambda: peak_mb(device)).repeat(checked)


def load(stem):
    """A program's notes, a function that runs one step, JAX's device."""
    import jax

    notes = notes_of(stem)
    program = hlo_step.Program(stem)
    device = jax.devices()[0]
    images = source_images(notes["case"]["batch"], notes["source"])
    images = jax.device_put(images, device)

    def step():
        (loss,) = program(images)
        return float(loss)  # which waits for it

    return notes, step, device


def notes_of(stem):
    """What was written beside a program, once that was whole."""
    path = pathlib.Path(f"{stem}.json")
    if not path.exists():
        raise app.UsageError(
            f"There is no {path}. Write the programs where TensorFlow is, by "
            "--write, with the same --case and --precision, and bring them."
        )
    return json.loads(path.read_text())


def peak_mb(device):
    statistics = device.memory_stats() or {}
    return statistics.get("peak_bytes_in_use", 0) / 2**20


def work_torch(case, options):
    import torch

    from benchmarks import torch_seed

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count())
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    step = torch_seed.Step(
        torch_seed.network(case.student),
        torch_seed.network(case.teacher),
        torch_seed.random_queue(case.queue_size),
        torch_seed.Options(**options),
        device=device,
    )
    images = torch_seed.normalised(source_images(case.batch, case.size))
    images = step.put(images)

    # Without what cuDNN's trials of kernels took, in the first of them.
    for _ in range(2):
        step(images)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def peak():
        if device == "cpu":
            return timing.peak_mb()
        return torch.cuda.max_memory_allocated() / 2**20

    timing.Turns(peak).repeat(lambda: step(images))


def profile(folder):
    """Runs each program alone; prints its time and its longest kernels."""
    results, text = {}, []
    for name in FLAGS.case:
        for precision in FLAGS.precision:
            start = time.perf_counter()
            notes, step, device = load(folder / f"{name}.{precision}")
            for _ in range(FLAGS.warm_up):
                step()
            ready = time.perf_counter()
            for _ in range(FLAGS.steps):
                step()
            seconds = (time.perf_counter() - ready) / FLAGS.steps
            kernels, table = kernels_of(step), ""
            if kernels:
                total = sum(kernel["us"] for kernel in kernels)
                table = f"; kernels {total / 1000:.1f} ms\n\n"
                table += timing.markdown(kernels[:20])
            text.append(
                f"## {name}, {precision}, {device.device_kind}: "
                f"{1000 * seconds:.1f} ms, "
                f"{notes['case']['batch'] / seconds:,.0f} images/s, ready "
                f"after {ready - start:.0f} s{table}"
            )
            print(f"\n{text[-1]}", flush=True)
            results[f"{name}.{precision}"] = {
                "ms": 1000 * seconds,
                "kernels": kernels,
            }
            if FLAGS.output:
                timing.write(FLAGS.output, results, "\n\n".join(text) + "\n")


def kernels_of(step, steps=3):
    """Microseconds of a step by GPU kernel, the longest first."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                step()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    spent, calls = collections.Counter(), collections.Counter()
    for plane in data.planes:
        if "GPU" not in plane.name:
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                # Within a CUDA graph that is the graph's name, not the op's.
                op = dict(event.stats).get("hlo_op", "")
                key = event.name[:60], op
                spent[key] += event.duration_ns
                calls[key] += 1
    return [
        {
            "kernel": kernel,
            "of": op,
            "calls": calls[kernel, op] / steps,
            "us": round(ns / steps / 1000, 1),
        }
        for (kernel, op), ns in spent.most_common()
    ]


def gpu():
    """Its name; and FLOP/s of large matrix products on it, by precision."""
    try:
        import torch
    except ImportError:
        return "none", {}
    if not torch.cuda.is_available():
        return "none", {}
    torch.backends.cuda.matmul.allow_tf32 = True
    rates = {}
    for precision, dtype in (
        ("float32", torch.float32),
        ("mixed_bfloat16", torch.bfloat16),
    ):
        a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in "ab")
        for count in (3, 20):  # the first to warm up
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            begin.record()
            for _ in range(count):
                a @ b
            end.record()
            end.synchronize()
        seconds = begin.elapsed_time(end) / 1000 / count
        rates[precision] = 2 * 8192**3 / seconds
    return torch.cuda.get_device_name(), rates


def contenders(name, folder):
    """The case's notes by precision, and functions that start workers."""
    notes = {
        precision: notes_of(folder / f"{name}.{precision}")
        for precision in FLAGS.precision
    }

    def worker(**spec):
        return lambda: timing.Worker("benchmarks.step_gpu", spec, SHARED_GPU)

    case = notes[FLAGS.precision[0]]["case"]
    workers = {
        label: worker(case=list(case.values()), torch=options)
        for label, options in TORCH.items()
        if precision_of(label) in notes
    }
    for precision in notes:
        stem = str(folder / f"{name}.{precision}")
        workers[f"seed_tf, {precision}"] = worker(stem=stem)
    return notes, workers


def precision_of(label):
    return "mixed_bfloat16" if "bfloat16" in label else "float32"


def compare(notes, workers, rates):
    """Times what was started; rounds and rows."""
    case = Case(**notes[FLAGS.precision[0]]["case"])
    if not workers:
        return {"case": case._asdict(), "rounds": []}, []
    rounds, peaks = timing.take_turns(workers, FLAGS.rounds, FLAGS.steps)
    seconds = timing.medians(rounds)
    torch = [label for label in seconds if label in TORCH]
    ratios = {}
    if torch:
        ratios = timing.ratios(rounds, min(torch, key=seconds.get))
    flops = next(iter(notes.values()))["flops"]
    rows = []
    for label in sorted(seconds, key=seconds.get, reverse=True):
        rate = rates.get(precision_of(label))
        share = flops / seconds[label] / rate if rate else None
        ratio = ratios.get(label)
        rows.append(
            {
                "contender": label,
                "ms": f"{1000 * seconds[label]:.1f}",
                "images/s": f"{case.batch / seconds[label]:,.0f}",
                "to PyTorch's fastest": f"{ratio[0]:.2f}" if ratio else "-",
                "peak MB": f"{peaks[label]:,.0f}",
                "of the matrix rate": f"{100 * share:.0f} %" if share else "-",
            }
        )
    return {"case": case._asdict(), "rounds": rounds}, rows


def main(_):
    if FLAGS.worker:
        work(**json.loads(FLAGS.worker))
    elif FLAGS.write:
        write_steps(pathlib.Path(FLAGS.write))
    elif FLAGS.profile:
        profile(pathlib.Path(FLAGS.profile))
    elif FLAGS.run:
        run(pathlib.Path(FLAGS.run))
    else:
        raise app.UsageError("Say --write, --profile or --run, =folder.")


def run(folder):
    machine = timing.machine("jax", "torch")
    machine["gpu"], rates = gpu()
    results = {"machine": machine, "matrix_rates": rates, "cases": {}}
    text = ["; ".join(f"{k}: {v}" for k, v in machine.items())]
    text += [f"{k}: {v / 1e12:.0f} TFLOP/s" for k, v in rates.items()]
    print("\n".join(text), flush=True)
    cases = {name: contenders(name, folder) for name in FLAGS.case}
    for name, (notes, workers) in cases.items():
        with contextlib.ExitStack() as stack:
            started, failed = timing.start(
                stack, workers, FLAGS.warm_up, at_once=True
            )
            result, rows = compare(notes, started, rates)
        results["cases"][name] = {**result, "failed": failed}
        title = "{student} <- {teacher}, {size} px, batch {batch}".format(
            **result["case"]
        )
        table = timing.markdown(rows) if rows else "No contender started."
        text.append(f"## {name}: {title}\n\n{table}")
        print(f"\n{text[-1]}", flush=True)
        if FLAGS.output:
            timing.write(FLAGS.output, results, "\n\n".join(text) + "\n")


if __name__ == "__main__":
    app.run(main)
