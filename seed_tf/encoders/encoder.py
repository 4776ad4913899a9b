"""The encoder: images in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from seed_tf.arguments import integer
from seed_tf.encoders.backbones import backbone as build_backbone
from seed_tf.encoders.layers import batch_norm, torch_uniform
from seed_tf.images import ImageModel, check_channels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PAPER_DIM = 128  # width of the paper's embeddings


@keras.saving.register_keras_serializable(package="seed_tf")
class Encoder(ImageModel):
    """Backbone, average pooling and projection head, for raw RGB images.

    The encoder takes images `[B, H, W, 3]`, uint8 or float in [0, 255], and
    gives embeddings `[B, D]` float32, which are not L2-normalised. It
    normalises the images itself: `(images / 255 - mean) / std` in float32.

    Args:
        backbone: str, a name that `seed_tf.backbone` knows, or any
            keras.Model of images that gives `[B, h, w, C]` or `[B, C]`. The
            model keeps its own dtype policy.
        embedding_dim: positive int, D. Defaults to what the head gives: 128
            with a head, as in the paper, and C without one.
        head: "linear" (MoCo v1), "mlp" (dense, ReLU, dense: MoCo v2, SimCLR,
            SwAV, and the paper's students), or None: the embeddings are the
            pooled features.
        hidden_dim: positive int, width inside the "mlp" head. Defaults to C.
        head_batch_norm: bool, whether the "mlp" head has BatchNorm before its
            ReLU (SimCLR, SwAV).
        stem: see `seed_tf.backbone`, for a backbone given by name.
        mean: three floats, one per channel, for images in [0, 1]. Defaults to
            ImageNet's.
        std: three positive floats, as `mean`. For a backbone that normalises
            images itself, `mean=(0, 0, 0), std=(1 / 255,) * 3` leaves images
            in [0, 255] as they are.
        image_size: positive int or None, the side in pixels of the images
            that the encoder is trained on. Export, search and evaluation take
            it as their default.
        name: str.
        **kwargs: `dtype`, the dtype policy of the head, and the other
            arguments of keras.Model.

    Attributes:
        embedding_dim: int, D.
        feature_dim: int, C.
        image_size: int or None. May be set; saved with the encoder.
        backbone: keras.Model.
        head: keras.Sequential of layers `fc_0`, `fc_1`, ..., or None.

    Raises:
        ValueError: if an argument is out of range, the backbone does not give
            `[B, h, w, C]` or `[B, C]`, or images do not have three channels.

    Example:

    >>> encoder = seed_tf.Encoder("resnet18", stem="cifar")
    >>> images = np.zeros((4, 32, 32, 3), "uint8")
    >>> encoder(images).shape, encoder.features(images).shape
    (TensorShape([4, 128]), TensorShape([4, 512]))
    """

    def __init__(
        self,
        backbone: str | keras.Model,
        *,
        embedding_dim: int | None = None,
        head: str | None = "mlp",
        hidden_dim: int | None = None,
        head_batch_norm: bool = False,
        stem: str = "imagenet",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        image_size: int | None = None,
        name: str | None = None,
        **kwargs,
    ):
        embedding_dim = _integer("embedding_dim", embedding_dim)
        hidden_dim = _integer("hidden_dim", hidden_dim)
        _check_head(head, hidden_dim, head_batch_norm)
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise ValueError(
                "`mean` and `std` must be three floats each, `std` positive. "
                f"Received: mean={mean}, std={std}."
            )
        # Keep images in float32: rounding before normalisation changes them.
        super().__init__(name=name, autocast=False, **kwargs)
        self.rescaling = keras.layers.Rescaling(
            scale=[1 / (255 * s) for s in std],
            offset=[-m / s for m, s in zip(mean, std, strict=True)],
            dtype="float32",
            name="rescaling",
        )
        self.backbone = _resolve(backbone, stem)
        maps = _symbolic_output(self.rescaling, self.backbone)
        pooling = (
            keras.layers.GlobalAveragePooling2D
            if len(maps.shape) == 4
            else keras.layers.Identity
        )
        self.pool = pooling(dtype="float32", name="pool")
        self.feature_dim = self.pool(maps).shape[-1]
        if head == "mlp" and hidden_dim is None:
            hidden_dim = self.feature_dim
        if embedding_dim is None:
            embedding_dim = self.feature_dim if head is None else PAPER_DIM
        if head is None and embedding_dim != self.feature_dim:
            raise ValueError(
                "Without a head the embeddings are the pooled features, of "
                f"width {self.feature_dim}. Received: head=None, "
                f"embedding_dim={embedding_dim}. Leave out `embedding_dim`, or "
                "choose a head."
            )
        self.embedding_dim = embedding_dim
        self.image_size = image_size
        self.head = self._projection(head, hidden_dim, head_batch_norm)
        self.built = True
        self._config = {
            "embedding_dim": embedding_dim,
            "head": head,
            "hidden_dim": hidden_dim,
            "head_batch_norm": head_batch_norm,
            "mean": [float(m) for m in mean],
            "std": [float(s) for s in std],
        }

    def _projection(self, head, hidden_dim, head_batch_norm):
        if head is None:
            return None
        shared = {"dtype": self.dtype_policy, "trainable": self.trainable}
        layers, width = [], self.feature_dim

        def dense(units, fan_in):
            return keras.layers.Dense(
                units,
                kernel_initializer=torch_uniform(fan_in),
                bias_initializer=torch_uniform(fan_in),
                name=f"fc_{len(layers)}",
                **shared,
            )

        if head == "mlp":
            layers.append(dense(hidden_dim, width))
            if head_batch_norm:
                layers.append(batch_norm(name="fc_1", **shared))
            layers.append(keras.layers.ReLU(name=f"fc_{len(layers)}", **shared))
            width = hidden_dim
        layers.append(dense(self.embedding_dim, width))
        inputs = keras.Input((self.feature_dim,))
        return keras.Sequential([inputs, *layers], name="head")

    def call(
        self, images: np.ndarray | tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        features = self.features(images, training=training)
        if self.head is None:
            return features
        return ops.cast(self.head(features, training=training), "float32")

    def features(
        self, images: np.ndarray | tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """Returns pooled features, which probes, k-NN and exports use.

        Args:
            images: `[B, H, W, 3]`, uint8 or float, RGB in [0, 255].
            training: bool, the mode of BatchNorm and dropout.

        Returns:
            `[B, C]` float32, before the projection head.
        """
        check_channels(images)
        maps = self.backbone(self.rescaling(images), training=training)
        return self.pool(maps)

    def export(
        self,
        filepath,
        format="tf_saved_model",
        verbose=None,
        input_signature=None,
        **kwargs,
    ):
        """Exports the embeddings of float32 images, see `keras.Model.export`.

        `seed_tf.export` also writes features, preprocessing and a card.

        Args:
            input_signature: list of one `keras.InputSpec`. By default images
                of every size that the backbone takes; Keras's own default
                would be the size of the first images that were seen.
        """
        if input_signature is None:
            shape = _input_shape(self.backbone)
            input_signature = [keras.InputSpec("float32", shape=shape)]
        return super().export(
            filepath, format, verbose, input_signature, **kwargs
        )

    @property
    def image_size(self) -> int | None:
        return self._image_size

    @image_size.setter
    def image_size(self, value: int | None) -> None:
        self._image_size = _integer("image_size", value)

    def get_config(self):
        return {
            **super().get_config(),
            **self._config,
            "image_size": self.image_size,
            "backbone": keras.saving.serialize_keras_object(self.backbone),
        }

    @classmethod
    def from_config(cls, config):
        model = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**{**config, "backbone": model})


def _resolve(backbone, stem):
    if isinstance(backbone, str):
        return build_backbone(backbone, stem=stem)
    if not isinstance(backbone, keras.Model):
        raise ValueError(
            "`backbone` must be a name or a keras.Model. "
            f"Received: backbone={backbone!r}."
        )
    if stem != "imagenet":
        raise ValueError(
            "`stem` is for a backbone given by name. Leave it out: this "
            f"backbone is a model. Received: stem={stem!r}."
        )
    return backbone


def _input_shape(backbone):
    return getattr(backbone, "input_shape", None) or (None, None, None, 3)


def _symbolic_output(rescaling, backbone):
    """Builds a backbone; returns the KerasTensor that it gives."""
    images = keras.Input(batch_shape=_input_shape(backbone))
    output = backbone(rescaling(images))
    output_shape: tuple = getattr(output, "shape", ())
    if len(output_shape) not in (2, 4) or output_shape[-1] is None:
        raise ValueError(
            "`backbone` must give one tensor, feature maps [B, h, w, C] or "
            f"features [B, C]. Received: backbone {backbone.name!r}, whose "
            f"output is {output}."
        )
    return output


def _check_head(head, hidden_dim, head_batch_norm):
    if head not in ("linear", "mlp", None):
        raise ValueError(
            f'`head` must be "linear", "mlp" or None. Received: head={head!r}.'
        )
    if head != "mlp" and (hidden_dim is not None or head_batch_norm):
        raise ValueError(
            '`hidden_dim` and `head_batch_norm` are for head="mlp". Received: '
            f"head={head!r}, hidden_dim={hidden_dim}, "
            f"head_batch_norm={head_batch_norm}."
        )


def _integer(name, value):
    return None if value is None else integer(name, value)
