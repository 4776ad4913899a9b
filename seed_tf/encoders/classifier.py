"""A classifier on top of an encoder, which fine-tuning trains.

This module is not in `seed_tf.evaluation`, because `import seed_tf` must
register the class with Keras: only then does a saved classifier load.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from seed_tf.keras_internals import SteadyInput


@keras.saving.register_keras_serializable(package="seed_tf")
class Classifier(SteadyInput, keras.Model):
    """A dense layer on the pooled features of an encoder.

    Args:
        encoder: `Encoder` or keras.Model that gives `[B, C]`.
        num_classes: positive int.
        seed: int, of the kernel, N(0, 0.01); the bias starts at zero.
    """

    def __init__(
        self, encoder: keras.Model, num_classes: int, seed: int = 0, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)
        self.encoder, self.num_classes, self.seed = encoder, num_classes, seed
        self.logits = keras.layers.Dense(
            num_classes,
            kernel_initializer=keras.initializers.RandomNormal(
                stddev=0.01, seed=seed
            ),
            dtype="float32",
            name="logits",
        )

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        features = getattr(self.encoder, "features", self.encoder)
        features = features(ops.cast(images, "float32"), training=training)
        return self.logits(features)

    def get_config(self):
        encoder = keras.saving.serialize_keras_object(self.encoder)
        return {
            **super().get_config(),
            "encoder": encoder,
            "num_classes": self.num_classes,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})
