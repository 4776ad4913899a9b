"""Published files with random weights, and Keras's weights for PyTorch."""

import collections

import torch
from torch import nn

from seed_tf.conversion import torch_networks

# On busy cores two threads that wait for each other are slower than one.
torch.set_num_threads(1)


def encoder(name, stem, head):
    """A backbone and a head `fc` of one of the published kinds, 16 wide."""
    net = torch_networks.backbone(name, stem)
    with torch.device("meta"):
        net.add_module("fc", torch_networks.head(head, net.width, 64, 16))
    return net


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
            self.backbone = torch_networks.backbone(name, stem, width)
            self.head = torch_networks.head(
                head, self.backbone.width, hidden, 128
            )
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
