"""MobileNetV3-Large in the layout of the authors' code."""

from __future__ import annotations

import keras

from seed_tf.encoders.layers import conv_bn

# Kernel, expanded width, output width, squeezed width, activation, stride:
# table 1 of the paper.
_BLOCKS = (
    (3, 16, 16, 0, "relu", 1),
    (3, 64, 24, 0, "relu", 2),
    (3, 72, 24, 0, "relu", 1),
    (5, 72, 40, 24, "relu", 2),
    (5, 120, 40, 32, "relu", 1),
    (5, 120, 40, 32, "relu", 1),
    (3, 240, 80, 0, "hard_silu", 2),
    (3, 200, 80, 0, "hard_silu", 1),
    (3, 184, 80, 0, "hard_silu", 1),
    (3, 184, 80, 0, "hard_silu", 1),
    (3, 480, 112, 120, "hard_silu", 1),
    (3, 672, 112, 168, "hard_silu", 1),
    (5, 672, 160, 168, "hard_silu", 2),
    (5, 960, 160, 240, "hard_silu", 1),
    (5, 960, 160, 240, "hard_silu", 1),
)


def mobilenet_v3_large(name: str, *, stem: str) -> keras.Model:
    """Returns MobileNetV3-Large up to its 1280-wide layer.

    As in the authors' code, padding is symmetric, BatchNorm has epsilon 1e-5
    and momentum 0.9 (in Keras's sense), and squeeze-and-excitation comes
    between the depthwise convolution and its activation. Dropout of 0.2 after
    the 1280-wide layer is active in distillation.

    Args:
        name: str.
        stem: "imagenet" (first convolution at stride 2) or "cifar" (at stride
            1, otherwise the same).

    Returns:
        keras.Model of normalised images `[B, H, W, 3]` that gives features
        `[B, 1280]`, pooled from maps of H/32; for stem="cifar" of H/16.

    Source: Howard et al., ICCV 2019, arXiv 1905.02244.
    """
    inputs = keras.Input((None, None, 3))
    stride = 2 if stem == "imagenet" else 1
    x = conv_bn(inputs, 16, 3, stride, "features_0_0", "features_0_1")
    x = keras.layers.Activation("hard_silu", name="features_0_2")(x)
    for i, block in enumerate(_BLOCKS, 1):
        x = _block(x, *block, name=f"features_{i}_conv")
    x = conv_bn(x, 960, 1, 1, "conv_0", "conv_1")
    x = keras.layers.Activation("hard_silu", name="conv_2")(x)
    x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
    x = _dense(1280, "hard_silu", "classifier_0")(x)
    x = keras.layers.Dropout(0.2, name="classifier_2")(x)
    return keras.Model(inputs, x, name=name)


def _block(x, size, expanded, width, squeezed, activation, stride, *, name):
    y, i = x, 0
    if expanded != x.shape[-1]:
        y = conv_bn(y, expanded, 1, 1, f"{name}_0", f"{name}_1")
        y = keras.layers.Activation(activation, name=f"{name}_2")(y)
        i = 3
    names = f"{name}_{i}", f"{name}_{i + 1}"
    y = conv_bn(y, expanded, size, stride, *names, depthwise=True)
    if squeezed:
        y = _squeeze_excite(y, squeezed, f"{name}_{i + 2}")
    y = keras.layers.Activation(activation, name=f"{name}_{i + 3}")(y)
    y = conv_bn(y, width, 1, 1, f"{name}_{i + 4}", f"{name}_{i + 5}")
    if stride == 1 and width == x.shape[-1]:
        y = keras.layers.Add(name=f"{name}_add")([x, y])
    return y


def _squeeze_excite(x, squeezed, name):
    width = x.shape[-1]
    y = keras.layers.GlobalAveragePooling2D(name=f"{name}_avg_pool")(x)
    y = _dense(squeezed, "relu", f"{name}_fc_0")(y)
    y = _dense(width, "hard_sigmoid", f"{name}_fc_2")(y)
    y = keras.layers.Reshape((1, 1, width), name=f"{name}_reshape")(y)
    return keras.layers.Multiply(name=f"{name}_multiply")([x, y])


def _dense(units, activation, name):
    return keras.layers.Dense(
        units,
        activation,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        name=name,
    )
