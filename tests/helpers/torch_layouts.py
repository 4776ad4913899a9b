"""The paper's networks in PyTorch, with the module names of published weights.

They are the oracle for `seed_tf.encoders`: written from the papers and the
layout of the published checkpoints, with widths derived by the papers' rules
where our tables spell them out.
"""

import collections
import math

import torch
from torch import nn

# On busy cores two threads that wait for each other are slower than one.
torch.set_num_threads(1)


def encoder(name, stem, head):
    """A backbone and a head `fc` of one of the published kinds, 16 wide."""
    net = backbone(name, stem)
    with torch.device("meta"):
        layers = [nn.Linear(net.width, 16)]
        if head != "linear":
            layers = [nn.Linear(net.width, 64), nn.ReLU(), nn.Linear(64, 16)]
        if head == "mlp_bn":
            layers.insert(1, nn.BatchNorm1d(64))
    net.add_module("fc", nn.Sequential(*layers))
    return net


def backbone(name, stem="imagenet"):
    """A network by its registry name, with weights yet to be loaded."""
    stride = 2 if stem == "imagenet" else 1
    with torch.device("meta"):
        if name.startswith("resnet"):
            return resnet(name, stem)
        if name.startswith("mobilenet"):
            return mobilenet_v3_large(stride)
        return EfficientNet(*EFFICIENTNETS[name], stride)


class Named(nn.Sequential):
    def __init__(self, **modules):
        super().__init__(collections.OrderedDict(modules))


def conv(inputs, outputs, size, stride=1, groups=1):
    padding = size // 2
    return nn.Conv2d(
        inputs, outputs, size, stride, padding, groups=groups, bias=False
    )


# -- ResNet ----------------------------------------------------------------

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


def resnet(name, stem, width=64):
    name, _, widen = name.partition("w")
    block = BasicBlock if name in ("resnet18", "resnet34") else Bottleneck
    width *= int(widen or 1)
    if stem == "imagenet":
        modules = {
            "conv1": conv(3, width, 7, 2),
            "bn1": nn.BatchNorm2d(width),
            "relu": nn.ReLU(),
            "maxpool": nn.MaxPool2d(3, 2, 1),
        }
    else:
        modules = {
            "conv1": conv(3, width, 3),
            "bn1": nn.BatchNorm2d(width),
            "relu": nn.ReLU(),
        }
    inputs = width
    for i, depth in enumerate(DEPTHS[name]):
        blocks = []
        for j in range(depth):
            blocks.append(block(inputs, width * 2**i, 2 if i and not j else 1))
            inputs = blocks[-1].outputs
        modules[f"layer{i + 1}"] = nn.Sequential(*blocks)
    net = Named(**modules, avgpool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    net.width = inputs
    return net


class BasicBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.outputs = width
        self.downsample = downsample(inputs, self.outputs, stride)

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return (y + self.downsample(x)).relu()


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.outputs = 4 * width
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, self.outputs, 1)
        self.bn3 = nn.BatchNorm2d(self.outputs)
        self.downsample = downsample(inputs, self.outputs, stride)

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + self.downsample(x)).relu()


def downsample(inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(
        conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
    )


# -- MobileNetV3 -----------------------------------------------------------


def divisible_by_8(width):
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8


def mobilenet_v3_large(stride):
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
                divisible_by_8(inputs * expansion),
                outputs,
                size,
                block_stride,
                excite,
                nn.Hardswish() if swish else nn.ReLU(),
            )
        )
        inputs = outputs
    stem = nn.Sequential(
        conv(3, 16, 3, stride), nn.BatchNorm2d(16), nn.Hardswish()
    )
    net = Named(
        features=nn.Sequential(stem, *blocks),
        conv=nn.Sequential(
            conv(160, 960, 1), nn.BatchNorm2d(960), nn.Hardswish()
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
        self, inputs, expanded, outputs, size, stride, excite, activation
    ):
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        depthwise = [
            conv(expanded, expanded, size, stride, groups=expanded),
            nn.BatchNorm2d(expanded),
        ]
        excitation = SqueezeExcite(expanded) if excite else nn.Identity()
        project = [conv(expanded, outputs, 1), nn.BatchNorm2d(outputs)]
        if inputs == expanded:
            layers = [*depthwise, activation, excitation, *project]
        else:
            expand = [conv(inputs, expanded, 1), nn.BatchNorm2d(expanded)]
            layers = [*expand, activation, *depthwise, excitation]
            layers += [activation, *project]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        squeezed = divisible_by_8(width // 4)
        self.fc = nn.Sequential(
            nn.Linear(width, squeezed),
            nn.ReLU(),
            nn.Linear(squeezed, width),
            nn.Hardsigmoid(),
        )

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


# -- EfficientNet ----------------------------------------------------------

EFFICIENTNETS = {
    "efficientnet_b0": (1.0, 224),  # depth, native size
    "efficientnet_b1": (1.1, 240),
}


class SameConv(nn.Conv2d):
    """TensorFlow's padding for maps of a given size, kept at every size.

    With `dynamic` it is that for the size of the map at hand.
    """

    dynamic = False

    def __init__(
        self, inputs, outputs, size, stride=1, *, native, groups=1, bias=False
    ):
        super().__init__(
            inputs, outputs, size, stride, groups=groups, bias=bias
        )
        self.native = native

    def forward(self, x):
        native = x.shape[-1] if self.dynamic else self.native
        (size, _), (stride, _) = self.kernel_size, self.stride
        total = (math.ceil(native / stride) - 1) * stride + size - native
        before = max(total, 0) // 2
        pads = before, max(total, 0) - before
        return super().forward(nn.functional.pad(x, 2 * pads))


def wide_bn(width):
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


class EfficientNet(nn.Module):
    width = 1280

    def __init__(self, depth, size, stride):
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, stride, native=size)
        self._bn0 = wide_bn(32)
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
        self._bn1 = wide_bn(1280)

    def forward(self, x):
        x = nn.functional.silu(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = nn.functional.silu(self._bn1(self._conv_head(x)))
        return x.mean((2, 3))


class MBConv(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride, expansion, size):
        super().__init__()
        width = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self._expand_conv = None
        if expansion > 1:
            self._expand_conv = SameConv(inputs, width, 1, native=size)
            self._bn0 = wide_bn(width)
        self._depthwise_conv = SameConv(
            width, width, kernel, stride, native=size, groups=width
        )
        self._bn1 = wide_bn(width)
        squeezed = int(inputs * 0.25)
        self._se_reduce = SameConv(width, squeezed, 1, native=1, bias=True)
        self._se_expand = SameConv(squeezed, width, 1, native=1, bias=True)
        self._project_conv = SameConv(width, outputs, 1, native=size)
        self._bn2 = wide_bn(outputs)

    def forward(self, x):
        y = x
        if self._expand_conv is not None:
            y = nn.functional.silu(self._bn0(self._expand_conv(y)))
        y = nn.functional.silu(self._bn1(self._depthwise_conv(y)))
        z = y.mean((2, 3), keepdim=True)
        z = self._se_expand(nn.functional.silu(self._se_reduce(z)))
        y = self._bn2(self._project_conv(torch.sigmoid(z) * y))
        return x + y if self.residual else y


# -- Weights ---------------------------------------------------------------


def keras_name(module):
    """The rule of `seed_tf.encoders` for the names of layers."""
    return "_".join(part.removeprefix("_") for part in module.split("."))


def keras_variable(key, layers):
    """The Keras weight that an entry of a state dict stands for.

    Args:
        key: str, e.g. "layer1.0.bn1.running_var".
        layers: dict of Keras layers by name.

    Returns:
        The variable, and its axes in PyTorch's order (None: they are equal).
    """
    module, _, parameter = key.rpartition(".")
    layer = layers.get(keras_name(module))
    if layer is None:
        raise ValueError(f"No layer {keras_name(module)!r} for {key!r}.")
    attribute = {
        "weight": "gamma" if hasattr(layer, "gamma") else "kernel",
        "bias": "beta" if hasattr(layer, "beta") else "bias",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }[parameter]
    axes = None
    if attribute == "kernel":
        axes = {
            "Conv2D": (3, 2, 0, 1),
            "DepthwiseConv2D": (2, 3, 0, 1),
            "Dense": (1, 0),
        }[type(layer).__name__]
    return getattr(layer, attribute), axes


def load_keras_weights(net, *models):
    """Gives a PyTorch network the weights of Keras models.

    Args:
        net: torch.nn.Module, on whatever device.
        *models: keras.Models whose layers follow the naming rule.

    Returns:
        Pairs of a key of the state dict and a Keras variable.

    Raises:
        ValueError: if anything is left over on either side.
    """
    layers = {layer.name: layer for m in models for layer in m.layers}
    left = {id(w): w.path for m in models for w in m.weights}
    state, pairs = {}, []
    for key, tensor in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
            continue
        variable, axes = keras_variable(key, layers)
        del left[id(variable)]
        # Kernels share memory with the variable, since some are large.
        array = torch.from_dlpack(variable.value.read_value())
        state[key] = array.permute(axes) if axes else array.clone()
        if state[key].shape != tensor.shape:
            raise ValueError(f"{key}: {state[key].shape} for {tensor.shape}.")
        pairs.append((key, variable))
    if left:
        raise ValueError(f"No PyTorch tensor for {sorted(left.values())}.")
    net.load_state_dict(state, assign=True)
    return pairs


# -- Published files -------------------------------------------------------


class Network(nn.Module):
    """A backbone and a head with random weights and statistics.

    Args:
        name: str, registry name of the backbone.
        head: "linear", "mlp", "mlp_bn" or None.
        hidden: int, width inside the head.
        width: int, of a ResNet that is meant to be 64 wide.
        images: float tensor `[B, 3, H, W]`, near whose statistics those of
            BatchNorm are: by any others, a deep random network maps all
            images to about the same point.
        stem: "imagenet" or "cifar", of a ResNet.
        seed: int.
    """

    def __init__(
        self,
        name,
        head,
        images,
        *,
        hidden=48,
        width=64,
        stem="imagenet",
        seed=0,
    ):
        super().__init__()
        torch.manual_seed(seed)
        with torch.device("meta"):
            if name.startswith("resnet"):
                self.backbone = resnet(name, stem, width)
            else:
                self.backbone = backbone(name)
            layers = [nn.Linear(self.backbone.width, 128)]
            if head in ("mlp", "mlp_bn"):
                layers = [nn.Linear(self.backbone.width, hidden), nn.ReLU()]
                layers.append(nn.Linear(hidden, 128))
            if head == "mlp_bn":
                layers.insert(1, nn.BatchNorm1d(hidden))
            self.head = nn.Sequential(*layers if head else [])
        self.to_empty(device="cpu").to(images.dtype)
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        norms = [m for m in self.modules() if hasattr(m, "running_mean")]
        for norm in norms:
            nn.init.normal_(norm.weight, 1.0, 0.2)
            nn.init.normal_(norm.bias, 0.0, 0.2)
            norm.saved_momentum, norm.momentum = norm.momentum, 1.0
        with torch.no_grad():
            self.train()(images)
            for norm in norms:
                norm.momentum = norm.saved_momentum
                noise = torch.rand_like(norm.running_mean)
                deviation = norm.running_var.sqrt()
                norm.running_mean += (noise - 0.5) * deviation
                norm.running_var *= 0.5 + noise
        self.eval()

    def forward(self, x):
        return self.head(self.backbone(x))

    def state(self, prefix="", head="fc"):
        """The state dict as one whose head is a module `head`."""
        layers = self.head.state_dict()
        if len(self.head) == 1:
            layers = {k.removeprefix("0."): v for k, v in layers.items()}
        return {
            **{prefix + k: v for k, v in self.backbone.state_dict().items()},
            **{f"{prefix}{head}.{k}": v for k, v in layers.items()},
        }


def moco_file(net):
    """MoCo v1 or v2, as facebookresearch/moco saves them."""
    state = collections.OrderedDict(
        {
            **net.state("module.encoder_q."),
            **net.state("module.encoder_k."),
            "module.queue": torch.randn(128, 64),
            "module.queue_ptr": torch.zeros(1, dtype=torch.long),
        }
    )
    # As `state_dict()` of a module gives it.
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.randn(3)}}},
    }


def swav_file(net):
    """SwAV, as facebookresearch/swav publishes it: flat."""
    return {
        **net.state("module.", "projection_head"),
        "module.prototypes.weight": torch.randn(30, 128),
    }


def deepcluster_file(net):
    """DeepCluster v2 of the same repository: several prototypes."""
    return {
        **net.state("module.", "projection_head"),
        "module.prototypes.prototypes0.weight": torch.randn(30, 128),
        "module.prototypes.prototypes1.weight": torch.randn(30, 128),
    }


def simclr_file(net):
    """SimCLR, as the authors' code reads it."""
    return {"model": net.state("module.module.module."), "epoch": 200}


def classifier_file(net):
    """A state dict of torchvision, with a classifier of 10 classes."""
    return {
        **net.state(),
        "fc.weight": torch.randn(10, net.backbone.width),
        "fc.bias": torch.randn(10),
    }


def seed_file(student, teacher=None, *, small_patches=False):
    """What the authors' code saves of a distillation."""
    state = student.state("module.student.")
    if teacher is not None:
        state |= teacher.state("module.teacher.", "projection_head")
    state["module.queue"] = torch.randn(128, 64)
    if small_patches:
        state["module.small_queue"] = torch.randn(128, 64)
    state["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    return {"epoch": 200, "arch": "x", "state_dict": state, "optimizer": {}}
