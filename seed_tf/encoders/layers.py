"""PyTorch's conventions, where the defaults of Keras layers differ."""

from __future__ import annotations

import keras


def torch_uniform(fan_in: int) -> keras.initializers.RandomUniform:
    """Returns the initialiser of weights of PyTorch's Linear and Conv2d.

    Args:
        fan_in: int, number of inputs of one output unit.

    Returns:
        keras.initializers.RandomUniform in +-1/sqrt(fan_in).
    """
    bound = fan_in**-0.5
    return keras.initializers.RandomUniform(-bound, bound)


def conv_bn(
    x: keras.KerasTensor,
    filters: int,
    size: int,
    stride: int,
    conv: str,
    bn: str,
    *,
    padding: int | None = None,
    depthwise: bool = False,
) -> keras.KerasTensor:
    """Adds a convolution and a BatchNorm, as in torchvision's ResNet.

    Padding is on every side. (Keras's "same" pads less at the top
    and left, where a strided convolution meets a map of even size.) There is
    no bias, and the initial weights come from N(0, 2 / (size^2 filters)).

    Args:
        x: KerasTensor `[B, h, w, C]`.
        filters: int, output channels; C if `depthwise`.
        size: odd int, side of the kernel.
        stride: int.
        conv: str, name of the convolution.
        bn: str, name of the BatchNorm.
        padding: int, pixels on every side; by default `size // 2`.
        depthwise: bool, one filter per channel.

    Returns:
        KerasTensor `[B, h', w', filters]`.
    """
    padding = size // 2 if padding is None else padding
    same = stride == 1 and padding == size // 2
    if not same and padding:
        x = keras.layers.ZeroPadding2D(padding, name=f"{conv}_pad")(x)
    settings = {
        "strides": stride,
        "padding": "same" if same else "valid",
        "use_bias": False,
        "name": conv,
    }
    normal = keras.initializers.RandomNormal(
        stddev=(2 / (size**2 * filters)) ** 0.5
    )
    if depthwise:
        x = keras.layers.DepthwiseConv2D(
            size, depthwise_initializer=normal, **settings
        )(x)
    else:
        x = keras.layers.Conv2D(
            filters, size, kernel_initializer=normal, **settings
        )(x)
    return batch_norm(name=bn)(x)


def batch_norm(**kwargs) -> keras.layers.BatchNormalization:
    """Returns BatchNormalization with PyTorch's momentum 0.1, epsilon 1e-5.

    PyTorch's momentum 0.1 is Keras's 0.9. One difference stays: the variance
    of a batch of n values is divided by n in Keras's running variance, and by
    n - 1 in PyTorch's.
    """
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **kwargs)
