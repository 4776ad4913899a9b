"""The published networks in plain PyTorch functions, block by block.

A second way from a state dict to features, which shares nothing with our
layers but the keys: where the two differ, the first block that does says
where our network is not the published one.
"""

import functools
import math
import re

import keras
import numpy as np


def compare_blocks(encoder, contents, images):
    """Differences between an encoder and PyTorch, block by block.

    Args:
        encoder: `Encoder` that was built of `contents`.
        contents: `layouts.Contents`.
        images: `[B, H, W, 3]` uint8.

    Returns:
        List of tuples (block, alone, together): the relative difference
        (Frobenius norms) of the block's outputs when PyTorch's block is fed
        what Keras's is, and when PyTorch runs from the image on.

    Raises:
        ImportError: without PyTorch.
    """
    import torch

    backbone = encoder.backbone
    steps = blocks(contents.tensors, backbone)
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
            alone = _head(contents.tensors, before)
            together = _head(contents.tensors, together)
            rows.append(
                (
                    "head",
                    _difference(output, alone),
                    _difference(output, together),
                )
            )
    return rows


def blocks(tensors, backbone):
    """The blocks of a network, in order.

    Args:
        tensors: NumPy arrays by canonical key.
        backbone: keras.Model made of them.

    Returns:
        List of pairs: the name of the Keras layer in which the block ends, and
        the function of PyTorch tensors that does the same.
    """
    if "conv1.weight" in tensors:
        return _resnet(tensors, backbone)
    if "_conv_stem.weight" in tensors:
        return _efficientnet(tensors, backbone)
    return _mobilenet(tensors, backbone)


def _from_keras(x):
    import torch

    x = np.array(x)
    return torch.from_numpy(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x)


def _difference(actual, expected):
    return float((actual - expected).norm() / expected.norm())


class _Functions:
    """Layers by the key of their weights."""

    def __init__(self, tensors, epsilon):
        import torch

        self.tensors, self.epsilon = tensors, epsilon
        self.f = torch.nn.functional

    def __contains__(self, module):
        return f"{module}.weight" in self.tensors

    def get(self, key):
        import torch

        return torch.from_numpy(np.array(self.tensors[key], np.float32))

    def bias(self, module):
        key = f"{module}.bias"
        return self.get(key) if key in self.tensors else None

    def conv(self, x, module, stride=1, padding=None):
        weight = self.get(f"{module}.weight")
        groups = x.shape[1] // weight.shape[1]
        if padding is None:
            padding = weight.shape[-1] // 2
        return self.f.conv2d(
            x, weight, self.bias(module), stride, padding, groups=groups
        )

    def norm(self, x, module, epsilon=None):
        statistics = ("running_mean", "running_var", "weight", "bias")
        values = [self.get(f"{module}.{name}") for name in statistics]
        return self.f.batch_norm(x, *values, eps=epsilon or self.epsilon)

    def dense(self, x, module):
        return self.f.linear(x, self.get(f"{module}.weight"), self.bias(module))


def _head(tensors, x):
    net = _Functions(tensors, 1e-5)
    x = net.dense(x, "fc.0")
    if "fc.1" in net:
        return net.dense(net.norm(x, "fc.1").relu(), "fc.3")
    return net.dense(x.relu(), "fc.2") if "fc.2" in net else x


def _resnet(tensors, backbone):
    net = _Functions(tensors, 1e-5)
    layers = [layer.name for layer in backbone.layers]
    large = "maxpool" in layers

    def stem(x):
        x = net.norm(net.conv(x, "conv1", 2 if large else 1), "bn1").relu()
        if not large:
            return x
        # TensorFlow's "same" pads maps of even size at one end only.
        same = backbone.get_layer("maxpool").padding == "same"
        pads = [(n % 2 if same else 1, 1) for n in reversed(x.shape[2:])]
        x = net.f.pad(x, sum(pads, ()), value=-math.inf)
        return net.f.max_pool2d(x, 3, 2)

    def block(name, stride, x):
        y, strides = x, stride
        for i in (1, 2, 3):
            if f"{name}.conv{i}" not in net:
                break
            y = y.relu() if i > 1 else y
            size = tensors[f"{name}.conv{i}.weight"].shape[-1]
            # The first 3x3 convolution has the stride.
            y = net.conv(y, f"{name}.conv{i}", strides if size == 3 else 1)
            strides = 1 if size == 3 else strides
            y = net.norm(y, f"{name}.bn{i}")
        if f"{name}.downsample.0" in net:
            x = net.conv(x, f"{name}.downsample.0", stride)
            x = net.norm(x, f"{name}.downsample.1")
        return (x + y).relu()

    steps = [("maxpool" if large else "relu", stem)]
    for layer in layers:
        if found := re.fullmatch(r"layer(\d)_(\d+)_relu", layer):
            stage, i = found.groups()
            stride = 2 if stage > "1" and i == "0" else 1
            name = f"layer{stage}.{i}"
            steps.append((layer, functools.partial(block, name, stride)))
    return steps


def _mobilenet(tensors, backbone):
    net = _Functions(tensors, 1e-5)
    swish = net.f.hardswish
    halved = (2, 4, 7, 13)

    def stem(x):
        x = net.norm(net.conv(x, "features.0.0", 2), "features.0.1")
        return swish(x)

    def block(number, x):
        name = f"features.{number}.conv"
        activation = swish if number > 6 else net.f.relu
        stride = 2 if number in halved else 1
        y, i = x, 0
        if f"{name}.7" in net:  # it expands first
            y = activation(net.norm(net.conv(y, f"{name}.0"), f"{name}.1"))
            i = 3
        y = net.conv(y, f"{name}.{i}", stride)
        y = net.norm(y, f"{name}.{i + 1}")
        gate = f"{name}.{i + 2}.fc"
        if f"{gate}.0" in net:
            z = net.dense(y.mean((2, 3)), f"{gate}.0").relu()
            z = net.f.hardsigmoid(net.dense(z, f"{gate}.2"))
            y = y * z[:, :, None, None]
        y = net.conv(activation(y), f"{name}.{i + 4}")
        y = net.norm(y, f"{name}.{i + 5}")
        return x + y if x.shape == y.shape else y

    def last(x):
        return swish(net.norm(net.conv(x, "conv.0"), "conv.1"))

    def features(x):
        return swish(net.dense(x.mean((2, 3)), "classifier.0"))

    numbers = range(1, 16)
    return [
        ("features_0_2", stem),
        *[
            (_end(backbone, f"features_{n}_"), functools.partial(block, n))
            for n in numbers
        ],
        ("conv_2", last),
        ("classifier_0", features),
    ]


def _efficientnet(tensors, backbone):
    net = _Functions(tensors, 1e-3)
    silu = net.f.silu
    count = len({x.split(".")[1] for x in tensors if x.startswith("_blocks.")})

    def same(x, module, stride, native):
        """TensorFlow's padding for a map of the native size."""
        size = tensors[f"{module}.weight"].shape[-1]
        total = max(
            (math.ceil(native / stride) - 1) * stride + size - native, 0
        )
        before = total // 2
        x = net.f.pad(x, (before, total - before) * 2)
        return net.conv(x, module, stride, padding=0)

    def stem(native, x):
        return silu(net.norm(same(x, "_conv_stem", 2, native), "_bn0"))

    def block(name, stride, native, x):
        y = x
        if f"{name}._expand_conv" in net:
            y = net.conv(y, f"{name}._expand_conv")
            y = silu(net.norm(y, f"{name}._bn0"))
        y = same(y, f"{name}._depthwise_conv", stride, native)
        y = silu(net.norm(y, f"{name}._bn1"))
        z = y.mean((2, 3), keepdim=True)
        z = net.conv(
            silu(net.conv(z, f"{name}._se_reduce")), f"{name}._se_expand"
        )
        y = net.conv(y * z.sigmoid(), f"{name}._project_conv")
        y = net.norm(y, f"{name}._bn2")
        return x + y if x.shape == y.shape else y

    def last(x):
        return silu(net.norm(net.conv(x, "_conv_head"), "_bn1"))

    native = 224 if count == 16 else 240
    steps = [("bn0_swish", functools.partial(stem, native))]
    native, width = math.ceil(native / 2), 32
    for i in range(count):
        name, before = f"_blocks.{i}", width
        width = tensors[f"{name}._project_conv.weight"].shape[0]
        # Stages of these widths begin with a stride.
        stride = 2 if width != before and width in (24, 40, 80, 192) else 1
        step = functools.partial(block, name, stride, native)
        steps.append((_end(backbone, f"blocks_{i}_"), step))
        native = math.ceil(native / stride)
    steps.append(("bn1_swish", last))
    return steps


def _end(backbone, prefix):
    """The last layer of a block."""
    names = [x.name for x in backbone.layers if x.name.startswith(prefix)]
    return names[-1]
