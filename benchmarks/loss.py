"""The loss alone: streaming against the textbook form, time and memory.

    python -m benchmarks.loss --output=runs/loss

Each form runs forward and the gradient to the student in one tf.function.
Times are medians of runs that alternate between the forms in one process;
ratios are what to trust on a shared machine. Extra memory is the growth of a
fresh process's peak resident size (Linux) over its size with the inputs in
place, so every (form, size) gets a process of its own. The textbook form, of
some six `[B, K + 1]` tensors, is left out where they do not fit in memory.
"""

import json
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import timing
from seed_tf import losses

FLAGS = flags.FLAGS
flags.DEFINE_multi_integer("batch", [256, 512, 1024, 1792], "Images.")
flags.DEFINE_multi_integer(
    "queue", [4096, 65536, 1048576], "Embeddings in the queue."
)
flags.DEFINE_integer("dim", 128, "Width of an embedding.")
flags.DEFINE_integer("repeats", 15, "Timed runs of each form, at most.", 1)
flags.DEFINE_float("seconds", 30, "For a size; after 3 runs, no more start.")
flags.DEFINE_string("output", None, "Where to write .json and .md, a stem.")
flags.DEFINE_string("memory_of", None, "Internal: measure one form's memory.")


def naive(student, teacher, queue):
    """The equation as written, with several [B, K+1] tensors."""

    def logits(z, temperature):
        own = tf.reduce_sum(z * teacher, axis=1, keepdims=True)
        others = tf.matmul(z, queue, transpose_b=True)
        return tf.concat([own, others], axis=1) / temperature

    target = tf.nn.softmax(logits(teacher, 0.01))
    return tf.nn.softmax_cross_entropy_with_logits(target, logits(student, 0.2))


FORMS = {"naive": naive, "streaming": losses.similarity_distillation}


def compiled(form):
    @tf.function
    def step(student, teacher, queue):
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = tf.reduce_mean(
                form(student, tf.stop_gradient(teacher), queue)
            )
        return loss, tape.gradient(loss, student)

    return step


def inputs(batch, size):
    rng = np.random.default_rng(0)

    def unit(rows):
        x = rng.standard_normal((rows, FLAGS.dim), dtype=np.float32)
        return tf.constant(x / np.linalg.norm(x, axis=1, keepdims=True))

    return unit(batch), unit(batch), unit(size)


def resident_mb(field):
    """VmHWM, the peak, or VmRSS, the present resident size of the process."""
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith(field)) / 1024


def print_memory(form, batch, size):
    step = compiled(FORMS[form])
    arguments = inputs(batch, size)
    step(*inputs(8, 64))  # threads, kernels and tracing are not the loss's
    concrete = step.get_concrete_function(*arguments)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak starts again from the present size
    before = resident_mb("VmRSS")
    for _ in range(3):
        concrete(*arguments)
    print(json.dumps(resident_mb("VmHWM") - before))


def extra_memory(form, batch, size):
    command = [sys.executable, "-m", "benchmarks.loss", f"--memory_of={form}"]
    command += [f"--batch={batch}", f"--queue={size}", f"--dim={FLAGS.dim}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def fits(form, batch, size):
    """Whether a form can run in the memory that is free."""
    if form != "naive":
        return True
    with open("/proc/meminfo") as f:
        line = next(x for x in f if x.startswith("MemAvailable"))
    return 6 * 4 * batch * size < 0.9 * 1024 * int(line.split()[1])


def times(batch, size, forms):
    """Seconds of each form, by round."""
    arguments = inputs(batch, size)
    steps = {name: compiled(FORMS[name]) for name in forms}
    results = [step(*arguments) for step in steps.values()]
    for a, b in zip(results[0], results[-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    rounds, begin = [], time.perf_counter()
    while len(rounds) < FLAGS.repeats and (
        len(rounds) < 3 or time.perf_counter() - begin < FLAGS.seconds
    ):
        seconds = {}
        for name, step in steps.items():
            start = time.perf_counter()
            step(*arguments)[1].numpy()
            seconds[name] = time.perf_counter() - start
        rounds.append(seconds)
    return rounds


def measure(batch, size):
    """A row of the table: numbers, None where a form does not fit."""
    forms = [form for form in FORMS if fits(form, batch, size)]
    rounds = times(batch, size, forms)
    seconds = timing.medians(rounds)
    mb = {form: extra_memory(form, batch, size) for form in forms}
    row = {"B": batch, "K": size}
    for form in FORMS:
        row[f"{form} ms"] = 1000 * seconds[form] if form in forms else None
    both = len(forms) == len(FORMS)
    faster, *_ = timing.ratios(rounds, forms[0])["streaming"]
    row["faster"] = faster if both else None
    for form in FORMS:
        row[f"{form} MB"] = mb.get(form)
    row["smaller"] = mb["naive"] / mb["streaming"] if both else None
    return row


def main(_):
    if FLAGS.memory_of:
        print_memory(FLAGS.memory_of, FLAGS.batch[0], FLAGS.queue[0])
        return
    rows = []
    for size in FLAGS.queue:
        for batch in FLAGS.batch:
            rows.append(measure(batch, size))
            print(rows[-1], flush=True)
    machine = timing.machine("tensorflow", "keras")
    table = timing.markdown([_readable(row) for row in rows])
    print(f"\n{table}")
    if FLAGS.output:
        timing.write(
            FLAGS.output, {"machine": machine, "rows": rows}, table + "\n"
        )


def _readable(row):
    cells = {}
    for name, value in row.items():
        if value is None:
            cells[name] = "-"
        elif name in ("faster", "smaller"):
            cells[name] = f"{value:.3g} x"
        else:
            cells[name] = f"{value:,.0f}"
    return cells


if __name__ == "__main__":
    app.run(main)
