"""Names the files that are no checkpoints, and says what to do with them."""

from __future__ import annotations

import os
import tarfile
import zipfile

_SAVE = "Load it in the code that made it, and save "
_KERAS = f"{_SAVE}the whole model: model.save('name.keras')."
_STATE = f"{_SAVE}nothing but the weights: torch.save(model.state_dict(), ...)."
_SOURCE = "Load the .keras or PyTorch file that it was exported from."
# Formats by their first bytes, and where those are.
_MAGIC = (
    (0, b"\x89HDF\r\n", "an HDF5 file (.h5)", _KERAS),
    (4, b"TFL3", "a LiteRT (TFLite) model", _SOURCE),
    (0, b"\x93NUMPY", "a NumPy array", _STATE),
    (0, b"\x1f\x8b", "compressed by gzip", "Unpack it first."),
    (0, b"GGUF", "a GGUF file", _SOURCE),
)
_TORCH_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def refuse_others(path: str) -> None:
    """Raises ValueError if a path is in a format that `load_encoder` lacks.

    Args:
        path: str, a file or a folder.
    """
    found = _other(path)
    if found is not None:
        name, advice = found
        raise ValueError(
            "Expected a .keras file, a run folder, a PyTorch or safetensors "
            f"file or a TensorFlow checkpoint. Received: {path!r}, which is "
            f"{name}. {advice}"
        )


def _other(path):
    if os.path.isfile(os.path.join(path, "saved_model.pb")):
        return "a SavedModel", _SOURCE
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        start = file.read(1024)
    for offset, magic, name, advice in _MAGIC:
        if start[offset:].startswith(magic):
            return name, advice
    if path.endswith(".onnx") and start[:1] == b"\x08":
        return "an ONNX model", _SOURCE
    if start[:4] == b"PK\x03\x04" and zipfile.is_zipfile(path):
        return _archive(path)
    if start[257:262] == b"ustar" and tarfile.is_tarfile(path):
        return "a tar archive", "Unpack it first."
    plain = start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"
    if plain and not _TORCH_BEFORE_1_6.startswith(
        start[: len(_TORCH_BEFORE_1_6)]
    ):
        return (
            "a plain pickle, that is a program, and none of it was run",
            _STATE,
        )
    return None


def _archive(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None
    if "model.weights.h5" in names:
        return "a Keras file", "Give it a name that ends in .keras."
    if any(x.endswith(".npy") for x in names):
        return "a NumPy archive (.npz)", _STATE
    if any("/code/" in x for x in names):
        return "a TorchScript program", _STATE
    return None
