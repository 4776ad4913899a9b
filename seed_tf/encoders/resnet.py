"""ResNets in torchvision's layout, which published checkpoints share."""

import keras

from seed_tf.encoders.layers import conv_bn


def resnet(
    name, *, depths, bottleneck=False, width=64, stem, pool_padding="symmetric"
):
    """A ResNet without its classifier.

    As in torchvision a bottleneck's stride is on its 3x3 convolution, padding
    is symmetric, BatchNorm has epsilon 1e-5, and a residual branch's last
    gamma starts at 1. Wide ones multiply every width, the stem's too (SwAV).

    Args:
        name: str.
        depths: four ints, the blocks of each stage.
        bottleneck: bool, 1x1-3x3-1x1 blocks instead of 3x3-3x3 ones.
        width: int, channels of the stem and of the first stage's 3x3
            convolutions; doubled from stage to stage.
        stem: "imagenet" (7x7 convolution at stride 2, 3x3 max-pooling at
            stride 2) or "cifar" (3x3 convolution at stride 1).
        pool_padding: "symmetric", torchvision's, or "same", TensorFlow's,
            which SimCLR's TensorFlow checkpoints are trained with: maps of
            even size have no padding at the top and left.

    Returns:
        keras.Model of normalised images `[B, H, W, 3]` that gives feature
        maps `[B, h, w, C]`: h = H/32, for stem="cifar" H/8; C = 8 * width,
        with bottlenecks 32 * width.

    Source: He et al., CVPR 2016, arXiv 1512.03385; SimCLR, arXiv 2002.05709,
    appendix B.9, for the small stem.
    """
    inputs = keras.Input((None, None, 3))
    size, stride = (7, 2) if stem == "imagenet" else (3, 1)
    x = conv_bn(inputs, width, size, stride, "conv1", "bn1")
    x = keras.layers.ReLU(name="relu")(x)
    if stem == "imagenet" and pool_padding == "same":
        x = keras.layers.MaxPooling2D(3, 2, "same", name="maxpool")(x)
    elif stem == "imagenet":
        # Zeros for PyTorch's -inf: no value is below zero after the ReLU.
        x = keras.layers.ZeroPadding2D(1, name="maxpool_pad")(x)
        x = keras.layers.MaxPooling2D(3, 2, name="maxpool")(x)
    for stage, depth in enumerate(depths, 1):
        for i in range(depth):
            stride = 2 if stage > 1 and i == 0 else 1
            if bottleneck:
                convs = (width, 1, 1), (width, 3, stride), (4 * width, 1, 1)
            else:
                convs = (width, 3, stride), (width, 3, 1)
            x = _block(x, convs, stride, f"layer{stage}_{i}")
        width *= 2
    return keras.Model(inputs, x, name=name)


def _block(x, convs, stride, name):
    """A residual block of convolutions (filters, size, stride)."""
    y = x
    for i, conv in enumerate(convs, 1):
        if i > 1:
            y = keras.layers.ReLU(name=f"{name}_relu{i - 1}")(y)
        y = conv_bn(y, *conv, f"{name}_conv{i}", f"{name}_bn{i}")
    filters = y.shape[-1]
    if stride > 1 or x.shape[-1] != filters:
        names = f"{name}_downsample_0", f"{name}_downsample_1"
        x = conv_bn(x, filters, 1, stride, *names)
    y = keras.layers.Add(name=f"{name}_add")([y, x])
    return keras.layers.ReLU(name=f"{name}_relu")(y)
