"""ResNets in torchvision's layout, which published checkpoints share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras

from seed_tf.encoders.layers import conv_bn


class Stem(NamedTuple):
    """The first convolution, and whether 3x3 max-pooling of stride 2 follows.

    `size` and `padding` are in pixels, `padding` on every side.
    """

    size: int
    stride: int
    padding: int
    pool: bool


# State dicts of different stems can look alike. "cifar" is SimCLR's,
# "cifar_padding_2" solo-learn's.
STEMS = {
    "imagenet": Stem(7, 2, 3, pool=True),
    "cifar": Stem(3, 1, 1, pool=False),
    "cifar_padding_2": Stem(3, 1, 2, pool=False),
    "cifar_pool": Stem(3, 1, 1, pool=True),
    "stride_2": Stem(3, 2, 1, pool=False),
    "stride_2_pool": Stem(3, 2, 1, pool=True),
}


def resnet(
    name: str,
    *,
    depths: Sequence[int],
    bottleneck: bool = False,
    width: int = 64,
    stem: str,
    pool_padding: str = "symmetric",
) -> keras.Model:
    """Returns a ResNet without its classifier.

    As in torchvision, the stride of a bottleneck is on its 3x3 convolution,
    padding is symmetric, BatchNorm has epsilon 1e-5, and the last gamma of a
    residual branch starts at 1. A wide ResNet multiplies every width, also the
    stem's (SwAV).

    Args:
        name: str.
        depths: four ints, the number of blocks of each stage.
        bottleneck: bool, whether blocks are 1x1-3x3-1x1 instead of 3x3-3x3.
        width: int, channels of the stem and of the 3x3 convolutions of the
            first stage. It doubles from stage to stage.
        stem: a key of `STEMS`: "imagenet" (7x7 convolution at stride 2, 3x3
            max-pooling at stride 2), "cifar" (3x3 convolution at stride 1),
            or another one that published checkpoints have.
        pool_padding: "symmetric" as in torchvision, or "same" as in
            TensorFlow, which does not pad maps of even size at the top and
            left. SimCLR's TensorFlow checkpoints need "same".

    Returns:
        keras.Model of normalised images `[B, H, W, 3]` that gives feature
        maps `[B, h, w, C]`: h = H/32, for stem="cifar" H/8; C = 8 * width,
        with bottlenecks 32 * width.

    Source: He et al., CVPR 2016, arXiv 1512.03385; SimCLR, arXiv 2002.05709,
    appendix B.9, for the small stem.
    """
    inputs = keras.Input((None, None, 3))
    size, stride, padding, pool = STEMS[stem]
    x = conv_bn(inputs, width, size, stride, "conv1", "bn1", padding=padding)
    x = keras.layers.ReLU(name="relu")(x)
    if pool and pool_padding == "same":
        x = keras.layers.MaxPooling2D(3, 2, "same", name="maxpool")(x)
    elif pool:
        # Padding with zeros equals PyTorch's -inf: after the ReLU no value is
        # negative.
        x = keras.layers.ZeroPadding2D(1, name="maxpool_pad")(x)
        x = keras.layers.MaxPooling2D(3, 2, name="maxpool")(x)
    for stage, depth in enumerate(depths, 1):
        for i in range(depth):
            stride = 2 if stage > 1 and i == 0 else 1
            convs = [(width, 3, stride), (width, 3, 1)]
            if bottleneck:
                convs = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
            x = _block(x, convs, stride, f"layer{stage}_{i}")
        width *= 2
    return keras.Model(inputs, x, name=name)


def _block(x, convs, stride, name):
    """Adds a residual block of convolutions (filters, size, stride)."""
    y = x
    for i, (filters, size, conv_stride) in enumerate(convs, 1):
        if i > 1:
            y = keras.layers.ReLU(name=f"{name}_relu{i - 1}")(y)
        names = f"{name}_conv{i}", f"{name}_bn{i}"
        y = conv_bn(y, filters, size, conv_stride, *names)
    if stride > 1 or x.shape[-1] != filters:
        names = f"{name}_downsample_0", f"{name}_downsample_1"
        x = conv_bn(x, filters, 1, stride, *names)
    y = keras.layers.Add(name=f"{name}_add")([y, x])
    return keras.layers.ReLU(name=f"{name}_relu")(y)
