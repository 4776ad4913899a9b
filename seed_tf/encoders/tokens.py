"""Layers between images, a transformer's tokens, and one vector."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from seed_tf import resampling

POOLINGS = ("class", "mean", "class_mean")


@keras.saving.register_keras_serializable(package="seed_tf")
class Resize(keras.layers.Layer):
    """Resizes images to the only size that a network takes.

    Args:
        size: positive int, pixels of a side.
        **kwargs: of keras.layers.Layer. The layer computes in float32.

    Call arguments: images `[B, H, W, C]` of any size. Returns float32
    `[B, size, size, C]`, antialiased and bilinear as PIL's.
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.size = size

    def call(self, images):
        return resampling.resize(images, self.size)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.size, self.size, input_shape[3])

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(package="seed_tf")
class PoolTokens(keras.layers.Layer):
    """Turns the tokens of a vision transformer into one vector.

    Args:
        pooling: "class" for the first token, "mean" for the mean of the
            patches' tokens, "class_mean" for both, one after the other.
        prefix: int, the number of tokens before those of the patches: class
            token and registers.
        **kwargs: of keras.layers.Layer.

    Call arguments: tokens `[B, T, D]`. Returns `[B, D]`, or `[B, 2 D]` with
    "class_mean".

    Raises:
        ValueError: if the pooling is unknown, or needs a class token that the
            network lacks.
    """

    def __init__(self, pooling: str, prefix: int = 1, **kwargs):
        super().__init__(**kwargs)
        if pooling not in POOLINGS or (prefix < 1 and pooling != "mean"):
            raise ValueError(
                f"`pooling` must be one of {', '.join(POOLINGS)}, and 'mean' "
                "for a network without a class token. Received: "
                f"pooling={pooling!r}, prefix={prefix}."
            )
        self.pooling, self.prefix = pooling, prefix

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        first = tokens[:, 0]
        if self.pooling == "class":
            return first
        mean = ops.mean(tokens[:, self.prefix :], axis=1)
        if self.pooling == "mean":
            return mean
        return ops.concatenate([first, mean], axis=-1)

    def compute_output_shape(self, input_shape):
        parts = 2 if self.pooling == "class_mean" else 1
        return (input_shape[0], parts * input_shape[2])

    def get_config(self):
        return {
            **super().get_config(),
            "pooling": self.pooling,
            "prefix": self.prefix,
        }
