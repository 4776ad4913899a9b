"""The teacher and the views that a view cache was made with, as JSON."""

from __future__ import annotations

from typing import Any

import keras

from seed_tf import views as seed_views
from seed_tf.encoders import Encoder
from seed_tf.io.files import as_json
from seed_tf.io.fingerprints import comparable, identity
from seed_tf.views.layers import SeededAugmentation

# Settings of a layer without influence on the numbers it draws from a key.
_NO_MATTER = ("name", "trainable", "dtype", "seed")


def of_teacher(teacher: keras.Model) -> dict[str, Any]:
    """Returns everything that a teacher's embeddings depend on."""
    facts: dict[str, Any] = {"fingerprint": identity(teacher)}
    if isinstance(teacher, Encoder):
        config = teacher.get_config()
        facts |= {key: config[key] for key in ("mean", "std")}
    return as_json(facts)


def comparable_teacher(
    facts: dict[str, Any], stored: dict[str, Any]
) -> dict[str, Any]:
    """Returns `of_teacher` in the form of an earlier version, if stored so."""
    name = "fingerprint"
    return {**facts, name: comparable(facts[name], stored.get(name))}


def of_views(
    views: seed_views.View | seed_views.MultiCrop,
    squares: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns everything that a view depends on besides image and key.

    Args:
        views: `View` or `MultiCrop`.
        squares: how whole images are cut, None if views are crops of the
            encoded image.

    Returns:
        Names and settings of layers, as they come back from a JSON file.

    Raises:
        ValueError: if views are not functions of the image and its key.
    """
    if isinstance(views, seed_views.MultiCrop):
        parts = {"large": views.global_view, "small": views.small_view}
        facts: dict[str, Any] = {"num_small": views.num_small}
    else:
        parts, facts = {"layers": views}, {}
    for name, view in parts.items():
        facts[name] = {}
        for i, layer in enumerate(getattr(view, "layers", [None])):
            if not isinstance(layer, SeededAugmentation):
                raise ValueError(
                    "A view cache needs views that can be made again from "
                    "their keys: those of `seed_tf.views`, of its layers "
                    f"only. Received: {view if layer is None else layer!r}."
                )
            settings = {
                key: value
                for key, value in layer.get_config().items()
                if key not in _NO_MATTER
            }
            facts[name][f"{i + 1} {type(layer).__name__}"] = settings
    return as_json({**facts, "squares": squares})
