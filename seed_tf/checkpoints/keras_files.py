"""Encoders that Keras wrote: `.keras` files and run folders."""

import os

import keras


def load_teacher(path, *, source="auto"):
    """A trained encoder, ready to distil from.

    Args:
        path: a `.keras` file, or the folder of a run of
            `experiments.pretrain` or `experiments.distill`, whose
            `student.keras` is taken.
        source: "auto" or "keras".

    Returns:
        The keras.Model, e.g. an `Encoder`.

    Raises:
        ValueError: if there is no such file, or it is not a whole Keras file.
    """
    if source not in ("auto", "keras"):
        raise ValueError(
            f'`source` must be "auto" or "keras". Received: source={source!r}.'
        )
    path = os.path.expanduser(path)
    file = os.path.join(path, "student.keras") if os.path.isdir(path) else path
    if not os.path.isfile(file):
        raise ValueError(
            "Expected a .keras file, or a run folder with a student.keras. "
            f"Received: {path!r}, where no file {file!r} exists."
        )
    try:
        return keras.saving.load_model(file, compile=False)
    except Exception as error:
        # Keras raises whatever zipfile, json or h5py raise for a bad file.
        raise ValueError(f"{file!r} cannot be loaded: {error}") from error
