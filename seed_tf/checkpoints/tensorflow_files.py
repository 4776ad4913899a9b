"""Checkpoints that TensorFlow 1 wrote: SimCLR's."""

import contextlib
import os
import re

import numpy as np
import tensorflow as tf

# Kernel sizes of the convolutions in the order of their numbers: the stem,
# then per stage a block with a projection before its three convolutions, and
# blocks without.
_BOTTLENECKS = re.compile(r"7" + r"1131((?:131)*)" * 4)
_VARIABLE = re.compile(
    r"base_model/(conv2d|batch_normalization)(?:_(\d+))?/(\w+)"
)
_PARAMETERS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def find(path: str) -> str | None:
    """Returns the prefix of a TensorFlow checkpoint's files, or None.

    Args:
        path: the prefix itself, its `.index` file, or a folder with a
            `checkpoint` file or a single `.index` file.
    """
    if os.path.isdir(path):
        latest = tf.train.latest_checkpoint(path)
        found = [x for x in os.listdir(path) if x.endswith(".index")]
        if latest is None and len(found) == 1:
            latest = os.path.join(path, found[0].removesuffix(".index"))
        return latest
    prefix = path.removesuffix(".index")
    return prefix if os.path.isfile(f"{prefix}.index") else None


def read(prefix: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a ResNet of google-research/simclr under torchvision's names.

    Args:
        prefix: str, of the checkpoint's files.

    Returns:
        Pair of the arrays by torchvision's names and in PyTorch's order of
        axes, and the names of the variables that are left out, which are
        heads, step and optimiser, each with an empty text.

    Raises:
        ValueError: if the files are damaged, or hold another network.
    """
    with _damage_named(prefix):
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
        kinds = reader.get_variable_to_dtype_map()
    _check_size(prefix, shapes, kinds)
    with _damage_named(prefix):
        variables = {name: reader.get_tensor(name) for name in _used(shapes)}
    names = _names(prefix, variables)
    arrays = {}
    for name, array in variables.items():
        layer, number, parameter = _parts(name)
        conv, bn = names.get(int(number or 0), (name, name))
        module = conv if layer == "conv2d" else bn
        if parameter == "kernel":
            array = array.transpose(3, 2, 0, 1)
        arrays[f"{module}.{_PARAMETERS[parameter]}"] = array
    return arrays, dict.fromkeys(sorted(shapes.keys() - variables.keys()), "")


@contextlib.contextmanager
def _damage_named(prefix):
    try:
        yield
    except Exception as error:
        # TensorFlow raises its own errors, IndexError and more.
        raise ValueError(
            f"{prefix!r} is no whole TensorFlow checkpoint: {error}"
        ) from error


def _parts(name):
    """Returns layer, number (None for the first) and parameter of a name."""
    found = _VARIABLE.fullmatch(name)
    return found.groups() if found else (None, None, None)


def _used(shapes):
    return [name for name in shapes if _parts(name)[2] in _PARAMETERS]


def _check_size(prefix, shapes, kinds):
    """Refuses variables that are larger than the files they are in."""
    folder, base = os.path.split(prefix)
    stored = sum(
        os.path.getsize(os.path.join(folder, name))
        for name in os.listdir(folder or ".")
        if name.startswith(f"{base}.data-")
    )
    declared = sum(
        int(np.prod(shape, dtype=object)) * kinds[name].size
        for name, shape in shapes.items()
    )
    if declared > stored:
        raise ValueError(
            f"{prefix!r} is refused: its variables declare {declared:,} bytes, "
            f"and its data files have {stored:,}."
        )


def _names(prefix, variables):
    """Returns torchvision's (convolution, BatchNorm) by number."""
    kernels = sorted(
        (int(number or 0), array.shape[0])
        for name, array in variables.items()
        for layer, number, _ in [_parts(name)]
        if layer == "conv2d"
    )
    sizes = "".join(str(size) for _, size in kernels)
    stages = _BOTTLENECKS.fullmatch(sizes)
    if stages is None or [n for n, _ in kernels] != list(range(len(kernels))):
        raise ValueError(
            f"{prefix!r} is no ResNet of SimCLR v1 with bottlenecks: expected "
            "variables base_model/conv2d/kernel, base_model/conv2d_1/kernel "
            "and so on, with kernels 7, then per stage 1 1 3 1 and any number "
            f"of 1 3 1. Received: {len(kernels)} such variables, with kernels "
            f"{' '.join(sizes) or 'none'}. (Version 2 and TensorFlow 2 "
            "checkpoints have other names and blocks.)"
        )
    names = [("conv1", "bn1")]
    for stage, repeats in enumerate(stages.groups(), 1):
        for i in range(1 + len(repeats) // 3):
            block = f"layer{stage}.{i}"
            if i == 0:
                names.append((f"{block}.downsample.0", f"{block}.downsample.1"))
            names += [(f"{block}.conv{n}", f"{block}.bn{n}") for n in (1, 2, 3)]
    return dict(enumerate(names))
