"""BatchNorm of a batch in parts, as several devices would normalise it."""

from __future__ import annotations

import keras
import tensorflow as tf


class GroupedBatchNormalization(keras.layers.BatchNormalization):
    """BatchNorm that normalises each of `groups` parts of a batch alone.

    In training, each part of equal size, one after the other, is normalised by
    its own mean and variance. In inference nothing differs from the layer's
    own class. `in_groups` makes such layers.
    """

    groups = 1

    def call(self, inputs, training=None, mask=None):
        if not training:
            return super().call(inputs, training=training, mask=mask)
        parts = tf.split(inputs, self.groups)  # which copies nothing
        masks = [None] * self.groups
        if mask is not None:
            masks = tf.split(mask, self.groups)
        parts = [
            self.normalise_group(part, training=training, mask=mask)
            for part, mask in zip(parts, masks, strict=True)
        ]
        return tf.concat(parts, 0)

    def normalise_group(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns one part normalised, as the layer's own class does it."""
        return super().call(inputs, training=training, mask=mask)


def in_groups(layer: keras.layers.BatchNormalization, groups: int) -> None:
    """Makes a layer a `GroupedBatchNormalization`, in place.

    Its weights and its place in the network stay, so that this works in any
    model, subclassed ones too. Its class keeps the name, which is part of the
    layout of `.keras` files.

    Args:
        layer: keras.layers.BatchNormalization, or of a subclass.
        groups: positive int, which must divide the batch.
    """
    own = type(layer)
    layer.__class__ = type(own.__name__, (GroupedBatchNormalization, own), {})
    layer.groups = groups
