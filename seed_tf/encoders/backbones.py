"""Backbones by name."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable

import keras

from seed_tf.encoders.efficientnet import efficientnet
from seed_tf.encoders.mobilenet_v3 import mobilenet_v3_large
from seed_tf.encoders.resnet import resnet

_resnet50 = functools.partial(resnet, depths=(3, 4, 6, 3), bottleneck=True)

BACKBONES: dict[str, Callable[..., keras.Model]] = {
    "resnet18": functools.partial(resnet, depths=(2, 2, 2, 2)),
    "resnet34": functools.partial(resnet, depths=(3, 4, 6, 3)),
    "resnet50": _resnet50,
    "resnet101": functools.partial(
        resnet, depths=(3, 4, 23, 3), bottleneck=True
    ),
    "resnet152": functools.partial(
        resnet, depths=(3, 8, 36, 3), bottleneck=True
    ),
    "resnet50w2": functools.partial(_resnet50, width=2 * 64),
    "resnet50w4": functools.partial(_resnet50, width=4 * 64),
    "resnet50w5": functools.partial(_resnet50, width=5 * 64),
    "mobilenet_v3_large": mobilenet_v3_large,
    "efficientnet_b0": functools.partial(
        efficientnet, depth=1.0, native_size=224
    ),
    "efficientnet_b1": functools.partial(
        efficientnet, depth=1.1, native_size=240
    ),
}


def backbone(name: str, *, stem: str = "imagenet") -> keras.Model:
    """Returns a network of the paper, untrained and without its classifier.

    Args:
        name: str, one of "resnet18", "resnet34", "resnet50", "resnet101",
            "resnet152", "resnet50w2", "resnet50w4", "resnet50w5" (2, 4 and 5
            times as wide), "mobilenet_v3_large", "efficientnet_b0",
            "efficientnet_b1".
        stem: "imagenet", or "cifar" for small images. With "cifar" the first
            convolution has stride 1, and for a ResNet it is 3x3 and no
            max-pooling follows.

    Returns:
        Functional keras.Model of float images `[B, H, W, 3]` of any size,
        already normalised (`Encoder` normalises). ResNets give feature maps
        `[B, h, w, C]`. The other networks pool and give `[B, 1280]`.

    Raises:
        ValueError: if the name or the stem is unknown.

    Example:

    >>> seed_tf.backbone("resnet18").output_shape
    (None, None, None, 512)
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(str(name), BACKBONES, n=1)
        raise ValueError(
            f"`name` must be one of {', '.join(BACKBONES)}. "
            f"Received: name={name!r}."
            + "".join(f' Did you mean "{n}"?' for n in near)
        )
    if stem not in ("imagenet", "cifar"):
        raise ValueError(
            f'`stem` must be "imagenet" or "cifar". Received: stem={stem!r}.'
        )
    return BACKBONES[name](name, stem=stem)
