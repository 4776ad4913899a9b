"""Our networks compared with the published ones in PyTorch, block by block.

PyTorch's networks share nothing with our layers but the names of weights. The
first block that differs shows where our network is not the published one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import numpy as np

from seed_tf.checkpoints.layouts import Contents
from seed_tf.encoders import Encoder

if TYPE_CHECKING:
    from torch import Tensor


def compare_blocks(
    encoder: Encoder, contents: Contents, images: np.ndarray
) -> list[tuple[str, float, float]]:
    """Returns the differences between an encoder and PyTorch by block.

    Args:
        encoder: `Encoder` that was built from `contents`.
        contents: a recognised state dict.
        images: `[B, H, W, 3]` uint8.

    Returns:
        Tuples (block, alone, together), relative differences of the block's
        outputs in Frobenius norm: alone, if PyTorch's block has the inputs of
        Keras's block; together, if PyTorch runs from the image on.

    Raises:
        ImportError: without PyTorch.
    """
    import torch

    from seed_tf.conversion import torch_networks

    backbone = encoder.backbone
    steps = blocks(contents.tensors, backbone, contents.stem)
    ends = [backbone.get_layer(end).output for end, _ in steps]
    x = encoder.rescaling(images)
    outputs = keras.Model(backbone.input, ends)(x, training=False)
    with torch.inference_mode():
        before = together = _from_keras(x)
        rows = []
        for (end, block), output in zip(steps, outputs, strict=True):
            output, alone = _from_keras(output), block(before)
            together = block(together)
            rows.append(
                (end, _difference(output, alone), _difference(output, together))
            )
            before = output
        if together.ndim == 4:
            before, together = before.mean((2, 3)), together.mean((2, 3))
        if encoder.head is not None:
            output = torch.from_numpy(np.array(encoder(images)))
            head = torch_networks.head_of(contents.tensors)
            alone, together = head(before), head(together)
            rows.append(
                (
                    "head",
                    _difference(output, alone),
                    _difference(output, together),
                )
            )
    return rows


def blocks(
    tensors: dict[str, np.ndarray],
    backbone: keras.Model,
    stem: str = "imagenet",
) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """Returns the blocks of a published network in PyTorch, in order.

    Args:
        tensors: NumPy arrays by canonical key.
        backbone: the Keras model that was built from them.
        stem: of a ResNet, see `seed_tf.encoders.resnet.STEMS`.

    Returns:
        Pairs of the name of the Keras layer in which a block ends, and the
        function of PyTorch tensors that computes the same.
    """
    from seed_tf.conversion import torch_networks

    layers = [layer.name for layer in backbone.layers]
    pooled = "maxpool" in layers
    same = pooled and backbone.get_layer("maxpool").padding == "same"
    net = torch_networks.backbone_of(tensors, stem=stem, same_pool=same)
    if "conv1.weight" in tensors:
        start = [net.conv1, net.bn1, net.relu]
        start += [net.maxpool] if pooled else []
        return [
            ("maxpool" if pooled else "relu", _sequence(*start)),
            *[
                (f"layer{stage}_{i}_relu", block)
                for stage in (1, 2, 3, 4)
                for i, block in enumerate(net.get_submodule(f"layer{stage}"))
            ],
        ]
    if "_conv_stem.weight" in tensors:
        return [
            ("bn0_swish", net.stem),
            *[
                (_end(backbone, f"blocks_{i}_"), block)
                for i, block in enumerate(net._blocks)
            ],
            ("bn1_swish", net.last),
        ]
    first, *others = net.features
    return [
        ("features_0_2", first),
        *[
            (_end(backbone, f"features_{i}_"), block)
            for i, block in enumerate(others, 1)
        ],
        ("conv_2", net.conv),
        ("classifier_0", _sequence(net.avgpool, net.flat, net.classifier)),
    ]


def _from_keras(x: object) -> Tensor:
    import torch

    x = np.array(x)
    return torch.from_numpy(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x)


def _difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def _sequence(*modules: Callable[[Tensor], Tensor]) -> Callable:
    """Returns the function that calls one after the other."""
    return lambda x: functools.reduce(lambda y, module: module(y), modules, x)


def _end(backbone: keras.Model, prefix: str) -> str:
    """Returns the name of the last layer of a block."""
    names = [x.name for x in backbone.layers if x.name.startswith(prefix)]
    return names[-1]
