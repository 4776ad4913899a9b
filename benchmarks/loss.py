"""The loss alone: streaming against the textbook form, time and memory.

    python -m benchmarks.loss

Each form runs forward and the gradient to the student in one tf.function.
Times are medians of runs that alternate between the forms in one process;
ratios are what to trust on a shared machine. Extra memory is the growth of a
fresh process's peak resident size (Linux) over its size with the inputs in
place, so every (form, size) gets a process of its own.
"""

import json
import statistics
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf
from absl import app, flags

from seed_tf import losses

FLAGS = flags.FLAGS
flags.DEFINE_multi_integer("batch", [256, 1536], "Images in a batch.")
flags.DEFINE_multi_integer("queue", [65536], "Embeddings in the queue.")
flags.DEFINE_integer("dim", 128, "Width of an embedding.")
flags.DEFINE_integer("repeats", 15, "Timed runs of each form.")
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


def times(batch, size):
    """Median seconds of each form, and whether their results agree."""
    arguments = inputs(batch, size)
    steps = {name: compiled(form) for name, form in FORMS.items()}
    results = {name: step(*arguments) for name, step in steps.items()}
    for a, b in zip(*results.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    seconds = {name: [] for name in FORMS}
    for _ in range(FLAGS.repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step(*arguments)[1].numpy()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def main(_):
    if FLAGS.memory_of:
        print_memory(FLAGS.memory_of, FLAGS.batch[0], FLAGS.queue[0])
        return
    print(
        "| B | K | naive ms | streaming ms | faster | naive MB | "
        "streaming MB | smaller |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in FLAGS.queue:
        for batch in FLAGS.batch:
            t = times(batch, size)
            mb = {form: extra_memory(form, batch, size) for form in FORMS}
            print(
                f"| {batch} | {size} | {1000 * t['naive']:.0f} | "
                f"{1000 * t['streaming']:.0f} | "
                f"{t['naive'] / t['streaming']:.2f} x | {mb['naive']:.0f} | "
                f"{mb['streaming']:.0f} | "
                f"{mb['naive'] / mb['streaming']:.0f} x |",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
