"""The outputs of an exported encoder, the same in every format."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from seed_tf.encoders import Encoder
from seed_tf.images import check_channels


@keras.saving.register_keras_serializable(package="seed_tf")
class Outputs(keras.Model):
    """An encoder for production: one pass, two named outputs.

    Images `[B, H, W, 3]`, uint8 or float, RGB in [0, 255], become a dict of

    - "embedding": `[B, D]` float32 with length 1, for search;
    - "features": `[B, C]` float32, pooled, before the projection head, for
      k-NN and probes.

    BatchNorm and dropout run in inference mode.

    Args:
        encoder: an `Encoder`, or any keras.Model from images to `[B, C]`. A
            model without `.features` gives its output for both, as in
            `seed_tf.evaluation.embed`.
        **kwargs: arguments of keras.Model.

    Attributes:
        encoder: keras.Model.

    Raises:
        ValueError: if the encoder is no keras.Model; in a call, if images do
            not have three channels or an output is not `[B, C]`.

    Example:

    >>> outputs = Outputs(seed_tf.Encoder("resnet18", stem="cifar"))
    >>> {k: v.shape for k, v in outputs(np.zeros((4, 32, 32, 3))).items()}
    {'embedding': TensorShape([4, 128]), 'features': TensorShape([4, 512])}
    """

    def __init__(self, encoder: keras.Model, **kwargs: Any) -> None:
        if not isinstance(encoder, keras.Model):
            raise ValueError(
                "`encoder` must be a seed_tf.Encoder or a keras.Model. "
                f"Received: encoder={encoder!r}."
            )
        # A cast to 16 bits before the encoder's normalisation rounds images.
        super().__init__(autocast=False, **kwargs)
        self.encoder = encoder
        self.built = True

    def call(self, images):
        outputs = self.raw(images)
        return outputs | {"embedding": _unit(outputs["embedding"])}

    def raw(self, images: Any) -> dict[str, Any]:
        """Returns the outputs before "embedding" is scaled to length 1."""
        check_channels(images)
        # Not every keras.Model takes uint8.
        images = ops.cast(images, "float32")
        if isinstance(self.encoder, Encoder):
            features = self.encoder.features(images, training=False)
            embedding = features
            if self.encoder.head is not None:
                embedding = self.encoder.head(features, training=False)
        else:
            embedding = self.encoder(images, training=False)
            features = embedding
            if hasattr(self.encoder, "features"):
                features = self.encoder.features(images, training=False)
        outputs = {"embedding": embedding, "features": features}
        for name, output in outputs.items():
            if len(output.shape) != 2:
                raise ValueError(
                    f"The model must give {name} [B, C]. seed_tf.Encoder pools "
                    "the maps of a backbone. Received: shape "
                    f"{tuple(output.shape)}."
                )
            outputs[name] = ops.cast(output, "float32")
        return outputs

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
        }

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})


def _unit(x):
    """Scales rows to length 1. Zero rows stay zero."""
    # `embeddings.l2_normalise` multiplies by the inverse of the length. int8
    # LiteRT can leave all divisions in float, but not a single product.
    length = ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True))
    return x / ops.maximum(length, 1e-12)
