"""Where our step's time goes, and what the machine could do in it."""

import collections
import os
import pathlib
import re
import statistics
import tempfile
import threading
import time

import numpy as np

from benchmarks import timing
from benchmarks.cases import model, random_images


def profile(case, precision, rounds, steps, warm_up):
    """Where the time of our step goes, and what is achieved in it.

    Parts are compiled alone; what the whole step takes beyond them is "rest",
    which may be negative, since TensorFlow runs operations side by side.

    Args:
        case: `Case`.
        precision: str, the student's Keras policy.
        rounds, steps, warm_up: ints, as `time_in_turns` takes them.

    Returns:
        two lists of rows: the parts, and the whole step's operations.
    """
    import tensorflow as tf

    from seed_tf import losses
    from seed_tf.embeddings import l2_normalise
    from seed_tf.training import cost

    seed = model(case, precision)
    student, variables = seed.student, seed.student.trainable_variables
    images = tf.constant(random_images(case, 1)[0])
    view = tf.cast(images, tf.float32)
    units = [
        l2_normalise(np.random.default_rng(i).normal(size=(case.batch, 128)))
        for i in range(2)
    ]

    def targets():
        return l2_normalise(seed.embed_by_teacher(view))

    def forward_and_back():
        with tf.GradientTape() as tape:
            embeddings = seed.embed(student, view, training=True)
            total = tf.reduce_sum(embeddings * units[0])
        return tape.gradient(total, variables)

    def loss_and_queue():
        with tf.GradientTape() as tape:
            tape.watch(units[0])
            value, metrics = losses.similarity_distillation(
                *units, seed.queue.embeddings.value, return_metrics=True
            )
            mean = tf.reduce_mean(value)
        gradient = tape.gradient(mean, units[0])
        seed.queue.enqueue(units[1])
        return gradient, metrics

    gradients = [tf.constant(g) for g in forward_and_back()]
    parts = {
        "teacher": targets,
        "student, forward and back": forward_and_back,
        "loss and queue": loss_and_queue,
        "optimiser": lambda: seed.minimise(gradients, variables),
        "step": lambda: seed.train_step(images),
    }
    seed.optimizer.build(variables)
    compiled = {name: tf.function(part) for name, part in parts.items()}
    measured = time_in_turns(compiled, rounds, steps, warm_up)
    seconds = timing.medians(measured)
    seconds["rest"] = 2 * seconds["step"] - sum(seconds.values())
    # Not `cost.of_step`: views that pass images on have no size of their own.
    shape = (case.batch, case.size, case.size, 3)
    counted = (
        cost.forward(seed.teacher, shape).flops,
        cost.forward_and_back(student, [shape], seed.acceleration).flops,
        8 * case.batch * case.queue_size * 128,
    )
    flops = dict(zip(parts, counted, strict=False))
    flops["step"] = sum(flops.values())
    rows = [
        {
            "part": name,
            "ms": f"{1000 * seconds[name]:.0f}",
            "share": f"{100 * seconds[name] / seconds['step']:.0f} %",
            "GFLOP": f"{flops[name] / 1e9:.1f}" if name in flops else "-",
            "GFLOP/s": f"{flops[name] / seconds[name] / 1e9:.0f}"
            if name in flops
            else "-",
        }
        for name in [*list(parts)[:-1], "rest", "step"]
    ]
    return rows, operations(compiled["step"], steps)


def operations(function, steps, most=15):
    """Rows: the types of operations that take most of a function's time.

    Times add up what each operation took, also of those side by side.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(steps):
                function()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    seconds, counts = collections.Counter(), collections.Counter()
    for plane in space.planes:
        for event in (e for line in plane.lines for e in line.events):
            name = plane.event_metadata[event.metadata_id].name
            # "model/conv1/Conv2D:_MklNativeConv2D", and other things.
            found = re.fullmatch("[^:]+:([A-Za-z0-9_]+)", name)
            if found and found[1] not in _CALLS:
                seconds[found[1]] += event.duration_ps / 1e12 / steps
                counts[found[1]] += 1
    total = sum(seconds.values())
    return [
        {
            "operation": name,
            "ms": f"{1000 * value:.1f}",
            "share": f"{100 * value / total:.0f} %",
            "times": f"{counts[name] / steps:.0f}",
        }
        for name, value in seconds.most_common(most)
    ]


# Their time is that of the operations within.
_CALLS = {"PartitionedCall", "StatefulPartitionedCall", "While", "If"}


def time_in_turns(functions, rounds, steps, warm_up=2):
    """Seconds per call of functions that run in this process, by round."""
    for function in functions.values():
        for _ in range(warm_up):
            function()
    measured = []
    for _ in range(rounds):
        seconds = {}
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(steps):
                function()
            seconds[name] = (time.perf_counter() - start) / steps
        measured.append(seconds)
    return measured


def roofline(rounds, steps):
    """Rows: the best rates that large operations reach, all cores at work."""
    import tensorflow as tf

    rng = np.random.default_rng(0)

    def random(*shape):
        return tf.constant(rng.standard_normal(shape, np.float32))

    n, maps, width = 3072, (32, 28, 28), 256
    matrices = random(n, n), random(n, n)
    convolution = random(*maps, width), random(3, 3, width, width)
    operations = {
        "matrix product": (tf.matmul, matrices, 2 * n**3),
        "convolution 3x3": (
            lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"),
            convolution,
            2 * int(np.prod(maps)) * width * width * 9,
        ),
    }
    functions, work = {}, {}
    for name, (operation, arguments, flops) in operations.items():
        for dtype in ("float32", "bfloat16"):
            cast = [tf.cast(x, dtype) for x in arguments]
            label = f"{name}, {dtype}"
            compiled = tf.function(operation)
            functions[label] = lambda f=compiled, x=cast: f(*x)
            work[label] = flops
    source = np.ones(2**26, np.float32)
    target = np.zeros_like(source)
    functions["copy"] = lambda: copy(source, target)
    work["copy"] = 2 * source.nbytes  # read and written
    measured = time_in_turns(functions, rounds, steps)
    table = []
    for name in functions:
        rates = [work[name] / seconds[name] / 1e9 for seconds in measured]
        unit = "GB/s" if name == "copy" else "GFLOP/s"
        table.append(
            {
                "operation": name,
                "median": f"{statistics.median(rates):.0f} {unit}",
                "best": f"{max(rates):.0f} {unit}",
            }
        )
    return table


def copy(source, target):
    """Copies an array by as many threads as there are cores."""
    pairs = zip(
        *(np.array_split(x, os.cpu_count()) for x in (target, source)),
        strict=True,
    )
    threads = [threading.Thread(target=np.copyto, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
