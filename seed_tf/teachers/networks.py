"""A network of a library, and what the library knows about its images."""

from __future__ import annotations

import dataclasses

import keras

from seed_tf.encoders import Encoder
from seed_tf.encoders.encoder import IMAGENET_MEAN, IMAGENET_STD
from seed_tf.encoders.tokens import PoolTokens, Resize


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone and its preprocessing.

    Attributes:
        backbone: keras.Model, normalised images `[B, H, W, 3]` of any size ->
            `[B, C]` or `[B, h, w, C]`.
        mean: of images in [0, 1], by channel.
        std: as `mean`.
        image_size: pixels of a side that the backbone is best at, or None.
    """

    backbone: keras.Model
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    image_size: int | None = None

    def encoder(self, **kwargs) -> Encoder:
        """Returns an encoder around the backbone.

        Args:
            **kwargs: of `Encoder`: the head, and changes.
        """
        settings = {
            "mean": self.mean,
            "std": self.std,
            "image_size": self.image_size,
        }
        return Encoder(self.backbone, **{**settings, **kwargs})


def to_vector(
    network: keras.Model,
    *,
    pooling: str | None = None,
    prefix: int = 1,
    norm: keras.layers.Layer | None = None,
) -> keras.Model:
    """Adapts a network to images of any size and to one vector.

    Args:
        network: keras.Model of images, or of a dict with images alone, that
            gives tokens `[B, T, D]`, maps `[B, h, w, C]` or vectors `[B, C]`.
        pooling: of tokens, see `PoolTokens`. By default the class token, or
            the mean if `prefix` is 0.
        prefix: number of tokens before those of patches.
        norm: layer after pooling, or None.

    Returns:
        The network itself, if it needs no change; else a functional model
        around it.

    Raises:
        ValueError: if the network has other inputs or outputs, or takes images
            that are neither square nor of any size.
    """
    shapes = [x.shape for x in (*network.inputs, *network.outputs)]
    if len(shapes) != 2 or len(shapes[0]) != 4 or shapes[0][3] != 3:
        raise ValueError(
            "Expected a network from RGB images [B, H, W, 3] to one tensor. "
            f"Received: {network.name!r} with inputs and outputs {shapes}."
        )
    names = []
    if not isinstance(network, keras.Sequential):
        names = list(network.input) if isinstance(network.input, dict) else []
    rank = len(shapes[1])
    height, width = shapes[0][1:3]
    if height != width:
        raise ValueError(
            "Expected a network of square images. Received: "
            f"{network.name!r} for {height} x {width} pixels."
        )
    if height is None and not names and rank in (2, 4):
        return network
    x = images = keras.Input((None, None, 3), name="images")
    if height is not None:
        x = Resize(height, name="resize")(x)
    x = network({names[0]: x} if names else x)
    if rank == 3:
        pooling = pooling or ("class" if prefix else "mean")
        x = PoolTokens(pooling, prefix, name="pool_tokens")(x)
    if norm is not None:
        x = norm(x)
    return keras.Model(images, x, name=network.name)
