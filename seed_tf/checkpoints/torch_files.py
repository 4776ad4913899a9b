"""PyTorch files, read as data and never as programs.

A `.pth` file is a pickle, and a pickle is a program. `torch.load` with
`weights_only=True` only makes tensors and containers. Before the load,
archives are checked for entries that unpack to more bytes than the file has;
after the load, tensors are checked for more values than they store.
"""

from __future__ import annotations

import argparse
import collections.abc
import os
import pickle
import re
import zipfile

import numpy as np

from seed_tf.io.extras import extra

# Where training code puts the state dict beside optimiser, epoch and so on.
_STATE_DICTS = ("state_dict", "model")


def read(path: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads the state dict of a PyTorch file.

    Args:
        path: str, a file that `torch.save` wrote, in either of its formats.

    Returns:
        The state dict, NumPy arrays by key, and the sorted names of the
        file's other entries. Arrays of newer files are mapped from the disk,
        not held in memory.

    Raises:
        ValueError: if PyTorch is missing, or the file is damaged, would run
            code, is a decompression bomb, or has no state dict.
    """
    torch = _import_torch(path)
    archive = _is_archive(path)
    if archive:
        _check_archive(path)
    try:
        # Training options, which some files carry, are harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            contents = torch.load(
                path, map_location="cpu", weights_only=True, mmap=archive
            )
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:
        # PyTorch raises whatever its readers of pickles and archives raise.
        raise ValueError(
            f"{path!r} is no whole PyTorch file: {_first_line(error)}"
        ) from error
    tensors, others = _state_dict(contents, torch.Tensor)
    if not tensors:
        raise ValueError(
            f"{path!r} has no state dict, that is tensors by name, at its top "
            f"or under {' or '.join(map(repr, _STATE_DICTS))}. Received: "
            f"{type(contents).__name__} with {_some(others)}."
        )
    return {k: _array(path, k, t, torch) for k, t in tensors.items()}, others


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


def _refusal(path, message):
    found = re.search(r"(?:GLOBAL|global) ([\w.]+)", message)
    if found is None:
        return f"{path!r} is no whole PyTorch file: {_first_line(message)}"
    return (
        f"{path!r} is refused: it is not weights alone, but a program that "
        f"uses `{found[1]}`, and none of it was run. If you trust who made it, "
        "let their code load it, and save nothing but the state dict."
    )


def _first_line(error):
    return f"{str(error).strip() or type(error).__name__}".splitlines()[0]


def _state_dict(contents, tensor):
    others = []
    if isinstance(contents, collections.abc.Mapping):
        for name in _STATE_DICTS:
            if isinstance(contents.get(name), collections.abc.Mapping):
                others += [key for key in contents if key != name]
                contents = contents[name]
                break
        entries = contents.items()
    else:
        entries = ()
    tensors = {
        k: v for k, v in entries if isinstance(k, str) and isinstance(v, tensor)
    }
    others += [key for key, _ in entries if key not in tensors]
    return tensors, sorted(map(str, others))


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
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.numpy()


def _some(names, most=8):
    shown = ", ".join(map(repr, names[:most])) or "nothing"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return shown + more
