"""The weights of an `Encoder` under PyTorch's names."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np

from seed_tf.checkpoints.layouts import Contents
from seed_tf.encoders import Encoder

# A parameter of a PyTorch module: the attribute of the Keras layer, and which
# axis of the Keras weight each of PyTorch's axes is.
_BATCH_NORM: dict[str, tuple[str, tuple[int, ...]]] = {
    "weight": ("gamma", (0,)),
    "bias": ("beta", (0,)),
    "running_mean": ("moving_mean", (0,)),
    "running_var": ("moving_variance", (0,)),
}
_PARAMETERS: dict[type, dict[str, tuple[str, tuple[int, ...]]]] = {
    keras.layers.Conv2D: {
        "weight": ("kernel", (3, 2, 0, 1)),
        "bias": ("bias", (0,)),
    },
    keras.layers.DepthwiseConv2D: {"weight": ("kernel", (2, 3, 0, 1))},
    keras.layers.Dense: {"weight": ("kernel", (1, 0)), "bias": ("bias", (0,))},
    keras.layers.BatchNormalization: _BATCH_NORM,
}


def parameters(
    encoder: Encoder,
) -> dict[str, tuple[keras.Variable, tuple[int, ...]]]:
    """Returns all weights of an encoder by the keys of a state dict.

    Args:
        encoder: `Encoder` with a backbone of this library.

    Returns:
        Dict of pairs (keras.Variable, axes). The value, transposed by the
        axes, is PyTorch's tensor.

    Raises:
        ValueError: if a weight has no place in a published layout.
    """
    layers = list(encoder.backbone.layers)
    efficientnet = any(layer.name == "conv_stem" for layer in layers)
    if encoder.head is not None:
        layers += encoder.head.layers
    found, left = {}, {id(w): w.path for w in encoder.weights}
    for layer in layers:
        module = _module(layer.name, efficientnet)
        for name, (attribute, axes) in _PARAMETERS.get(type(layer), {}).items():
            variable = getattr(layer, attribute)
            if variable is not None:
                found[f"{module}.{name}"] = variable, axes
                del left[id(variable)]
    if left:
        raise ValueError(
            "Only the backbones of seed_tf.backbone have a published PyTorch "
            f"layout. Received: {encoder.backbone.name!r} with "
            f"{', '.join(sorted(left.values())[:4])}."
        )
    return found


def misfits(contents: Contents, wanted: dict[str, Any]) -> dict[str, list[str]]:
    """Finds the reasons why a file's tensors do not fit an encoder.

    Args:
        contents: `Contents`.
        wanted: the result of `parameters`.

    Returns:
        Dict of lists: "missing" keys, "unknown" keys, keys of another "shape",
        and keys with "values" that cannot be weights. All lists are empty if
        the file fits.
    """
    tensors, keys = contents.tensors, contents.keys
    shapes, values = [], []
    for name in tensors.keys() & wanted.keys():
        variable, axes = wanted[name]
        shape = tuple(variable.shape[axis] for axis in axes)
        if tensors[name].shape != shape:
            shapes.append(
                f"{keys[name]!r} must have shape {shape}, and has "
                f"{tensors[name].shape}"
            )
        elif problem := _problem(name, tensors[name]):
            values.append(f"{keys[name]!r} {shape} {problem}")
    return {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "unknown": sorted(keys[x] for x in tensors.keys() - wanted.keys()),
        "shape": sorted(shapes),
        "values": sorted(values),
    }


def assign(contents: Contents, wanted: dict[str, Any]) -> None:
    """Gives an encoder the tensors of a file that fits."""
    for name, (variable, axes) in wanted.items():
        array = contents.tensors[name].transpose(np.argsort(axes))
        variable.assign(array.astype(_precision(array)))


def state_dict(encoder: Encoder) -> dict[str, np.ndarray]:
    """Returns an encoder's weights as a PyTorch state dict.

    Returns:
        Dict of NumPy arrays by key, in the order of the layers, with the
        counters that PyTorch's BatchNorm has.
    """
    arrays = {}
    for key, (variable, axes) in parameters(encoder).items():
        value = keras.ops.convert_to_numpy(variable)
        arrays[key] = value.astype(_precision(value)).transpose(axes)
        if key.endswith(".running_var"):
            counter = key.replace("running_var", "num_batches_tracked")
            arrays[counter] = np.zeros((), np.int64)
    return arrays


def _module(layer, efficientnet):
    """The PyTorch module that a layer is named after."""
    if layer.startswith("fc_") or not efficientnet:
        return layer.replace("_", ".")
    block = re.match(r"blocks_(\d+)_", layer)
    return (
        f"_blocks.{block[1]}._{layer[block.end() :]}" if block else f"_{layer}"
    )


def _precision(array):
    """float64 stays, all else becomes float32."""
    return np.float64 if array.dtype == np.float64 else np.float32


def _problem(name, array):
    if not np.issubdtype(array.dtype, np.floating):
        return f"must be floating-point numbers, and is {array.dtype}"
    # Also false for NaN.
    bad = array.size - (np.abs(array) <= np.finfo(np.float32).max).sum()
    if bad:
        return f"has {bad:,} values that are NaN or infinite"
    if name.endswith(".running_var") and array.min(initial=0) < 0:
        return "has negative variances"
    return None
