"""Encoders that Keras wrote: `.keras` files and run folders."""

import os

import keras

from seed_tf.acceleration import precision


def find(path):
    """The `.keras` file that a path means, or None.

    Args:
        path: str: the file itself, or the folder of a run, whose
            `student.keras` is taken.
    """
    file = os.path.join(path, "student.keras") if os.path.isdir(path) else path
    return file if file.endswith(".keras") and os.path.isfile(file) else None


def read(file):
    """The model in a `.keras` file, whatever Keras's global policy.

    Raises:
        ValueError: if it is not a whole file that Keras wrote.
    """
    try:
        with precision.no_16_bits():
            return keras.saving.load_model(file, compile=False)
    except Exception as error:
        # Keras raises whatever zipfile, json or h5py raise for a bad file.
        raise ValueError(f"{file!r} cannot be loaded: {error}") from error
