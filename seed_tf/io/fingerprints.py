"""Fingerprints: short texts that differ if contents differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
from keras import ops

# Parts of a configuration that do not change what a model computes. Keras adds
# keys to configurations; their defaults are None or False.
_IDLE = (
    *("build_config", "build_input_shape", "compile_config", "trainable"),
    *("module", "shared_object_id", "seed"),
)
_IDLE_ENDINGS = ("_initializer", "_regularizer", "_constraint")


def fingerprint(model: keras.Model) -> str:
    """Returns 16 hexadecimal digits that identify a model's weights.

    Settings outside the weights do not count, see `identity`.
    """
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(str((weight.shape, weight.dtype)).encode())
        values = np.ascontiguousarray(ops.convert_to_numpy(weight))
        digest.update(values.data)
    return digest.hexdigest()[:16]


def identity(model: keras.Model) -> str:
    """Returns a text that identifies a model, its settings included.

    Settings are all of a model's configuration that is not a weight: of an
    `Encoder` the normalisation, image size, head and layers. The precision in
    which a model computes does not count.

    Returns:
        `fingerprint`, a hyphen and 8 hexadecimal digits; `fingerprint` alone
        for a model without `get_config`.
    """
    try:
        return f"{fingerprint(model)}-{settings(model, ('dtype',))}"
    except NotImplementedError:
        return fingerprint(model)


def comparable(found: str, stored: Any) -> str:
    """Returns an `identity` in the form of a stored identity.

    Earlier versions stored the fingerprint of the weights alone.
    """
    return found if "-" in str(stored) else found.partition("-")[0]


def settings(model: keras.Model, ignored: Collection[str] = ()) -> str:
    """Returns 8 hexadecimal digits that identify a model's configuration.

    The numbers in names of layers do not count: Keras numbers unnamed layers
    by the layers that the process created earlier.

    Args:
        model: keras.Model.
        ignored: more keys of configurations that do not count.

    Raises:
        NotImplementedError: if the model has no configuration.
    """
    facts = [type(model).__qualname__, _decisive(model.get_config(), ignored)]
    text = json.dumps(facts, sort_keys=True, default=repr)
    names = dict.fromkeys(re.findall(r'"name": "([^"]*)"', text))
    numbered = {
        name: f"{re.sub(r'_[0-9]+$', '', name)} {i}"
        for i, name in enumerate(names)
    }
    text = re.sub(
        r'"([^"]*)"', lambda found: numbered.get(found[1], str(found[1])), text
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _decisive(config, ignored):
    if isinstance(config, dict):
        return {
            key: _decisive(value, ignored)
            for key, value in config.items()
            if key not in _IDLE
            and key not in ignored
            and not str(key).endswith(_IDLE_ENDINGS)
            and value is not None
            and value is not False
        }
    if isinstance(config, (list, tuple)):
        return [_decisive(x, ignored) for x in config]
    return config
