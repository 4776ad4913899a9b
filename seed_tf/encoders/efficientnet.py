"""EfficientNet-B0 and B1 in the layout of the authors' code."""

from __future__ import annotations

import math

import keras

from seed_tf.encoders.layers import torch_uniform

# Repeats, kernel, stride, expansion, output width: table 1 of the paper.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def efficientnet(
    name: str, *, depth: float, native_size: int, stem: str
) -> keras.Model:
    """Returns EfficientNet-B0 or B1 up to pooling and dropout.

    As in the authors' code, BatchNorm has epsilon 1e-3 and momentum 0.99 (in
    Keras's sense), and squeeze-and-excitation has a quarter of the block's
    input width. Both regularisers are active in distillation: drop-connect, at
    a rate that grows linearly over the blocks from 0 towards 0.2, and dropout
    of 0.2 between pooling and the projection head.

    Padding is TensorFlow's "same", which puts the odd pixel of padding at the
    bottom and right of maps of even size. The authors compute the padding for
    the native 224 (B1: 240) pixels and keep it at every size. So B1's last
    strided convolution, whose map has 15 pixels at 240, is padded evenly at
    every size, also here. Outputs equal the authors' at the native size and
    wherever H and W are multiples of 32. At other sizes the authors' maps are
    smaller.

    Args:
        name: str.
        depth: float, 1.0 for B0, 1.1 for B1: factor on the number of blocks of
            a stage, which is rounded up.
        native_size: int, 224 for B0, 240 for B1: side in pixels of the images
            for which the padding is computed.
        stem: "imagenet" (first convolution at stride 2) or "cifar" (at stride
            1, otherwise the same).

    Returns:
        keras.Model of normalised images `[B, H, W, 3]` that gives features
        `[B, 1280]`, pooled from maps of H/32; for stem="cifar" of H/16.

    Source: Tan and Le, ICML 2019, arXiv 1905.11946.
    """
    inputs = keras.Input((None, None, 3))
    stride = 2 if stem == "imagenet" else 1
    x = _conv(32, 3, stride, fan_in=27, name="conv_stem")(inputs)
    x = _bn_swish(x, "bn0")
    blocks = [
        (kernel, stride if repeat == 0 else 1, expansion, width)
        for repeats, kernel, stride, expansion, width in _STAGES
        for repeat in range(math.ceil(depth * repeats))
    ]
    native_size = math.ceil(native_size / 2)
    for i, (kernel, stride, expansion, width) in enumerate(blocks):
        x = _block(
            x,
            kernel,
            stride,
            expansion,
            width,
            pad_evenly=stride == 2 and native_size % 2 == 1,
            drop_connect=0.2 * i / len(blocks),
            name=f"blocks_{i}",
        )
        native_size = math.ceil(native_size / stride)
    x = _conv(1280, 1, fan_in=320, name="conv_head")(x)
    x = _bn_swish(x, "bn1")
    x = keras.layers.GlobalAveragePooling2D(name="avg_pooling")(x)
    x = keras.layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(inputs, x, name=name)


def _block(
    x, size, stride, expansion, width, *, pad_evenly, drop_connect, name
):
    y, inputs = x, x.shape[-1]
    expanded = expansion * inputs
    if expansion > 1:
        y = _conv(expanded, 1, fan_in=inputs, name=f"{name}_expand_conv")(y)
        y = _bn_swish(y, f"{name}_bn0")
    if pad_evenly:
        y = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(y)
    y = keras.layers.DepthwiseConv2D(
        size,
        stride,
        padding="valid" if pad_evenly else "same",
        use_bias=False,
        depthwise_initializer=torch_uniform(size**2),
        name=f"{name}_depthwise_conv",
    )(y)
    y = _bn_swish(y, f"{name}_bn1")
    y = _squeeze_excite(y, inputs // 4, name)
    y = _conv(width, 1, fan_in=expanded, name=f"{name}_project_conv")(y)
    y = _batch_norm(f"{name}_bn2")(y)
    if stride == 1 and width == inputs:
        # One draw per image keeps or drops its whole branch.
        y = keras.layers.Dropout(
            drop_connect,
            noise_shape=(None, 1, 1, 1),
            name=f"{name}_drop_connect",
        )(y)
        y = keras.layers.Add(name=f"{name}_add")([y, x])
    return y


def _squeeze_excite(x, squeezed, name):
    width = x.shape[-1]
    y = keras.layers.GlobalAveragePooling2D(
        keepdims=True, name=f"{name}_se_squeeze"
    )(x)
    for filters, fan_in, activation, part in (
        (squeezed, width, "silu", "se_reduce"),
        (width, squeezed, "sigmoid", "se_expand"),
    ):
        y = _conv(
            filters,
            1,
            fan_in=fan_in,
            name=f"{name}_{part}",
            activation=activation,
            use_bias=True,
            bias_initializer=torch_uniform(fan_in),
        )(y)
    return keras.layers.Multiply(name=f"{name}_se_excite")([x, y])


def _conv(filters, size, stride=1, *, fan_in, use_bias=False, **kwargs):
    return keras.layers.Conv2D(
        filters,
        size,
        stride,
        padding="same",
        use_bias=use_bias,
        kernel_initializer=torch_uniform(fan_in),
        **kwargs,
    )


def _batch_norm(name):
    return keras.layers.BatchNormalization(
        momentum=0.99, epsilon=1e-3, name=name
    )


def _bn_swish(x, name):
    x = _batch_norm(name)(x)
    return keras.layers.Activation("silu", name=f"{name}_swish")(x)
