"""Arrays and records on disk, which are checked when they are read back.

A record is a JSON object with the checksum of its own content. It holds the
checksums of the arrays and other files beside it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from seed_tf.io.files import flush, read_json, write_json
from seed_tf.io.text import reason, shown

_BLOCK = 1 << 22  # bytes
_SUM = "crc32"


def checksum(path: str) -> str:
    """Returns the CRC-32 of a whole file, 8 hexadecimal digits."""
    total, block = 0, memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            total = zlib.crc32(block[:size], total)
    return f"{total:08x}"


def verify(path: str, expected: str | None) -> None:
    """Raises ValueError unless a file has a checksum; None skips the check."""
    if expected is not None and (found := checksum(path)) != expected:
        raise ValueError(
            f"{path!r} is damaged: expected checksum {shown(expected)}, found "
            f"{found!r}"
        )


def open_array(
    path: str,
    dtype: npt.DTypeLike,
    shape: tuple[int | None, ...],
    expected: str | None = None,
) -> np.memmap:
    """Maps an array into memory, for reading.

    Args:
        path: .npy file.
        dtype: the type, byte order included.
        shape: the shape; None stands for any size.
        expected: `checksum` of the file; None skips the check.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds another array. The message
            names the file.
    """
    verify(path, expected)
    dtype = np.dtype(dtype)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        if array.dtype != dtype or len(array.shape) != len(shape):
            raise ValueError(f"found {array.dtype.str} {array.shape}")
        for found, wanted in zip(array.shape, shape, strict=True):
            if wanted not in (None, found):
                raise ValueError(f"found {array.dtype.str} {array.shape}")
        if not array.flags.c_contiguous:
            raise ValueError("found an array by columns")
        size = array.offset + array.nbytes
        if os.path.getsize(path) != size:
            raise ValueError(f"found {os.path.getsize(path)} of {size} bytes")
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy evaluates the header as Python
        wanted = ", ".join("any" if x is None else str(x) for x in shape)
        raise ValueError(
            f"{path!r} is damaged: expected {dtype.str} ({wanted}), "
            f"{reason(error)}"
        ) from error
    return array


class ArrayWriter:
    """Writes an .npy file without knowing its number of rows in advance.

    Args:
        path: file.
    """

    def __init__(self, path: str) -> None:
        self._path, self._rows = path, 0
        self._header: dict[str, Any] = {}
        self._file: IO[bytes]

    def append(self, block: np.ndarray) -> None:
        """Writes rows `[n, ...]`; the first block decides type and width."""
        if not self._header:
            self._header = {
                "descr": np.lib.format.dtype_to_descr(block.dtype),
                "fortran_order": False,
                "shape": (0, *block.shape[1:]),
            }
            self._write_header()
        self._file.write(block.tobytes())
        self._rows += len(block)

    def _write_header(self):
        # NumPy's padding leaves room to overwrite it with more rows.
        np.lib.format.write_array_header_1_0(self._file, self._header)

    def __enter__(self) -> ArrayWriter:
        self._file = open(self._path, "wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is None:
                self._header["shape"] = (self._rows, *self._header["shape"][1:])
                self._file.seek(0)
                self._write_header()
        if kind is None:
            flush(self._path)


def write_record(path: str, content: Mapping[str, Any]) -> None:
    """Writes a JSON object with its checksum, whole or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    write_json(path, {**content, _SUM: _sum(content)})


def read_record(path: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """Reads a record, or the JSON object that an earlier version wrote.

    Args:
        path: file.
        fields: the types of values that the record must have.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or a value is missing or of another
            type. The message names the file.
    """
    content: dict[str, Any] = read_json(path)
    expected = content.pop(_SUM, None)
    if expected not in (None, _sum(content)):
        raise ValueError(f"{path!r} is damaged: its checksum is wrong")
    for name, kind in fields.items():
        value = content.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(
                f"{path!r} is damaged: expected a value of {name!r} of type "
                f"{kind.__name__}, found {shown(value)}"
            )
    return content


def _sum(content):
    text = json.dumps(content, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"
