"""The paper's networks in PyTorch, with the module names of published weights.

They share nothing with `seed_tf.encoders`: they were written from the papers
and from the layout of published checkpoints, and their widths follow from the
papers' rules where our tables list them. So they can check our networks.

Importing this module needs PyTorch (the extra `torch`), and no TensorFlow.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def backbone(name: str, stem: str = "imagenet", width: int = 64) -> nn.Module:
    """Returns a network, normalised images `[B, 3, H, W]` -> `[B, C]`.

    Its weights are on the device "meta" until they are loaded. `width` is C.

    Args:
        name: as of `seed_tf.backbone`.
        stem: "imagenet" or "cifar", as of `seed_tf.backbone`.
        width: channels of a ResNet's first stage, before the factor in its
            name.
    """
    stride = 2 if stem == "imagenet" else 1
    with torch.device("meta"):
        if name.startswith("resnet"):
            kind, _, factor = name.partition("w")
            return resnet(
                _DEPTHS[kind],
                bottleneck=kind not in ("resnet18", "resnet34"),
                width=width * int(factor or 1),
                stem=stem,
            )
        if name.startswith("mobilenet"):
            return mobilenet_v3_large(stride)
        return EfficientNet(*_EFFICIENTNETS[name], stride)


def backbone_of(
    tensors: dict, *, stem: str = "imagenet", same_pool: bool = False
) -> nn.Module:
    """Returns the network that a state dict belongs to, with these weights.

    Args:
        tensors: NumPy arrays by canonical key, see
            `seed_tf.checkpoints.layouts`.
        stem: of a ResNet, see `resnet`.
        same_pool: whether a ResNet's max-pooling is padded as TensorFlow's.
    """
    with torch.device("meta"):
        if "conv1.weight" in tensors:
            width = len(tensors["conv1.weight"])
            net = resnet(
                [_count(tensors, f"layer{stage}.") for stage in (1, 2, 3, 4)],
                bottleneck="layer1.0.conv3.weight" in tensors,
                width=width,
                stem=stem,
            )
            if same_pool:
                net.maxpool = SameMaxPool()
        elif "_conv_stem.weight" in tensors:
            blocks = _count(tensors, "_blocks.")
            name = "efficientnet_b0" if blocks == 16 else "efficientnet_b1"
            net = backbone(name)
        else:
            net = mobilenet_v3_large()
    return load(net, tensors)


def head(
    kind: str | None, inputs: int, hidden: int, outputs: int
) -> nn.Sequential:
    """Returns a projection head, its modules numbered as those of `fc`.

    Args:
        kind: "linear", "mlp", "mlp_bn" (with BatchNorm), or None for no layer.
        inputs, hidden, outputs: widths; "linear" has no hidden layer.
    """
    if kind is None:
        return nn.Sequential()
    if kind == "linear":
        return nn.Sequential(nn.Linear(inputs, outputs))
    norm = [nn.BatchNorm1d(hidden)] if kind == "mlp_bn" else []
    layers = [nn.Linear(inputs, hidden), *norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def head_of(tensors: dict) -> nn.Sequential:
    """Returns the projection head that a state dict has under `fc.`."""
    tensors = {
        key.removeprefix("fc."): array
        for key, array in tensors.items()
        if key.startswith("fc.")
    }
    kind = "linear"
    if "1.weight" in tensors:
        kind = "mlp_bn"
    elif "2.weight" in tensors:
        kind = "mlp"
    hidden, inputs = tensors["0.weight"].shape
    *_, last = sorted(key for key in tensors if key.endswith(".weight"))
    with torch.device("meta"):
        net = head(kind, inputs, hidden, tensors[last].shape[0])
    return load(net, tensors)


def load(net: nn.Module, tensors: dict) -> nn.Module:
    """Gives a network the weights of a state dict, for inference.

    Args:
        net: network on the device "meta".
        tensors: NumPy arrays by key; those of other keys are ignored.

    Raises:
        RuntimeError: if a weight is missing or has another shape.
    """
    state = {}
    for key in net.state_dict():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
        elif key in tensors:
            state[key] = torch.tensor(tensors[key], dtype=torch.float32)
    net.load_state_dict(state, assign=True)
    return net.eval()


def _count(tensors: dict, prefix: str) -> int:
    """Returns the number of modules in a numbered list."""
    return len(
        {
            key.removeprefix(prefix).split(".")[0]
            for key in tensors
            if key.startswith(prefix)
        }
    )


class _Named(nn.Sequential):
    def __init__(self, **modules: nn.Module) -> None:
        super().__init__(collections.OrderedDict(modules))


def _conv(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = size // 2
    return nn.Conv2d(
        inputs, outputs, size, stride, padding, groups=groups, bias=False
    )


# ResNet

_DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


def resnet(
    depths: Sequence[int],
    *,
    bottleneck: bool,
    width: int = 64,
    stem: str = "imagenet",
) -> nn.Module:
    """Returns a ResNet.

    Args:
        depths: numbers of blocks of the stages.
        bottleneck: whether blocks have three convolutions or two.
        width: channels of the stem and of the first stage.
        stem: "imagenet", a 7x7 convolution and max-pooling; "cifar", a 3x3
            convolution of stride 1, "stride_2", of stride 2; each with
            "_pool", max-pooling follows; with "_padding_2", padding is 2.
    """
    block = Bottleneck if bottleneck else BasicBlock
    size, stride = (7, 2) if stem == "imagenet" else (3, 1)
    stride = 2 if stem.startswith("stride_2") else stride
    modules: dict[str, nn.Module] = {
        "conv1": _conv(3, width, size, stride),
        "bn1": nn.BatchNorm2d(width),
        "relu": nn.ReLU(),
    }
    if stem.endswith("_padding_2"):
        modules["conv1"].padding = (2, 2)
    if stem == "imagenet" or stem.endswith("_pool"):
        modules["maxpool"] = nn.MaxPool2d(3, 2, 1)
    inputs = width
    for i, depth in enumerate(depths):
        blocks = []
        for j in range(depth):
            blocks.append(block(inputs, width * 2**i, 2 if i and not j else 1))
            inputs = blocks[-1].outputs
        modules[f"layer{i + 1}"] = nn.Sequential(*blocks)
    net = _Named(**modules, avgpool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    net.width = inputs
    return net


class SameMaxPool(nn.Module):
    """3x3 max-pooling of stride 2, padded as TensorFlow pads.

    TensorFlow's "same" pads maps of an even size at one end only.
    """

    def forward(self, x: Tensor) -> Tensor:
        pads = [(n % 2, 1) for n in reversed(x.shape[2:])]
        x = functional.pad(x, [*pads[0], *pads[1]], value=-math.inf)
        return functional.max_pool2d(x, 3, 2)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.outputs = width
        self.downsample = _downsample(inputs, self.outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return (y + self.downsample(x)).relu()


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.outputs = 4 * width
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, self.outputs, 1)
        self.bn3 = nn.BatchNorm2d(self.outputs)
        self.downsample = _downsample(inputs, self.outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + self.downsample(x)).relu()


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(
        _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
    )


# MobileNetV3


def _divisible_by_8(width: float) -> int:
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8


def mobilenet_v3_large(stride: int = 2) -> nn.Module:
    """Returns MobileNetV3-Large; `stride` is that of its stem."""
    blocks, inputs = [], 16
    for size, expansion, outputs, excite, swish, block_stride in (
        (3, 1, 16, False, False, 1),
        (3, 4, 24, False, False, 2),
        (3, 3, 24, False, False, 1),
        (5, 3, 40, True, False, 2),
        (5, 3, 40, True, False, 1),
        (5, 3, 40, True, False, 1),
        (3, 6, 80, False, True, 2),
        (3, 2.5, 80, False, True, 1),
        (3, 2.3, 80, False, True, 1),
        (3, 2.3, 80, False, True, 1),
        (3, 6, 112, True, True, 1),
        (3, 6, 112, True, True, 1),
        (5, 6, 160, True, True, 2),
        (5, 6, 160, True, True, 1),
        (5, 6, 160, True, True, 1),
    ):
        blocks.append(
            InvertedResidual(
                inputs,
                _divisible_by_8(inputs * expansion),
                outputs,
                size,
                block_stride,
                excite,
                nn.Hardswish() if swish else nn.ReLU(),
            )
        )
        inputs = outputs
    stem = nn.Sequential(
        _conv(3, 16, 3, stride), nn.BatchNorm2d(16), nn.Hardswish()
    )
    net = _Named(
        features=nn.Sequential(stem, *blocks),
        conv=nn.Sequential(
            _conv(160, 960, 1), nn.BatchNorm2d(960), nn.Hardswish()
        ),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        classifier=nn.Sequential(
            nn.Linear(960, 1280), nn.Hardswish(), nn.Dropout(0.2)
        ),
    )
    net.width = 1280
    return net


class InvertedResidual(nn.Module):
    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        size: int,
        stride: int,
        excite: bool,
        activation: nn.Module,
    ):
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        depthwise = [
            _conv(expanded, expanded, size, stride, groups=expanded),
            nn.BatchNorm2d(expanded),
        ]
        excitation = SqueezeExcite(expanded) if excite else nn.Identity()
        project = [_conv(expanded, outputs, 1), nn.BatchNorm2d(outputs)]
        if inputs == expanded:
            layers = [*depthwise, activation, excitation, *project]
        else:
            expand = [_conv(inputs, expanded, 1), nn.BatchNorm2d(expanded)]
            layers = [*expand, activation, *depthwise, excitation]
            layers += [activation, *project]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        squeezed = _divisible_by_8(width // 4)
        self.fc = nn.Sequential(
            nn.Linear(width, squeezed),
            nn.ReLU(),
            nn.Linear(squeezed, width),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


# EfficientNet

_EFFICIENTNETS = {
    "efficientnet_b0": (1.0, 224),  # depth, native size
    "efficientnet_b1": (1.1, 240),
}


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow pads maps of the native size.

    The padding is the same at every size. With `dynamic` it follows the size
    of the map at hand.
    """

    dynamic = False

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        *,
        native: int,
        groups: int = 1,
        bias: bool = False,
    ):
        super().__init__(
            inputs, outputs, size, stride, groups=groups, bias=bias
        )
        self.native = native

    def forward(self, x: Tensor) -> Tensor:
        native = x.shape[-1] if self.dynamic else self.native
        (size, _), (stride, _) = self.kernel_size, self.stride
        total = (math.ceil(native / stride) - 1) * stride + size - native
        before = max(total, 0) // 2
        pads = before, max(total, 0) - before
        return super().forward(functional.pad(x, 2 * pads))


def _wide_bn(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


class EfficientNet(nn.Module):
    width = 1280

    def __init__(self, depth: float, size: int, stride: int):
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, stride, native=size)
        self._bn0 = _wide_bn(32)
        size, inputs, blocks = math.ceil(size / 2), 32, []
        for stage in (
            "r1 k3 s1 e1 o16",
            "r2 k3 s2 e6 o24",
            "r2 k5 s2 e6 o40",
            "r3 k3 s2 e6 o80",
            "r3 k5 s1 e6 o112",
            "r4 k5 s2 e6 o192",
            "r1 k3 s1 e6 o320",
        ):
            repeats, kernel, stride, expansion, outputs = (
                int(field[1:]) for field in stage.split()
            )
            for _ in range(math.ceil(repeats * depth)):
                blocks.append(
                    MBConv(inputs, outputs, kernel, stride, expansion, size)
                )
                size = math.ceil(size / stride)
                inputs, stride = outputs, 1
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(inputs, 1280, 1, native=size)
        self._bn1 = _wide_bn(1280)

    def stem(self, x: Tensor) -> Tensor:
        return functional.silu(self._bn0(self._conv_stem(x)))

    def last(self, x: Tensor) -> Tensor:
        return functional.silu(self._bn1(self._conv_head(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self._blocks:
            x = block(x)
        return self.last(x).mean((2, 3))


class MBConv(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expansion: int,
        size: int,
    ):
        super().__init__()
        width = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self._expand_conv = None
        if expansion > 1:
            self._expand_conv = SameConv(inputs, width, 1, native=size)
            self._bn0 = _wide_bn(width)
        self._depthwise_conv = SameConv(
            width, width, kernel, stride, native=size, groups=width
        )
        self._bn1 = _wide_bn(width)
        squeezed = int(inputs * 0.25)
        self._se_reduce = SameConv(width, squeezed, 1, native=1, bias=True)
        self._se_expand = SameConv(squeezed, width, 1, native=1, bias=True)
        self._project_conv = SameConv(width, outputs, 1, native=size)
        self._bn2 = _wide_bn(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self._expand_conv is not None:
            y = functional.silu(self._bn0(self._expand_conv(y)))
        y = functional.silu(self._bn1(self._depthwise_conv(y)))
        z = y.mean((2, 3), keepdim=True)
        z = self._se_expand(functional.silu(self._se_reduce(z)))
        y = self._bn2(self._project_conv(torch.sigmoid(z) * y))
        return x + y if self.residual else y
