"""The study of `benchmarks.cifar10`, longer, on a GPU without TensorFlow.

XLA compiles for the GPU what TensorFlow traced elsewhere: whole training steps,
with views, both networks, loss, queue and optimiser. Where TensorFlow is,

    python -m benchmarks.cifar10_gpu --data_dir=cifar10 \\
        --output=runs/cifar10_gpu --write=programs

writes them: of the teacher and of MoCo v2 alone, or of SEED once the teacher
is in `--output`. `benchmarks.train_gpu` trains them where the GPU is, with JAX,
and the same command with `--read=trained` instead of `--write` takes the
trained networks in. After both rounds, without either, it evaluates them.

Settings are those of `benchmarks.cifar10` but for batch, epochs, and the
teacher, which sees its images at full size (stem "cifar").
"""

import dataclasses
import json
import os
import pathlib

import numpy as np
from absl import app, flags

from benchmarks import cifar10, hlo_step

FLAGS = flags.FLAGS
flags.DEFINE_string("write", None, "Folder for programs.")
flags.DEFINE_string("read", None, "Folder that train_gpu has written.")
flags.DEFINE_integer("batch_size", 512, "Images.", 1)
flags.DEFINE_float(
    "teacher_temperature", 0.07, "As experiments.advise recommends."
)
# The teacher's as the paper's; `train_gpu --seconds` may give fewer.
FLAGS.set_default("epochs", 100)
FLAGS.set_default("teacher_epochs", 200)

STUDENTS = ("mobilenet_v3_large", "resnet18")


def runs():
    """Some of those of `benchmarks.cifar10`, with our settings."""
    for run in cifar10.runs():
        if run.name.startswith("ablation") or run.student not in STUDENTS:
            continue
        changed = {"batch_size": FLAGS.batch_size}
        if run.launcher == "distill":
            changed["teacher_temperature"] = FLAGS.teacher_temperature
        yield dataclasses.replace(run, flags=run.flags | changed)


def stem(run):
    return "cifar" if run.name == "teacher" else "imagenet"


def student_file(run):
    return pathlib.Path(cifar10.folder(run.name), "student.keras")


def write(folder):
    """Writes the programs of all runs that can be trained now."""
    import keras

    import seed_tf
    from seed_tf.acceleration import hardware

    folder.mkdir(parents=True)
    with hardware.assume(hlo_step.gpu()):
        teacher, *others = runs()
        trained = student_file(teacher).exists()
        launcher = "distill" if trained else "pretrain"
        chosen = [run for run in (teacher, *others) if run.launcher == launcher]
        for run in chosen:
            print(f"Writing {run.name} ...", flush=True)
            keras.utils.set_random_seed(0)
            keras.mixed_precision.set_global_policy("mixed_bfloat16")
            model = build(
                run,
                seed_tf.checkpoints.load_encoder(student_file(teacher))
                if trained
                else None,
            )
            write_step(model, run, folder)


def build(run, teacher=None):
    """The model of a run, on no data yet."""
    from seed_tf import config, recipes, training

    kind = config.DistillConfig if teacher else config.PretrainConfig
    network = "student" if teacher else "encoder"
    names = config.types_of(kind)
    settings = {k: v for k, v in run.flags.items() if k in names}
    settings |= {network: run.student, "stem": stem(run)}
    model = recipes.build(kind(**settings), teacher)
    model.compile(training.SGD(0.1))
    model.optimizer.build(model.trainable_variables)
    return model


def write_step(model, run, folder):
    import tensorflow as tf

    from seed_tf import training

    encoder = getattr(model, "encoder", None) or model.student
    for network in (encoder, getattr(model, "momentum_encoder", encoder)):
        hlo_step.redraw(network.weights)

    def step(images, rate):
        for metric in model.metrics:  # which log running means
            metric.reset_state()
        model.optimizer.learning_rate.assign(rate)
        return model.train_step(images)["loss"]

    size, batch = run.flags["image_size"], run.flags["batch_size"]
    arguments = [
        tf.zeros([batch, size, size, 3], tf.uint8),
        tf.constant(0.1),
    ]
    compiled = tf.function(step, jit_compile=True, autograph=False)
    places = hlo_step.write(compiled, arguments, folder / run.name)
    epochs, points = run.flags["epochs"], 1000
    rate = training.warmup_cosine(
        batch_size=batch,
        steps_per_epoch=points,
        epochs=epochs,
        warmup_epochs=run.flags["warmup_epochs"],
        rate_per_256=run.flags["learning_rate"],
    )
    notes = {
        "run": run.flags | {"stem": stem(run)},
        "batch": batch,
        "epochs": epochs,
        "seed": 0,
        # From the first step to the last, however many these are.
        "rates": [float(rate(i * epochs)) for i in range(points + 1)],
        "weights": {
            i: places[weight.value.handle.ref()]
            for i, weight in enumerate(encoder.weights)
            if weight.value.handle.ref() in places
        },
    }
    (folder / f"{run.name}.json").write_text(json.dumps(notes))


def read(folder):
    """Saves what was trained as encoders."""
    import seed_tf

    for run in runs():
        path = folder / f"{run.name}.npz"
        if not path.exists():
            continue
        encoder = seed_tf.Encoder(run.student, stem=stem(run))
        encoder(np.zeros((1, *2 * [run.flags["image_size"]], 3), "float32"))
        with np.load(path) as trained:
            for name in trained.files:
                index = int(name.partition("_")[2])
                encoder.weights[index].assign(trained[name])
        file = student_file(run)
        os.makedirs(file.parent, exist_ok=True)
        encoder.save(file)
        notes = (folder / f"{run.name}.json").read_text()
        (file.parent / "trained.json").write_text(notes)
        print(f"{file}, {len(trained.files)} weights", flush=True)


def main(_):
    if FLAGS.write:
        write(pathlib.Path(FLAGS.write))
    elif FLAGS.read:
        read(pathlib.Path(FLAGS.read))
    else:
        cifar10.conclude(list(runs()))


if __name__ == "__main__":
    app.run(main)
