"""Finds a backbone's feature maps in its graph of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

STRIDES = {"P3": 8, "P4": 16, "P5": 32}


@keras.saving.register_keras_serializable(package="seed_tf")
class Pyramid(keras.Model):
    """A copy of a backbone that returns its maps at strides 8, 16 and 32.

    At each stride the model returns the last map that every path through the
    network passes. For a ResNet these are the outputs of its stages. For a
    MobileNet or an EfficientNet these are the expansion before the next
    stride, as in SSDLite, and the last convolution. The maps are found by
    their shapes.

    Args:
        backbone: functional or sequential keras.Model of images
            `[B, H, W, 3]`, without shared layers.
        scale, offset: three floats each. The input of the backbone is
            `images * scale + offset`.

    Attributes:
        copied: keras.Model, the copy of the backbone.
        pyramid_level_inputs: dict of "P3", "P4", "P5" to layers' names, which
            KerasCV expects of a backbone.

    Raises:
        ValueError: if the model is neither functional nor sequential, shares
            a layer, or has no map at a stride.
    """

    def __init__(
        self,
        backbone: keras.Model,
        scale: Sequence[float] = (1.0,) * 3,
        offset: Sequence[float] = (0.0,) * 3,
        **kwargs: Any,
    ) -> None:
        copy = _copy(backbone)
        maps = pyramid_maps(copy)
        images = keras.Input(copy.input_shape[1:], name="images")
        x = keras.layers.Rescaling(
            list(scale), list(offset), dtype="float32", name="rescaling"
        )(images)
        maps = keras.Model(copy.inputs, maps, name="backbone")(x)
        levels = {
            level: keras.layers.Identity(dtype="float32", name=level)(y)
            for level, y in maps.items()
        }
        super().__init__(images, levels, **kwargs)
        self.copied = copy
        self.pyramid_level_inputs = {level: level for level in levels}
        self._scale, self._offset = list(scale), list(offset)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "backbone": keras.saving.serialize_keras_object(self.copied),
            "scale": self._scale,
            "offset": self._offset,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Pyramid:
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**{**config, "backbone": backbone})


def pyramid_maps(backbone: keras.Model) -> dict[str, keras.KerasTensor]:
    """Finds the symbolic maps of a backbone at strides 8, 16 and 32.

    Args:
        backbone: see `Pyramid`.

    Returns:
        Dict of "P3", "P4" and "P5" to KerasTensors `[B, H/s, W/s, C]`.

    Raises:
        ValueError: see `Pyramid`.
    """
    maps = _passages(backbone)
    height, width = backbone.input_shape[1:3]
    height, width = height or 256, width or 256
    probe = keras.Model(backbone.inputs, maps).compute_output_spec(
        keras.KerasTensor((1, height, width, 3))
    )
    found = {}
    for tensor, spec in zip(maps, probe, strict=True):
        for level, stride in STRIDES.items():
            size = math.ceil(height / stride), math.ceil(width / stride)
            if spec.shape[1:3] == size:
                found[level] = tensor
    missing = [f"{STRIDES[k]}" for k in STRIDES if k not in found]
    if missing:
        sizes = dict.fromkeys(f"{s.shape[1]} x {s.shape[2]}" for s in probe)
        raise ValueError(
            "`encoder` must have feature maps at strides 8, 16 and 32. "
            f"Received: {backbone.name!r}, which has none at stride "
            f"{', '.join(missing)}: an image of {height} x {width} pixels "
            f'gives maps of {", ".join(sizes)}. A backbone with stem="cifar" '
            'lacks strides: train one with stem="imagenet".'
        )
    return {level: found[level] for level in STRIDES}


def _passages(backbone):
    """Returns the 4-D outputs that every path passes, in order."""
    operations = keras.Model(backbone.inputs, backbone.outputs).operations
    place = {id(op.output): i for i, op in enumerate(operations)}
    used = [backbone.outputs, *(op.input for op in operations)]
    if any(id(x) not in place for x in keras.tree.flatten(used)):
        raise ValueError(
            "`encoder` must use each of its layers once. "
            f"Received: {backbone.name!r}, which calls a layer twice."
        )
    # For each operation, the last operation that uses its output.
    reach = list(range(len(operations)))
    for i, op in enumerate(operations):
        for x in keras.tree.flatten(op.input):
            reach[place[id(x)]] = max(reach[place[id(x)]], i)
    outputs, furthest = [], 0
    for i, op in enumerate(operations):
        if furthest <= i and len(getattr(op.output, "shape", ())) == 4:
            outputs.append(op.output)
        furthest = max(furthest, reach[i])
    return outputs


def _copy(backbone: keras.Model) -> keras.Model:
    try:
        copy = keras.models.clone_model(backbone)
        copy.set_weights(backbone.get_weights())
        if len(copy.inputs) != 1 or len(copy.outputs) != 1:
            raise ValueError("it has several inputs or outputs")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            "`encoder` must be a functional or sequential keras.Model, or an "
            "`Encoder` with such a backbone. "
            f"Received: {type(backbone).__name__} {backbone.name!r}: {error}"
        ) from error
    return copy
