"""Encoders that Keras wrote: `.keras` files and run folders."""

from __future__ import annotations

import os

import keras

from seed_tf.acceleration import precision


def find(path: str) -> str | None:
    """Returns the `.keras` file of a path, or None.

    Args:
        path: the file, or the folder of a run with a `student.keras`.
    """
    file = os.path.join(path, "student.keras") if os.path.isdir(path) else path
    return file if file.endswith(".keras") and os.path.isfile(file) else None


def read(file: str) -> keras.Model:
    """Loads a `.keras` file, independently of Keras's global policy.

    Raises:
        ValueError: if the file is damaged, or Keras did not write it.
    """
    try:
        with precision.no_16_bits():
            return keras.saving.load_model(file, compile=False)
    except Exception as error:
        # Keras raises whatever zipfile, json or h5py raise for a bad file.
        raise ValueError(f"{file!r} cannot be loaded: {error}") from error
