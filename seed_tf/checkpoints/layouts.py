"""Recognises the network in a state dict by its keys and shapes.

Every source is brought into one canonical form: the backbone's modules have
their own names, and those of the projection head are `fc.0`, `fc.1`, ...
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from seed_tf.encoders.backbones import BACKBONES
from seed_tf.encoders.resnet import resnet


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one source names the parts of its files.

    All patterns are regular expressions for the start of a key, after the
    `module.` that DataParallel puts before each.

    Attributes:
        title: name of the source, as shown to users.
        mark: pattern that only keys of this source match. None if the source
            must be named.
        network: pattern of the start of the network's keys.
        left_out: reasons by pattern for keys that are left out on purpose.
        encoder: arguments of `Encoder`.
        backbone: arguments of the backbone.
    """

    title: str
    mark: str | None
    network: str = ""
    left_out: dict = dataclasses.field(default_factory=dict)
    encoder: dict = dataclasses.field(default_factory=dict)
    backbone: dict = dataclasses.field(default_factory=dict)


_MOCO: dict[str, Any] = {
    "network": r"encoder_q\.",
    "left_out": {r"encoder_k\.": "momentum encoder", r"queue": "queue"},
}
_PROTOTYPES: dict[str, Any] = {"left_out": {r"prototypes\.": "prototypes"}}
_QUEUES = {r"(small_)?queue(_ptr)?$": "queue"}

# The first source whose mark matches a key is taken.
LAYOUTS = {
    "moco_v1": Layout("MoCo v1", r"encoder_q\.fc\.weight$", **_MOCO),
    "moco_v2": Layout("MoCo v2", r"encoder_q\.", **_MOCO),
    "seed": Layout(
        "student distilled by SEED",
        r"student\.",
        r"student\.",
        {r"teacher\.": "teacher", **_QUEUES},
    ),
    "seed_teacher": Layout(
        "teacher in a file of SEED",
        None,
        r"teacher\.",
        {r"student\.": "student", **_QUEUES},
    ),
    "deepcluster_v2": Layout(
        "DeepCluster v2", r"prototypes\.prototypes0\.", **_PROTOTYPES
    ),
    "swav": Layout("SwAV", r"projection_head\.|prototypes\.", **_PROTOTYPES),
    "simclr": Layout("SimCLR", r"fc\.1\.running_mean$"),
    # Its images are not normalised, and its max-pooling is TensorFlow's.
    "simclr_tf": Layout(
        "SimCLR v1 in TensorFlow",
        None,
        encoder={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        backbone={"pool_padding": "same"},
    ),
    "torchvision": Layout(
        "plain backbone", r"", left_out={r"fc\.(weight|bias)$": "classifier"}
    ),
}

_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_EFFICIENTNETS = {16: "efficientnet_b0", 23: "efficientnet_b1"}
_HEADS: dict[tuple[int, ...], dict[str, Any]] = {
    (): {"head": None},
    (0,): {"head": "linear"},
    (0, 2): {"head": "mlp"},
    (0, 1, 3): {"head": "mlp", "head_batch_norm": True},
}


@dataclasses.dataclass(frozen=True)
class Contents:
    """A recognised state dict.

    Attributes:
        source: str, key of `LAYOUTS`.
        tensors: arrays by canonical key, in PyTorch's order of axes.
        keys: the file's own key by canonical key.
        left_out: reasons by name, for each key and each other entry of the
            file that is not used.
        backbone: function without arguments that builds the backbone.
        description: name of the backbone.
        encoder: further arguments of `Encoder`.
    """

    source: str
    tensors: dict[str, Any]
    keys: dict[str, str]
    left_out: dict[str, str]
    backbone: Callable[[], keras.Model]
    description: str
    encoder: dict[str, Any]


def recognise(
    tensors: Mapping[str, Any],
    *,
    source: str = "auto",
    head: bool = True,
    others: Iterable[str] = (),
) -> Contents:
    """Recognises a state dict.

    Args:
        tensors: dict of arrays (or anything with a shape) by key.
        source: "auto" or a key of `LAYOUTS`.
        head: bool, whether to keep the projection head.
        others: names of the other entries of the file.

    Returns:
        `Contents`. A weight may still be missing or have another shape.

    Raises:
        ValueError: if this library does not have the network, or the file is
            from another source than the given one.
    """
    short = {key: re.sub(r"^(module\.)+", "", key) for key in tensors}
    source = _source(short, source)
    layout = LAYOUTS[source]
    left_out = dict.fromkeys(others, "no weights of the network")
    kept, keys = {}, {}
    for key, array in tensors.items():
        name = short[key]
        reason = _reason(layout, name)
        if reason is None:
            name = re.sub(rf"^{layout.network}(module\.)*", "", name)
            name = re.sub(r"^projection_head\.", "fc.", name)
            name = re.sub(r"^fc\.(weight|bias)$", r"fc.0.\1", name)
            if name.endswith(".num_batches_tracked"):
                reason = "counters of BatchNorm"
            elif name.startswith("fc.") and not head:
                reason = "projection head"
        if reason is not None:
            left_out[key] = reason
        elif name in kept:
            raise ValueError(
                f"Two keys are one and the same weight: {keys[name]!r} and "
                f"{key!r}."
            )
        else:
            kept[name], keys[name] = array, key
    backbone, description = _backbone(kept, keys, layout.backbone)
    return Contents(
        source=source,
        tensors=kept,
        keys=keys,
        left_out=left_out,
        backbone=backbone,
        description=description,
        encoder={**_head(kept, keys), **layout.encoder},
    )


def _source(short, source):
    def has(mark):
        return any(re.match(mark, name) for name in short.values())

    marked = [k for k, v in LAYOUTS.items() if v.mark is not None]
    found = next(name for name in marked if has(LAYOUTS[name].mark))
    if source == "auto":
        return found
    layout = LAYOUTS[source]
    if not has(layout.mark or layout.network):
        raise ValueError(
            f"No key of the file begins with {layout.mark or layout.network}, "
            f'as in a file of {layout.title}. It looks like source="{found}". '
            f"Received: source={source!r}, keys such as {_some(short)}."
        )
    return source


def _reason(layout, name):
    """Why a key is left out, or None."""
    for pattern, reason in layout.left_out.items():
        if re.match(pattern, name):
            return reason
    return None


def _backbone(tensors, keys, arguments):
    """The function that builds the backbone, and its description."""
    if "conv1.weight" in tensors:
        return _resnet(tensors, keys, arguments)
    name = None
    if "features.0.0.weight" in tensors:
        name = "mobilenet_v3_large"
    elif "_conv_stem.weight" in tensors:
        blocks = _count(tensors, r"_blocks\.(\d+)\.")
        name = _EFFICIENTNETS.get(blocks)
        if name is None:
            raise ValueError(
                "Expected an EfficientNet of 16 (B0) or 23 blocks (B1). "
                f"Received: {blocks} blocks."
            )
    if name is None:
        raise ValueError(
            "Expected the keys of a ResNet (conv1.weight), of MobileNetV3-Large"
            " (features.0.0.weight) or of an EfficientNet (_conv_stem.weight) "
            "in the layouts that docs/checkpoints.md shows. Received: keys "
            f"such as {_some(keys.values())}."
        )
    return lambda: BACKBONES[name](name, stem="imagenet"), name


def _resnet(tensors, keys, arguments):
    depths = tuple(
        _count(tensors, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)
    )
    bottleneck = any(re.match(r"layer\d\.\d+\.conv3\.", x) for x in tensors)
    name = _RESNETS.get((depths, bottleneck))
    if name is None:
        raise ValueError(
            "Expected the blocks of ResNet-18, 34, 50, 101 or 152. Received: "
            f"{'bottlenecks' if bottleneck else 'basic blocks'} in stages of "
            f"{depths}."
        )
    shape = tensors["conv1.weight"].shape
    stem = {(3, 7, 7): "imagenet", (3, 3, 3): "cifar"}.get(tuple(shape[1:]))
    if stem is None or shape[0] < 1:
        raise ValueError(
            f"{keys['conv1.weight']!r} must have shape (width, 3, 7, 7), or "
            "(width, 3, 3, 3) for small images. Received: shape "
            f"{tuple(shape)}."
        )
    width = int(shape[0])
    if width != 64:
        name += f"w{width // 64}" if width % 64 == 0 else f"_width_{width}"
    settings: dict[str, Any] = {
        "depths": depths,
        "bottleneck": bottleneck,
        "width": width,
    }
    description = name if stem == "imagenet" else f"{name}, stem cifar"
    return (
        lambda: resnet(name, **settings, stem=stem, **arguments),
        description,
    )


def _head(tensors, keys):
    modules = {
        int(found[1]) for x in tensors if (found := re.match(r"fc\.(\d+)\.", x))
    }
    head = _HEADS.get(tuple(sorted(modules)))
    # In order; fc.1 is the BatchNorm, where there is one.
    kernels = [
        tensors.get(f"fc.{module}.weight") for module in sorted(modules - {1})
    ]
    if head is None or not all(
        kernel is not None and len(kernel.shape) == 2 for kernel in kernels
    ):
        named = [
            f"{keys[x]!r} {tuple(tensors[x].shape)}"
            for x in tensors
            if x.startswith("fc.")
        ]
        raise ValueError(
            "Expected a projection head Linear, Linear-ReLU-Linear or "
            f"Linear-BatchNorm-ReLU-Linear. Received: {', '.join(named)}."
        )
    if kernels:
        head = {**head, "embedding_dim": int(kernels[-1].shape[0])}
    if len(kernels) > 1:
        head["hidden_dim"] = int(kernels[0].shape[0])
    return head


def _count(tensors, pattern):
    """How many modules of a numbered list there are."""
    return len({m[1] for x in tensors if (m := re.match(pattern, x))})


def _some(names, most=4):
    return ", ".join(map(repr, list(names)[:most])) or "none"
