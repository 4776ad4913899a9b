"""The authors' algorithm written plainly in PyTorch, what we compare with.

Networks, queue, loss, optimiser and order of operations are those of the
authors' code, and nothing that it gains from PyTorch's own kernels is held
back: swish and hard-swish are single operations, activations and additions of
ResNets are in place, the queue is not copied, evenly padded convolutions pad
by themselves, and EfficientNet goes without its dropout and drop-connect.
Images come normalised, in memory. The loss is computed in float32 in any case:
16 bits move a logit of the teacher, a cosine over 0.01, by tenths.
"""

import collections
import dataclasses

import torch
from torch import nn
from torch.nn import functional

from seed_tf.conversion import torch_networks

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Options:
    """Ways to run the step.

    Attributes:
        channels_last: bool, memory format of images and weights.
        autocast: bool, both networks in automatic bfloat16.
        compile: bool, networks and loss by torch.compile.
        teacher: "float32", or "bfloat16" for its weights and arithmetic.
        fold: bool, the teacher's BatchNorm folded into its convolutions.
        fused: bool, the optimiser as one kernel.
    """

    channels_last: bool = False
    autocast: bool = False
    compile: bool = False
    teacher: str = "float32"
    fold: bool = False
    fused: bool = False


class Step:
    """One training step of SEED: called on images it returns the loss.

    Args:
        student: nn.Module, normalised images `[B, 3, H, W]` float32 ->
            embeddings `[B, D]`.
        teacher: nn.Module of the same kind.
        queue: float32 `[D, K]`, columns of length 1; K a multiple of B.
        options: `Options`.
        learning_rate: float.
        device: str.
    """

    def __init__(
        self,
        student,
        teacher,
        queue,
        options=Options(),
        *,
        learning_rate=0.03,
        device="cpu",
    ):
        self.options, self.device = options, device
        layout = torch.channels_last
        self.layout = (
            layout if options.channels_last else torch.contiguous_format
        )
        teacher = teacher.eval().requires_grad_(False)
        if options.fold:
            from torch.fx.experimental import optimization

            teacher = optimization.fuse(teacher)
        self.teacher_dtype = getattr(torch, options.teacher)
        self.teacher = teacher.to(
            device, self.teacher_dtype, memory_format=self.layout
        )
        self.student = student.train().to(device, memory_format=self.layout)
        self.queue, self.cursor = queue.to(device), 0
        self.loss = loss
        self.optimizer = torch.optim.SGD(
            self.student.parameters(),
            learning_rate,
            momentum=0.9,
            weight_decay=1e-4,
            fused=options.fused or None,
        )
        if options.compile:
            self.student = torch.compile(self.student)
            self.teacher = torch.compile(self.teacher)
            self.loss = torch.compile(self.loss)

    def put(self, images):
        """Float32 NCHW images as the step wants them, out of its time."""
        return images.to(self.device, memory_format=self.layout)

    def __call__(self, images):
        autocast = torch.autocast(
            self.device, torch.bfloat16, enabled=self.options.autocast
        )
        with torch.no_grad(), autocast:
            target = self.teacher(images.to(self.teacher_dtype))
            target = functional.normalize(target.float())
        with autocast:
            embedding = self.student(images)
        value = self.loss(
            functional.normalize(embedding.float()), target, self.queue
        )
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        end = self.cursor + len(images)
        self.queue[:, self.cursor : end] = target.T
        self.cursor = end % self.queue.shape[1]
        return value.item()


def loss(student, teacher, queue):
    """Cross-entropy over {own teacher embedding, queue}, in [B, K+1] logits."""

    def logits(z, temperature):
        own = (z * teacher).sum(1, keepdim=True)
        return torch.cat([own, z @ queue], 1) / temperature

    target = logits(teacher, 0.01).softmax(1)
    return -(target * logits(student, 0.2).log_softmax(1)).sum(1).mean()


def network(name):
    """A backbone by its registry name and an "mlp" head, random weights."""
    net = skeleton(name).to_empty(device="cpu")
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return net


def network_of(name, encoder):
    """The same with the weights of a `seed_tf.Encoder`."""
    from seed_tf.checkpoints.weights import state_dict

    net = skeleton(name)
    weights = {
        f"{int(key.startswith('fc.'))}.{key}": array
        for key, array in state_dict(encoder).items()
    }
    return torch_networks.load(net, weights).train().requires_grad_(True)


def skeleton(name):
    """The network without weights."""
    net = torch_networks.backbone(name)
    with torch.device("meta"):
        layers = torch_networks.head("mlp", net.width, net.width, 128)
    layers[1].inplace = True
    head = nn.Sequential(collections.OrderedDict(fc=layers))
    for module in net.modules():
        module.__class__ = _IN_PLACE.get(type(module), type(module))
        if isinstance(module, torch_networks.SameConv):
            _pad_itself(module)
    return nn.Sequential(net, head)


def random_queue(size, dim=128):
    return functional.normalize(torch.randn(dim, size), dim=0)


def normalised(images):
    """uint8 `[..., H, W, 3]` of NumPy -> float32 `[..., 3, H, W]`."""
    images = torch.from_numpy(images).float() / 255
    return ((images - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, -3)


class _BasicBlock(torch_networks.BasicBlock):
    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y))
        return y.add_(self.downsample(x)).relu_()


class _Bottleneck(torch_networks.Bottleneck):
    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        y = self.bn3(self.conv3(y))
        return y.add_(self.downsample(x)).relu_()


_IN_PLACE = {
    torch_networks.BasicBlock: _BasicBlock,
    torch_networks.Bottleneck: _Bottleneck,
}


def _pad_itself(conv):
    """Makes an evenly padded convolution an ordinary one."""
    (size, _), (stride, _) = conv.kernel_size, conv.stride
    steps = -(-conv.native // stride) - 1
    total = max(steps * stride + size - conv.native, 0)
    if total % 2 == 0:
        conv.__class__, conv.padding = nn.Conv2d, (total // 2, total // 2)
