"""Files of safetensors: a header in JSON, then the bytes of the tensors."""

from __future__ import annotations

import json
import math
import os

import numpy as np

_MOST_HEADER = 2**25  # bytes
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the upper half of a float32
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def is_one(path: str) -> bool:
    """Whether a file begins as the format does."""
    with open(path, "rb") as file:
        start = file.read(9)
    return path.endswith(".safetensors") or start[5:] == b"\0\0\0{"


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the state dict of a safetensors file.

    Args:
        path: str, the file.

    Returns:
        The state dict, NumPy arrays by key, mapped from the disk; and the
        file's metadata.

    Raises:
        ValueError: if the file is damaged.
    """
    size = os.path.getsize(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER, size - 8):
                raise ValueError(f"its header claims {length:,} bytes")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r")[8 + length :]
        metadata = header.pop("__metadata__", {})
        return {k: _array(data, x) for k, x in header.items()}, metadata
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path!r} is no whole safetensors file of {size:,} bytes: {error}."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path!r} is no safetensors file.") from error


def _array(data, entry):
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    begin, end = entry["data_offsets"]
    wanted = math.prod(shape) * dtype.itemsize
    if not 0 <= begin <= end <= len(data) or end - begin != wanted:
        raise ValueError(
            f"a tensor of shape {shape} is said to be at {begin} to {end}"
        )
    array = data[begin:end].view(dtype).reshape(shape)
    if entry["dtype"] == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    return array
