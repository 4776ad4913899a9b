"""What tests of whole runs share."""

import contextlib
import importlib
import io
import os
import pathlib
import socket
import sys

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

import seed_tf
from seed_tf.cli import main


def command(*words, code=0):
    """Runs a command in this process, as `seed-tf` does.

    Args:
        *words: the command line after the program's name.
        code: the exit status to expect.

    Returns:
        What the command printed, errors included.

    Raises:
        AssertionError: if the command ends with another exit status.
    """
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        ended = main.run(words)
    if ended != code:
        raise AssertionError(f"{ended}: {printed.getvalue()[-4000:]}")
    return printed.getvalue()


@contextlib.contextmanager
def imported_benchmark(name):
    """Gives a benchmark, whose flags stand in for those of others meanwhile.

    The flags of benchmarks are the process's: two cannot define one of a name.
    """
    others = []
    for flag in list(flags.FLAGS):
        module = flags.FLAGS.find_module_defining_flag(flag, "")
        if module.startswith("benchmarks."):
            others.append((module, flags.FLAGS[flag]))
            delattr(flags.FLAGS, flag)
    known = {key: x for key, x in sys.modules.items() if key == name}
    sys.modules.pop(name, None)
    try:
        module = importlib.import_module(name)
        yield module
    finally:
        for flag in list(flags.FLAGS):
            if flags.FLAGS.find_module_defining_flag(flag, "") == name:
                delattr(flags.FLAGS, flag)
        for module_name, flag in others:
            flags.FLAGS[flag.name] = flag
            flags.FLAGS.register_flag_by_module(module_name, flag)
        sys.modules.update(known)


def pictures(folder, count, size=20):
    """Writes images to a folder; returns it."""
    rng = np.random.default_rng(0)
    os.makedirs(folder)
    for i in range(count):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((size + 4, size))
        image.save(os.path.join(folder, f"{i}.jpg"))
    return folder


def tiny_teacher(path):
    """Writes a teacher of a few weights; returns its path."""
    keras.utils.set_random_seed(3)
    backbone = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(6, 3, strides=4, activation="relu"),
        ]
    )
    seed_tf.Encoder(backbone, embedding_dim=16).save(path)
    return path


def newest(output):
    """The step of a run's newest checkpoint, 0 without one."""
    names = (pathlib.Path(output) / "checkpoints").glob("step-?????????")
    return max((int(path.name[5:]) for path in names), default=0)


def state(output):
    """All tensors of a run's newest checkpoint, by name."""
    folder = os.path.join(output, "checkpoints", f"step-{newest(output):09d}")
    reader = tf.train.load_checkpoint(os.path.join(folder, "state"))
    names = reader.get_variable_to_shape_map()
    return {n: reader.get_tensor(n) for n in names if "OBJECT_GRAPH" not in n}


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
