"""The folder of a run, and the encoder files in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from seed_tf.acceleration import precision
from seed_tf.config import normal_path
from seed_tf.encoders import Encoder
from seed_tf.io.files import (
    as_json,
    atomic_write,
    read_json,
    write_json,
)
from seed_tf.io.locks import folder_lock
from seed_tf.io.text import reason, shown

_WRITTEN = (  # `overwrite` removes these files and folders, no others
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "held_out.json",
    "student.keras",
    "backbone.keras",
    "report.html",
    "report.png",
    "checkpoints",
    "events",
)
_TRAINED = ("checkpoints", "student.keras", "backbone.keras")
_LEAST_BYTES = 100e6  # the smallest run writes as much


class RunFolder:
    """The folder of a run, with the `config.json` that describes it.

    A folder with a `config.json` belongs to the run described there. Only the
    same run may use the folder again, unless that run ended before its first
    checkpoint. Nothing is written or removed before `claim`.

    Args:
        path: the folder, made if missing.
        config: JSON dict that describes the run.
        defaults: values of keys that an older `config.json` lacks.
        overwrite: whether to remove an earlier run and start anew.
        ignore: keys of `config` that a resumed run may change.
        paths: keys of `config` that are paths.
        chief: whether this worker of the run writes files.

    Raises:
        ValueError: if the folder belongs to another run.
        OSError: if the folder cannot be written.
    """

    def __init__(
        self,
        path: str,
        config: Mapping[str, Any],
        *,
        defaults: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        ignore: Iterable[str] = (),
        paths: Iterable[str] = (),
        chief: bool = True,
    ):
        self.path, self.chief = path, chief
        self._overwrite = overwrite
        self._ignore, self._paths = set(ignore), set(paths)
        self._config = as_json(config)
        self._defaults = as_json(defaults or {})
        self._lock = contextlib.ExitStack()
        existing = os.path.abspath(path)
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
            raise OSError(
                f"The output folder {path!r} cannot be written: {existing!r} "
                "is no folder, or is not yours to write to."
            )
        self._check_space(existing, _LEAST_BYTES)
        self._compare()

    @property
    def earlier(self) -> dict[str, Any]:
        """`config.json` of the run to go on with; {} without such a run."""
        return {} if self._overwrite else earlier_config(self.path)

    def claim(self, **more: Any) -> None:
        """Takes the folder for this run, and locks out other processes.

        Args:
            **more: further entries of `config.json`.

        Raises:
            ValueError: if the folder belongs to another run, or if another
                process writes to it.
            OSError: if the folder cannot be written.
        """
        self._config |= more
        self._compare()
        if not self.chief:
            return
        self._lock.enter_context(folder_lock(self.path))
        try:
            if self._overwrite or (
                "launcher" in read_json(self.file("config.json"), {})
                and not self.earlier
            ):
                self._remove()
            self.write("config.json", self._config)
        except OSError as error:
            self.close()
            raise OSError(
                f"The output folder {self.path!r} cannot be written: "
                f"{reason(error)}."
            ) from error

    def file(self, *names: str) -> str:
        """Returns the path of a file of the run."""
        return os.path.join(self.path, *names)

    def read(self, name: str, kind: type = dict) -> Any:
        """Reads a JSON file of the run; an empty dict or list without it."""
        return read_json(self.file(name), kind(), kind)

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file atomically."""
        write_json(self.file(name), content)

    def check_space(self, needed: float) -> None:
        """Raises OSError if the disk has fewer free bytes than `needed`."""
        self._check_space(self.path, needed)

    def close(self) -> None:
        """Lets other processes write to the folder."""
        self._lock.close()

    def _check_space(self, folder, needed):
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(
                f"No space left for the run: the disk of {self.path!r} has "
                f"{free / 1e6:.0f} MB free. Checkpoints and encoder need "
                f"{needed / 1e6:.0f} MB or more."
            )

    def _compare(self):
        earlier = self.earlier
        if not earlier:
            return
        earlier = {**self._defaults, **earlier}
        for key in self._paths:
            if isinstance(earlier.get(key), str):
                earlier[key] = normal_path(key, earlier[key])
        absent = "(absent)"
        differences = [
            f"{key}: {shown(earlier.get(key, absent))} there, "
            f"{shown(value)} here"
            for key, value in sorted(self._config.items())
            if key not in self._ignore and earlier.get(key, absent) != value
        ]
        if differences:
            raise ValueError(
                f"{self.path!r} holds a run with other settings. "
                f"{'; '.join(differences)}. Use the run's own settings to "
                "resume it, choose another `output`, or remove the run and "
                "start anew with `overwrite=True`."
            )

    def _remove(self):
        for name in _WRITTEN:
            path = self.file(name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.remove(path)


def earlier_config(path: str) -> dict[str, Any]:
    """Reads the `config.json` of a run that has trained; {} without one.

    A run that ended before its first checkpoint has nothing to go on with.
    """
    config = read_json(os.path.join(path, "config.json"), {})
    checkpoints, *encoders = (os.path.join(path, name) for name in _TRAINED)
    trained = os.path.isdir(checkpoints) and os.listdir(checkpoints)
    return config if trained or any(map(os.path.exists, encoders)) else {}


class EncoderFiles:
    """`student.keras` (the encoder) and `backbone.keras` of a run, float32."""

    def __init__(self, folder: RunFolder, encoder: keras.Model):
        self._encoder, self._folder = encoder, folder

    def save(self) -> None:
        """Writes both files; for an encoder without backbone only one."""
        encoder = precision.in_float32(self._encoder)
        models = {"student": encoder}
        if isinstance(encoder, Encoder):
            models["backbone"] = encoder.backbone
        for name, model in models.items():
            with atomic_write(self._folder.file(f"{name}.keras")) as path:
                model.save(path)
