"""Finds the network in a state dict by its keys and shapes.

Training code puts the network beside heads, queues and momentum copies, below
prefixes of its own. A branch is a prefix below which the keys of a network
begin. The network of one branch is brought into one canonical form: the
backbone's modules have their own names, and those of the projection head are
`fc.0`, `fc.1`, ...
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from seed_tf.encoders.backbones import BACKBONES
from seed_tf.encoders.resnet import STEMS, resnet


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is special about the files of one source.

    Attributes:
        title: name of the source, as shown to users.
        mark: regular expression for the start of a key, without wrappers,
            that only files of this source have. None if the source must be
            named.
        branch: regular expression for the branch that the source publishes.
            None where the general preference holds.
        linear: whether `fc` alone is a projection head and no classifier.
        encoder: arguments of `Encoder`.
        backbone: arguments of the backbone.
    """

    title: str
    mark: str | None
    branch: str | None = None
    linear: bool = False
    encoder: dict = dataclasses.field(default_factory=dict)
    backbone: dict = dataclasses.field(default_factory=dict)


# The first source whose mark matches a key is taken.
LAYOUTS = {
    "moco_v1": Layout(
        "MoCo v1", r"encoder_q\.fc\.weight$", r"encoder_q\.", linear=True
    ),
    "moco_v2": Layout("MoCo v2", r"encoder_q\.", r"encoder_q\."),
    "seed": Layout(
        "student distilled by SEED",
        r"student\.(conv1|features|_conv_stem)\.",
        r"student\.$",
        linear=True,
    ),
    "seed_teacher": Layout(
        "teacher in a file of SEED", None, r"teacher\.$", linear=True
    ),
    "deepcluster_v2": Layout("DeepCluster v2", r"prototypes\.prototypes0\."),
    "swav": Layout("SwAV", r"projection_head\.(\d|weight)|prototypes\."),
    "simclr": Layout("SimCLR", r"fc\.1\.running_mean$"),
    # Its images are not normalised, and its max-pooling is TensorFlow's.
    "simclr_tf": Layout(
        "SimCLR v1 in TensorFlow",
        None,
        encoder={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        backbone={"pool_padding": "same"},
    ),
    "torchvision": Layout("network found by its keys", r""),
}

# Modules that wrap another one, and add nothing to it.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|"
    r"_checkpoint_wrapped_module)\."
)
# A moving average of the trained network, the better one of the two.
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|teacher|momentum|target)(?:[._]|$)")
# The first key of each network, below its prefix.
_FIRST = re.compile(
    r"((?:.*?\.)??)(conv1|features\.0\.0|_conv_stem|0)\.weight$"
)
_MOST_BRANCHES = 32
# Modules beside the backbone, and why they are left out.
_BESIDE = (
    (r"queue(_ptr)?$", "queue"),
    (r"n_averaged$", "counter of a moving average"),
    (r"prototypes\d*\.", "prototypes"),
    (r"(fc|_fc|classifier\.3)\.(weight|bias)$", "classifier"),
    (
        r"(fc|heads?|neck|predict\w+|project\w+)\.",
        "projection head",
    ),
)

_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_EFFICIENTNETS = {16: "efficientnet_b0", 23: "efficientnet_b1"}
_NORM = ("weight", "bias", "running_mean", "running_var")
_LINEAR = ("weight", "bias")
# Heads by the parameters of their numbered modules.
_HEADS: dict[frozenset[str], dict[str, Any]] = {
    frozenset(f"{i}.{x}" for i, names in modules for x in names): settings
    for modules, settings in (
        ([(0, _LINEAR)], {"head": "linear"}),
        ([(0, _LINEAR), (2, _LINEAR)], {"head": "mlp"}),
        (
            [(0, _LINEAR), (1, _NORM), (3, _LINEAR)],
            {"head": "mlp", "head_batch_norm": True},
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Contents:
    """A recognised state dict.

    Attributes:
        source: str, key of `LAYOUTS`.
        branch: the prefix of the network's keys, without wrappers.
        tensors: arrays by canonical key, in PyTorch's order of axes.
        keys: the file's own key by canonical key.
        left_out: reasons by name, for each key and each other entry of the
            file that is not used.
        backbone: function without arguments that builds the backbone.
        stem: as of `recognise`, never "auto".
        description: name of the backbone.
        encoder: further arguments of `Encoder`.
        notes: choices that a user should know of, a sentence each.
    """

    source: str
    branch: str
    tensors: dict[str, Any]
    keys: dict[str, str]
    left_out: dict[str, str]
    backbone: Callable[[], keras.Model]
    stem: str
    description: str
    encoder: dict[str, Any]
    notes: list[str]


def recognise(
    tensors: Mapping[str, Any],
    *,
    source: str = "auto",
    head: bool = True,
    branch: str | None = None,
    stem: str = "auto",
    others: Iterable[str] = (),
) -> Contents:
    """Recognises a state dict.

    Args:
        tensors: dict of arrays (or anything with a shape) by key.
        source: "auto" or a key of `LAYOUTS`.
        head: bool, whether to keep the projection head.
        branch: part of the prefix of the wanted network, such as "teacher",
            where a file has several networks.
        stem: "auto", or a key of `seed_tf.encoders.resnet.STEMS`, which a
            ResNet with a 3x3 convolution at its start needs.
        others: names of the other entries of the file.

    Returns:
        `Contents`. A weight may still be missing or have another shape.

    Raises:
        ValueError: if this library does not have the network, the file is
            from another source than the given one, or it is not clear which
            of several networks or which stem is meant.
    """
    full: dict[str, str] = {}
    for key in tensors:
        name = _WRAPPERS.sub("", key)
        if name in full:
            raise ValueError(
                f"Two keys are one and the same weight: {_cut(full[name])!r} "
                f"and {_cut(key)!r}."
            )
        full[name] = key
    source = _source(full, source)
    layout = LAYOUTS[source]
    branches = _branches(full, tensors)
    prefix, notes = _choose(branches, layout, branch, full, tensors)
    names = branches[prefix]
    found, settings = None, {"head": None}
    if head:
        found, settings = _head(full, tensors, prefix, layout)
    kept, keys = {}, {}
    left_out = dict.fromkeys(others, "no weights of the network")
    unused = [x for x in branches if x != prefix]
    nested = tuple(x for x in unused if x.startswith(prefix))
    for name, key in full.items():
        canonical = None if name.startswith(nested) else names.get(name)
        reason = _reason(name, canonical, unused)
        if found is not None and name.startswith(found):
            rest = name.removeprefix(found)
            canonical = f"fc.{rest}" if "." in rest else f"fc.0.{rest}"
            counter = rest.endswith("num_batches_tracked")
            reason = "counters of BatchNorm" if counter else None
        if reason is None:
            kept[canonical], keys[canonical] = tensors[key], key
        else:
            left_out[key] = reason
    if head and not found and "projection head" in left_out.values():
        notes.append(
            "its projection head is not one that an Encoder can have, so the "
            "embeddings are the pooled features"
        )
    build, description, stem = _backbone(kept, keys, stem, layout.backbone)
    return Contents(
        source=source,
        branch=prefix.rstrip("."),
        tensors=kept,
        keys=keys,
        left_out=left_out,
        backbone=build,
        stem=stem,
        description=description,
        encoder={**settings, **layout.encoder},
        notes=notes,
    )


def _source(names, source):
    def has(mark):
        return any(re.match(mark, name) for name in names)

    marked = [k for k, v in LAYOUTS.items() if v.mark is not None]
    found = next(name for name in marked if has(LAYOUTS[name].mark))
    if source == "auto":
        return found
    layout = LAYOUTS[source]
    mark = layout.mark or (layout.branch or "").rstrip("$")
    if not has(mark):
        raise ValueError(
            f"No key of the file begins with {mark}, as in a file of "
            f'{layout.title}. It looks like source="{found}". '
            f"Received: source={source!r}, keys such as {_some(names)}."
        )
    return source


def _branches(names, tensors):
    """Returns the canonical names below each prefix that begins a network."""
    found = {}
    for name, key in names.items():
        match = _FIRST.match(name)
        if match is None or match[1] in found:
            continue
        prefix, first = match.groups()
        needed = {"conv1": "layer1.0.conv1.weight", "0": "1.running_mean"}
        if first in needed and prefix + needed[first] not in names:
            continue
        if len(found) == _MOST_BRANCHES:
            raise ValueError(
                f"Expected at most {_MOST_BRANCHES} networks in a file. "
                "Received more."
            )
        inside = {
            x: x.removeprefix(prefix) for x in names if x.startswith(prefix)
        }
        if first == "0":
            image = len(tensors[key].shape) == 4
            inside = _numbered(inside) if image else {}
        if inside:
            # Small ResNets for CIFAR call it a shortcut.
            found[prefix] = {
                x: re.sub(r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.", y)
                for x, y in inside.items()
            }
    return found


def _numbered(names):
    """Names the modules of a ResNet that was cut into nn.Sequential."""
    stages = sorted(
        {
            int(match[1])
            for x in names.values()
            if (match := re.match(r"(\d+)\.0\.conv1\.weight$", x))
        }
    )
    if len(stages) != 4:
        return {}
    modules = {"0": "conv1", "1": "bn1"}
    modules |= {str(n): f"layer{i}" for i, n in enumerate(stages, 1)}
    return {
        x: f"{modules.get(number, number)}.{rest}"
        for x, y in names.items()
        for number, _, rest in [y.partition(".")]
    }


def _choose(branches, layout, branch, names, tensors):
    """Returns the prefix of the wanted network, and what to say of it."""
    if not branches:
        deep = any(re.search(r"conv1\.0\.weight$", x) for x in names)
        raise ValueError(
            "Expected the keys of a ResNet (conv1.weight, layer1.0), of "
            "MobileNetV3-Large (features.0.0.weight) or of an EfficientNet "
            "(_conv_stem.weight) in the layouts that docs/checkpoints.md "
            f"shows. Received: keys such as {_some(names)}."
            + (
                " A ResNet whose stem has several convolutions (ResNet-C, "
                "ResNet-D) is another network."
                if deep
                else ""
            )
        )
    fit = list(branches)
    if branch is not None:
        wanted = f".{branch.strip('.')}."
        fit = [x for x in fit if wanted in f".{x}"] or [
            x for x in fit if branch in x
        ]
    elif layout.branch and any(re.match(layout.branch, x) for x in fit):
        fit = [x for x in fit if re.match(layout.branch, x)]
    elif len(fit) > 1:
        fit = [x for x in fit if _AVERAGED.search(x)] or fit
    if len(fit) > 1:
        fit = _distinct({x: branches[x] for x in fit}, names, tensors)
    shown = [x.rstrip(".") or "(no prefix)" for x in branches]
    if len(fit) != 1:
        raise ValueError(
            "Expected `branch` to name one network of the file, which has "
            f"{_some(shown, 8)}. Received: branch={branch!r}. Of the commands, "
            "seed-tf convert has --branch."
        )
    others = [x for x in shown if x != fit[0].rstrip(".")]
    notes = []
    if others and branch is None:
        notes.append(
            f"the network is {fit[0].rstrip('.')!r}, and not {_some(others)}"
        )
    return fit[0], notes


def _distinct(branches, names, tensors):
    """Returns the prefixes, without those that repeat another one's weights."""
    kept: dict[str, dict[str, Any]] = {}
    for prefix, inside in branches.items():
        arrays = {y: tensors[names[x]] for x, y in inside.items()}
        if not any(
            arrays.keys() == other.keys()
            and all(np.array_equal(arrays[x], other[x]) for x in arrays)
            for other in kept.values()
        ):
            kept[prefix] = arrays
    return list(kept)


def _head(names, tensors, prefix, layout):
    """Returns the prefix of the projection head, and its settings."""
    for start in _head_prefixes(prefix):
        inside = {
            x.removeprefix(start): tensors[key]
            for x, key in names.items()
            if x.startswith(start) and not x.endswith("num_batches_tracked")
        }
        if layout.linear or not start.endswith("fc."):
            inside = {
                f"0.{x}" if x in _LINEAR else x: y for x, y in inside.items()
            }
        settings = _HEADS.get(frozenset(inside))
        # In order; 1 is the BatchNorm, where there is one.
        kernels = [
            inside[x]
            for x in ("0.weight", "2.weight", "3.weight")
            if x in inside
        ]
        if settings and all(len(kernel.shape) == 2 for kernel in kernels):
            settings = {**settings, "embedding_dim": int(kernels[-1].shape[0])}
            if len(kernels) > 1:
                settings["hidden_dim"] = int(kernels[0].shape[0])
            return start, settings
    return None, {"head": None}


def _head_prefixes(prefix):
    """Yields where the head of a backbone may be."""
    yield from (f"{prefix}fc.", f"{prefix}projection_head.")
    parent, dot, last = prefix.rstrip(".").rpartition(".")
    if last == "0":
        yield f"{parent}{dot}1.mlp."
    if "backbone" in last:
        for name in ("projection_head", "projector", "neck"):
            module = f"{parent}{dot}{last.replace('backbone', name)}."
            yield from (module, f"{module}layers.", f"{module}mlp.")


def _reason(name, canonical, branches):
    """Why a key is left out, or None."""
    if canonical is None:
        for prefix in branches:
            if name.startswith(prefix):
                return f"network {prefix.rstrip('.')!r}"
    if name.endswith("num_batches_tracked"):
        return "counters of BatchNorm"
    for pattern, reason in _BESIDE:
        if canonical is None:
            beside = re.search(rf"(?:^|[._]){pattern}", name)
        else:
            beside = re.match(pattern, canonical)
        if beside:
            return reason
    return "beside the network" if canonical is None else None


def _backbone(tensors, keys, stem, arguments):
    """The function that builds the backbone, its description, and its stem."""
    if "conv1.weight" in tensors:
        return _resnet(tensors, keys, stem, arguments)
    name = "mobilenet_v3_large"
    if "_conv_stem.weight" in tensors:
        blocks = _count(tensors, r"_blocks\.(\d+)\.")
        if blocks not in _EFFICIENTNETS:
            raise ValueError(
                "Expected an EfficientNet of 16 (B0) or 23 blocks (B1). "
                f"Received: {blocks} blocks."
            )
        name = _EFFICIENTNETS[blocks]
    if stem not in ("auto", "imagenet"):
        raise ValueError(f"`stem` is for ResNets. Received: a {name}.")
    return lambda: BACKBONES[name](name, stem="imagenet"), name, "imagenet"


def _resnet(tensors, keys, stem, arguments):
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
    shape = tuple(tensors["conv1.weight"].shape)
    stems = [k for k, v in STEMS.items() if shape[1:] == (3, v.size, v.size)]
    if not stems or shape[0] < 1:
        raise ValueError(
            f"{keys['conv1.weight']!r} must have shape (width, 3, 7, 7), or "
            f"(width, 3, 3, 3) for small images. Received: shape {shape}."
        )
    if stem == "auto" and len(stems) == 1:
        (stem,) = stems
    if stem not in stems:
        raise ValueError(
            f"Expected `stem` to be one of {', '.join(stems)} for a first "
            f"convolution of shape {shape}: a state dict does not record its "
            f"stride and padding. See docs/checkpoints.md. Received: "
            f"stem={stem!r}. Of the commands, seed-tf convert has --stem."
        )
    width = int(shape[0])
    if width != 64:
        name += f"w{width // 64}" if width % 64 == 0 else f"_width_{width}"
    settings: dict[str, Any] = {
        "depths": depths,
        "bottleneck": bottleneck,
        "width": width,
        "stem": stem,
    }
    description = name if stem == "imagenet" else f"{name}, stem {stem}"
    return lambda: resnet(name, **settings, **arguments), description, stem


def _count(tensors, pattern):
    """How many modules of a numbered list there are."""
    return len({m[1] for x in tensors if (m := re.match(pattern, x))})


def _some(names, most=4):
    return ", ".join(repr(_cut(x)) for x in list(names)[:most]) or "none"


def _cut(key):
    return key if len(key) <= 120 else f"{key[:117]}..."
