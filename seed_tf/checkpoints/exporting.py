"""Encoders for people who go on in PyTorch."""

from seed_tf.checkpoints import torch_files
from seed_tf.checkpoints.layouts import recognise
from seed_tf.checkpoints.weights import state_dict
from seed_tf.encoders import Encoder


def save_torch(encoder, path):
    """Writes an encoder's weights as a PyTorch state dict.

    ResNets come in torchvision's layout, MobileNetV3 and EfficientNet in that
    of the authors' code; the projection head, if any, is `fc.0`, `fc.2` (with
    BatchNorm `fc.0`, `fc.1`, `fc.3`). A state dict holds no normalisation of
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
    recognise(arrays, source="torchvision")
    layers = {layer.name: layer for layer in encoder.backbone.layers}
    pool = layers.get("maxpool")
    if pool is not None and pool.padding == "same":
        raise ValueError(
            "Its max-pooling is padded as TensorFlow's, which no network of "
            "torchvision does: its weights would give other features there."
        )
    for name in ("features_0_0", "conv_stem"):
        if name in layers and layers[name].strides != (2, 2):
            raise ValueError(
                'Only with stem="imagenet" do MobileNetV3 and EfficientNet '
                "have a PyTorch layout; a state dict would not tell the stem."
            )
    torch_files.write(path, arrays)
