"""A training step of SEED against the authors' algorithm in PyTorch.

    python -m benchmarks.step --check
    python -m benchmarks.step --output=runs/step
    python -m benchmarks.step --profile
    python -m benchmarks.step --roofline

Teacher ResNet-50, queue of 65,536, SGD with momentum; students by case:

    a  MobileNetV3-Large, 224 px, batch 16
    b  ResNet-18, 224 px, batch 16
    c  ResNet-18, 32 px, batch 256
    d  EfficientNet-B0, 224 px, batch 16

Ours is README's call: networks, `SEED`, `compile` and whole calls of `fit` of
three short epochs, which choose all by themselves, on uint8 images from memory;
`views` pass them on as they are. "Compiled step alone" is the same step without
Keras's loop and without a data set. PyTorch's side (`benchmarks.torch_seed`)
gets the same images normalised beforehand, in the layout it prefers; of its
ways, those contend that the processor has units for. "View cache" is ours with
the teacher's embeddings from memory. Both sides use all cores. Each contender
is a process, and at most seven are resident: first PyTorch's ways contend, then
the authors' own (with stock and tuned malloc) and the fastest of the others
take turns with ours.
"""

import contextlib
import json
import os

import numpy as np
from absl import app, flags

from benchmarks import cases, profiling, timing
from benchmarks.cases import (
    CASES,
    Case,
    model,
    random_images,
    with_embeddings,
)

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("case", list(CASES), list(CASES), "What to time.")
flags.DEFINE_multi_string(
    "precision",
    ["auto"],
    "In which our student trains; each is a contender.",
)
flags.DEFINE_multi_string(
    "torch",
    [],
    "PyTorch's ways by name, in place of those that the processor has units "
    "for; the authors' own is always one.",
)
flags.DEFINE_string("teacher", "resnet50", "A backbone.")
flags.DEFINE_integer("queue_size", 65536, "K, a multiple of the batch.", 1)
flags.DEFINE_integer("batch", None, "In place of the cases' own.", 1)
flags.DEFINE_integer("size", None, "Pixels, in place of the cases' own.", 1)
flags.DEFINE_integer("rounds", 8, "Turns of each contender.", 1)
flags.DEFINE_integer("steps", 4, "Steps in a turn.", 1)
flags.DEFINE_integer("warm_up", 4, "Steps before the first round.", 1)
flags.DEFINE_bool("check", False, "Only compare losses with PyTorch's.")
flags.DEFINE_bool("profile", False, "Only time the parts of our step.")
flags.DEFINE_bool("roofline", False, "Only measure the machine.")
flags.DEFINE_string("output", None, "Where to write .json and .md, a stem.")
flags.DEFINE_string("worker", None, "Internal: a contender, as JSON.")

STOCK = "PyTorch as the authors run it, stock malloc"
AUTHORS = "PyTorch as the authors run it, tuned malloc"
_FAST = {"channels_last": True, "fused": True}
# `torch_seed.Options` by contender; all with tuned malloc.
TORCH = {
    AUTHORS: {},
    "PyTorch float32, channels_last": _FAST,
    "PyTorch float32, torch.compile": {**_FAST, "compile": True},
    "PyTorch float32, teacher folded": {**_FAST, "fold": True},
    "PyTorch autocast bfloat16": {**_FAST, "autocast": True},
    "PyTorch autocast bfloat16, torch.compile": {
        **_FAST,
        "autocast": True,
        "compile": True,
    },
    "PyTorch autocast bfloat16, teacher folded": {
        **_FAST,
        "autocast": True,
        "teacher": "bfloat16",
        "fold": True,
    },
    "PyTorch, teacher bfloat16": {**_FAST, "teacher": "bfloat16"},
    "PyTorch, teacher bfloat16 and folded": {
        **_FAST,
        "teacher": "bfloat16",
        "fold": True,
    },
}


# -- Contenders ------------------------------------------------------------


def contender(case, environment=None, **kind):
    """What starts a worker; `kind` holds arguments of `work`."""
    spec = {"case": case, **kind}
    return lambda: timing.Worker("benchmarks.step", spec, environment)


def work(case, torch=None, precision="auto", cached=False, run="fit_in_turns"):
    """Takes turns: PyTorch's step by options `torch`, or ours.

    Args:
        run: str, a function of `benchmarks.cases`.
    """
    case = Case(*case)
    if torch is not None:
        work_torch(case, torch)
    images = random_images(case)
    batches = with_embeddings(images) if cached else images
    getattr(cases, run)(model(case, precision), batches)


def work_torch(case, options):
    import torch

    from benchmarks import torch_seed

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    step = torch_seed.Step(
        torch_seed.network(case.student),
        torch_seed.network(case.teacher),
        torch_seed.random_queue(case.queue_size),
        torch_seed.Options(**options),
    )
    batches = [
        step.put(torch_seed.normalised(images))
        for images in random_images(case)
    ]
    turns = timing.Turns()
    while True:
        for images in batches:
            turns.before_step()
            step(images)
            turns.after_step()


# -- Comparison ------------------------------------------------------------


def compare(case):
    """Rounds of all contenders, a dict for JSON."""
    tuned = timing.TUNED_MALLOC
    with contextlib.ExitStack() as stack:
        torch, failed = timing.start(
            stack,
            {k: contender(case, tuned, torch=TORCH[k]) for k in torch_ways()},
            FLAGS.warm_up,
        )
        first, peaks = timing.take_turns(torch, FLAGS.rounds, FLAGS.steps)
        seconds = timing.medians(first)
        fastest = min(seconds, key=seconds.get)
        kept = {name: torch[name] for name in dict.fromkeys([AUTHORS, fastest])}
        for name in torch.keys() - kept.keys():
            torch[name].close()
        ours = {
            "seed_tf, README's call": contender(case, run="whole_fits"),
            "seed_tf, README's call, view cache": contender(
                case, run="whole_fits", cached=True
            ),
        }
        for policy in FLAGS.precision:
            name = f"seed_tf, compiled step alone, {policy}"
            ours[name.removesuffix(", auto")] = contender(
                case, run="steps_alone", precision=policy
            )
        others, more_failed = timing.start(
            stack, {STOCK: contender(case, torch={}), **ours}, FLAGS.warm_up
        )
        second, more_peaks = timing.take_turns(
            {**others, **kept}, FLAGS.rounds, FLAGS.steps
        )
    return {
        "case": case._asdict(),
        "fastest": fastest,
        "failed": failed | more_failed,
        "peak_mb": peaks | more_peaks,
        "rounds": {"PyTorch": first, "all": second},
    }


def torch_ways():
    """Names of PyTorch's contenders on this processor."""
    from seed_tf.acceleration import hardware

    short = hardware.current().bfloat16
    fitting = [
        name
        for name, options in TORCH.items()
        if ("bfloat16" in name) == short or options == _FAST
    ]
    return list(dict.fromkeys([AUTHORS, *(FLAGS.torch or fitting)]))


def rows(result):
    """A table of `compare`'s result."""
    blocks, fastest = result["rounds"], result["fastest"]
    batch = result["case"]["batch"]
    table = []
    for block, baselines in (
        ("all", {"stock": STOCK, "tuned": AUTHORS, "fastest": fastest}),
        ("PyTorch", {"stock": None, "tuned": AUTHORS, "fastest": fastest}),
    ):
        rounds = blocks[block]
        seconds = timing.medians(rounds)
        ratios = {
            head: timing.ratios(rounds, name)
            for head, name in baselines.items()
            if name in seconds
        }
        for name in sorted(seconds, key=seconds.get, reverse=True):
            if block == "PyTorch" and name in blocks["all"][0]:
                continue
            row = {
                "contender": name + " (fastest)" * (name == fastest),
                "ms": f"{1000 * seconds[name]:.0f}",
                "images/s": f"{batch / seconds[name]:.1f}",
            }
            for head in baselines:
                row[f"to {head}"] = "-"
                if head in ratios:
                    middle, low, high = ratios[head][name]
                    row[f"to {head}"] = f"{middle:.2f} ({low:.2f}-{high:.2f})"
            row["peak MB"] = f"{result['peak_mb'][name]:.0f}"
            table.append(row)
    return table


def describe(case):
    return (
        f"{case.student} <- {case.teacher}, {case.size} px, batch "
        f"{case.batch}, K {case.queue_size:,}"
    )


# -- Check -----------------------------------------------------------------


def check(case, steps=3):
    """Losses of both sides from the same weights, queue and images.

    Dropout, of which each framework has its own, is off, and our teacher in
    float32.

    Returns:
        float array `[steps, 2]`, ours and PyTorch's.
    """
    import keras
    import tensorflow as tf
    import torch

    from benchmarks import torch_seed

    ours = model(case, "float32", teacher_precision="float32")
    for layer in ours.student.backbone.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    student = torch_seed.network_of(case.student, ours.student)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    step = torch_seed.Step(
        student,
        torch_seed.network_of(case.teacher, ours.teacher),
        torch.from_numpy(ours.queue.embeddings.numpy().T.copy()),
    )
    batches = random_images(case, steps)
    losses = []
    for images in batches:
        data = tf.data.Dataset.from_tensors(images)
        history = ours.fit(data, verbose=0).history
        losses.append((history["loss"][0], step(torch_seed.normalised(images))))
    return np.array(losses)


# -- Command line ----------------------------------------------------------


def chosen_cases():
    changes = {
        "teacher": FLAGS.teacher,
        "queue_size": FLAGS.queue_size,
        "batch": FLAGS.batch,
        "size": FLAGS.size,
    }
    changes = {k: v for k, v in changes.items() if v is not None}
    return {name: CASES[name]._replace(**changes) for name in FLAGS.case}


def main(_):
    if FLAGS.worker:
        work(**json.loads(FLAGS.worker))
        return
    machine = timing.machine("tensorflow", "keras", "torch")
    results = {"machine": machine, "cases": {}}
    text = ["; ".join(f"{k}: {v}" for k, v in machine.items())]
    print(text[0], flush=True)

    def say(title, table):
        text.append(f"## {title}\n\n{timing.markdown(table)}")
        print(f"\n{text[-1]}", flush=True)

    if FLAGS.roofline or FLAGS.profile:
        results["roofline"] = profiling.roofline(FLAGS.rounds, FLAGS.steps)
        say("The machine", results["roofline"])
    for name, case in chosen_cases().items():
        title = f"{name}: {describe(case)}"
        if FLAGS.check:
            small = case._replace(
                size=FLAGS.size or 64,
                batch=FLAGS.batch or 8,
                queue_size=min(case.queue_size, 256),
            )
            losses = check(small)
            say(
                f"{name}: {describe(small)}",
                [
                    {"seed_tf": f"{a:.6f}", "PyTorch": f"{b:.6f}"}
                    for a, b in losses
                ],
            )
            results["cases"][name] = losses.tolist()
        elif FLAGS.profile:
            results["cases"][name] = {}
            for precision in FLAGS.precision:
                tables = profiling.profile(
                    case, precision, FLAGS.rounds, FLAGS.steps, FLAGS.warm_up
                )
                results["cases"][name][precision] = tables
                for table in tables:
                    say(f"{title}, student {precision}", table)
        elif not FLAGS.roofline:
            results["cases"][name] = result = compare(case)
            say(title, rows(result))
        if FLAGS.output:
            timing.write(FLAGS.output, results, "\n\n".join(text) + "\n")


if __name__ == "__main__":
    app.run(main)
