"""Encoders for PyTorch."""

from __future__ import annotations

from seed_tf.checkpoints import torch_files
from seed_tf.checkpoints.layouts import recognise
from seed_tf.checkpoints.weights import state_dict
from seed_tf.encoders import Encoder


def save_torch(encoder: Encoder, path: str) -> None:
    """Writes an encoder's weights as a PyTorch state dict.

    ResNets get torchvision's layout, MobileNetV3 and EfficientNet the layout
    of the authors' code. The projection head, if any, is `fc.0`, `fc.2` (with
    BatchNorm `fc.0`, `fc.1`, `fc.3`). A state dict has no normalisation of
    images: the network expects `(images / 255 - mean) / std`.

    Args:
        encoder: `Encoder` with a backbone of this library.
        path: str, the file. `load_encoder` reads it.

    Raises:
        ValueError: if PyTorch is missing, or the network has no counterpart
            in these layouts.
    """
    if not isinstance(encoder, Encoder):
        raise ValueError(
            "Only an Encoder has a PyTorch layout. Received: "
            f"{type(encoder).__name__} {getattr(encoder, 'name', encoder)!r}."
        )
    arrays = state_dict(encoder)
    layers = {layer.name: layer for layer in encoder.backbone.layers}
    conv = layers.get("conv1")
    small = conv is not None and conv.kernel_size == (3, 3)
    recognise(arrays, source="torchvision", stem="cifar" if small else "auto")
    pool = layers.get("maxpool")
    if pool is not None and pool.padding == "same":
        raise ValueError(
            "This encoder's max-pooling is padded as TensorFlow pads. No "
            "network of torchvision pads so, and the weights would give other "
            "features there."
        )
    for name in ("features_0_0", "conv_stem"):
        if name in layers and layers[name].strides != (2, 2):
            raise ValueError(
                "MobileNetV3 and EfficientNet have a PyTorch layout with "
                'stem="imagenet" only, because a state dict does not record '
                "the stem."
            )
    torch_files.write(path, arrays)
