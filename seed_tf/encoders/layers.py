"""PyTorch's conventions that Keras layers do not share by default."""

import keras


def torch_uniform(fan_in):
    """Initial weights and biases of PyTorch's Linear and Conv2d.

    Args:
        fan_in: int, inputs that one output unit sees.

    Returns:
        keras.initializers.RandomUniform in +-1/sqrt(fan_in).
    """
    bound = fan_in**-0.5
    return keras.initializers.RandomUniform(-bound, bound)


def conv_bn(x, filters, size, stride, conv, bn, *, depthwise=False):
    """Convolution and BatchNorm as torchvision's ResNet has them.

    Padding is `size // 2` on every side, where Keras "same" gives a strided
    convolution of a map of even size less at the top and left. There is no
    bias, and the weights start from N(0, 2 / (size^2 filters)).

    Args:
        x: KerasTensor `[B, h, w, C]`.
        filters: int, output channels; of a depthwise convolution C.
        size: odd int, side of the kernel.
        stride: int.
        conv: str, name of the convolution.
        bn: str, name of the BatchNorm.
        depthwise: bool, one filter per channel.

    Returns:
        KerasTensor `[B, h', w', filters]`.
    """
    if stride > 1 and size > 1:
        x = keras.layers.ZeroPadding2D(size // 2, name=f"{conv}_pad")(x)
    settings = {
        "strides": stride,
        "padding": "same" if stride == 1 else "valid",
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


def batch_norm(**kwargs):
    """`BatchNormalization` with PyTorch's momentum 0.1 and epsilon 1e-5.

    Keras counts momentum the other way round, and moves its running variance
    by the batch's variance over n values, where PyTorch divides by n - 1.
    """
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **kwargs)
