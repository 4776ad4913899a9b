"""PyTorch files, read as data and never as programs.

A `.pth` file is a pickle, and a pickle is a program. `torch.load` with
`weights_only=True` only makes tensors and containers. Before the load,
archives are checked for entries that unpack to more bytes than the file has,
and pickles for what they cost; after the load, tensors are checked for more
values than they store.
"""

from __future__ import annotations

import collections
import collections.abc
import io
import mmap
import os
import pickle
import re
import zipfile
from typing import Any

import numpy as np

from seed_tf.checkpoints import pickles
from seed_tf.io.extras import extra

# What training code saves beside its tensors. None of it is made: each object
# is left out, and stands in the file for itself.
_HARMLESS = re.compile(
    r"(argparse|types)\.\w*Namespace|pathlib\.[\w.]*Path|(typing|enum)\.\w+|"
    r"numpy\.(dtype|ndarray|bool_?|u?int\d+|float\d+|dtypes\.\w+)|"
    r"numpy\.(_core|core)\.(multiarray|numeric)\.\w+|"
    r"(datetime|decimal|fractions|uuid|omegaconf|yacs)\.[\w.]+|"
    r"builtins\.(dict|list|tuple|int|float|str|bool|object|slice|range)"
)
_DICTS = re.compile(
    r"collections\.defaultdict|[\w.]+\.(AttributeDict|AttrDict|ConfigDict|"
    r"CfgNode|EasyDict|Munch)"
)


class _LeftOut:
    """Stands for a harmless object that is no tensor."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


class _LeftOutDict:
    """Stands for dict-like classes. PyTorch fills an OrderedDict only."""

    def __new__(cls, *args, **kwargs):
        return collections.OrderedDict()


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the state dicts of a PyTorch file.

    Args:
        path: str, a file that `torch.save` wrote, in either of its formats.

    Returns:
        All tensors as NumPy arrays by key, and the file's other entries, as
        text where they are text. The key of a tensor in nested dicts is their
        keys, joined by dots, without those that all kernels share. Arrays of
        newer files are mapped from the disk, not held in memory.

    Raises:
        ValueError: if PyTorch is missing, or the file is damaged, would run
            code, is a decompression bomb, or has no state dict.
    """
    torch = _import_torch(path)
    archive = _is_archive(path)
    if archive:
        _check_archive(path)
    try:
        known = [
            (stand_in, name)
            for name in _names(path, archive)
            for pattern, stand_in in (
                (_HARMLESS, _LeftOut),
                (_DICTS, _LeftOutDict),
            )
            if pattern.fullmatch(name)
        ]
        with torch.serialization.safe_globals(known):
            contents = torch.load(
                path, map_location="cpu", weights_only=True, mmap=archive
            )
    except pickles.BombError as error:
        raise ValueError(f"{path!r} is refused: {error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:
        # PyTorch raises whatever its readers of pickles and archives raise.
        raise ValueError(
            f"{path!r} is no whole PyTorch file: {_first_line(error)}"
        ) from error
    tensors: dict[str, Any] = {}
    others: dict[str, str] = {}
    _collect(contents, (), tensors, others, torch.Tensor, set())
    if not tensors:
        raise ValueError(
            f"{path!r} has no state dict, that is tensors by name. Received: "
            f"{type(contents).__name__} with {_some(sorted(others))}."
        )
    # Where the networks are. A loss or a counter may be elsewhere.
    kernels = [x[:-1] for x, y in tensors.items() if y.ndim == 4]
    shared = os.path.commonprefix(kernels or [x[:-1] for x in tensors])
    arrays = {}
    for names, tensor in tensors.items():
        inside = names[: len(shared)] == shared
        key = ".".join(names[len(shared) :] if inside else names)
        arrays[key] = _array(path, key, tensor, torch)
    return arrays, dict(sorted(others.items()))


def write(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes a state dict. Raises ValueError if PyTorch is missing."""
    torch = _import_torch(path)
    tensors = {k: torch.from_numpy(np.array(a)) for k, a in arrays.items()}
    torch.save(collections.OrderedDict(tensors), path)


def _is_archive(path):
    """Whether a file is a ZIP archive, as PyTorch writes since 1.6.

    Raises:
        ValueError: if it begins as one and does not end as one.
    """
    with open(path, "rb") as file:
        begins = file.read(4) == b"PK\x03\x04"
    if begins != zipfile.is_zipfile(path):
        raise ValueError(
            f"{path!r} is no whole file: it {'begins' if begins else 'ends'} "
            f"as an archive does, and does not {'end' if begins else 'begin'} "
            "as one. Was its download interrupted?"
        )
    return begins


def _check_archive(path):
    """Refuses an archive that unpacks to more than its file holds."""
    size = os.path.getsize(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path!r} is no whole archive: {error}.") from error
    unpacked = sum(entry.file_size for entry in entries)
    packed = [e for e in entries if e.compress_type != zipfile.ZIP_STORED]
    if packed or unpacked > size:
        raise ValueError(
            f"{path!r} is refused: its entries declare {unpacked:,} bytes, the "
            f"file has {size:,}, and {len(packed)} of {len(entries)} entries "
            "are compressed. PyTorch writes them uncompressed."
        )


def _import_torch(path):
    # A .keras file, which `convert` makes of it once, needs no PyTorch.
    with extra("torch", f"PyTorch files such as {path!r}"):
        import torch
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if version < (2, 6):
        raise ValueError(
            "`weights_only` is no protection before PyTorch 2.6 "
            "(CVE-2025-32434): pip install --upgrade 'seed_tf[torch]'. "
            f"Received: PyTorch {torch.__version__}."
        )
    return torch


def _names(path, archive):
    """Returns the names that the pickles of a file use, having checked them.

    Raises:
        ValueError: as `pickles.names_in`.
    """
    found: set[str] = set()
    if archive:
        with zipfile.ZipFile(path) as entries:
            for name in entries.namelist():
                if name.endswith(".pkl"):
                    found |= pickles.names_in(io.BytesIO(entries.read(name)))
        return found
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        # Two numbers, facts about the machine, contents, names of storages.
        for _ in range(5):
            found |= pickles.names_in(data)
    return found


def _refusal(path, message):
    found = re.search(r"(?:GLOBAL|global) ([\w.]+)", message)
    if found is None:
        # PyTorch advises to run the program.
        _, _, reason = message.partition("WeightsUnpickler error: ")
        reason = _first_line(reason or "its pickle is damaged")
        return f"{path!r} is no whole PyTorch file: {reason}"
    return (
        f"{path!r} is refused: it is not weights alone, but a program that "
        f"uses `{found[1]}`, and none of it was run. If you trust who made it, "
        "let their code load it, and save nothing but the state dict."
    )


def _first_line(error):
    return f"{str(error).strip() or type(error).__name__}".splitlines()[0]


def _collect(value, names, tensors, others, kind, seen):
    """Finds the tensors in nested dicts. Returns whether there are any."""
    if isinstance(value, kind):
        tensors[names] = value
        return True
    if not isinstance(value, collections.abc.Mapping) or id(value) in seen:
        return False
    seen.add(id(value))
    rest, any_found = [], False
    for key, each in value.items():
        inner = (*names, key)
        if isinstance(key, str) and _collect(
            each, inner, tensors, others, kind, seen
        ):
            any_found = True
        elif isinstance(key, (str, int)):
            rest.append((inner, each))
    if any_found or not names:
        for inner, each in rest:
            text = each[:100] if isinstance(each, str) else ""
            others[".".join(map(str, inner))] = text
    return any_found


def _array(path, key, tensor, torch):
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(
            f"{path!r}: {key!r} must be a dense tensor. Received: "
            f"{tensor.layout}, {tensor.dtype}, on {tensor.device}."
        )
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored:
        raise ValueError(
            f"{path!r} is refused: {key!r} claims shape {tuple(tensor.shape)}, "
            f"and stores {stored:,} bytes."
        )
    if tensor.is_floating_point() and tensor.dtype not in (
        *(torch.float16, torch.float32, torch.float64),
    ):
        tensor = tensor.float()
    return tensor.numpy()


def _some(names, most=8):
    shown = ", ".join(map(repr, names[:most])) or "nothing"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return shown + more
