"""Features of images by an encoder, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from seed_tf.images import check_channels, check_value_range, images_of
from seed_tf.io.pipelines import steady


def embed(
    model: keras.Model,
    images: Any,
    *,
    batch_size: int = 256,
    output: str = "features",
) -> Any:
    """Runs an encoder in inference mode over a set of images.

    Args:
        model: `Encoder`, or any keras.Model that maps images to `[B, C]`.
        images: `[N, H, W, 3]` array, uint8 or float, RGB in [0, 255], or a
            `tf.data.Dataset` of batches of such images, alone, as (images,
            labels), or as {"image": images, "label": labels}. The last batch
            may be smaller.
        batch_size: int, ignored for a dataset of batches.
        output: "features", the output of `model.features` (pooled, before the
            projection head, as the paper's probes use), or "embeddings", the
            output of `model`. Without `.features`, both mean the output of
            `model`.

    Returns:
        `[N, C]` float32, in the order of the images. For a dataset with
        labels: a pair of the features and the labels `[N]` int64.

    Raises:
        ValueError: if there are no images, the images are not RGB in [0, 255],
            or the outputs of the model are not finite or not `[B, C]`.
    """
    return embedder(model, output=output)(images, batch_size=batch_size)


def embedder(
    model: keras.Model, *, output: str = "features"
) -> Callable[..., Any]:
    """Returns `embed` of one model, traced once for all calls.

    Args:
        model, output: see `embed`.

    Returns:
        Function of `images` and `batch_size`, see `embed`. Each call uses the
        current weights of the model.
    """
    batches = batch_embedder(model, output=output)

    def run(images, *, batch_size=256):
        rows, labels = zip(*batches(images, batch_size), strict=True)
        features = np.concatenate(rows)
        if labels[0] is None:
            return features
        return features, np.concatenate(labels).astype(np.int64)

    return run


def batch_embedder(
    model: keras.Model, *, output: str = "features"
) -> Callable[..., Iterator[tuple[np.ndarray, Any]]]:
    """Returns `embed` of one model as a generator, for more than memory holds.

    Args:
        model, output: see `embed`.

    Returns:
        Function of `images` and `batch_size`, see `embed`, that yields pairs
        of features `[b, C]` float32 and labels `[b]`, None without labels.
    """
    function = tf.function(feature_function(model, output))

    def run(images, batch_size=256):
        empty = True
        for batch, labels in _batches(images, batch_size):
            batch = tf.convert_to_tensor(batch)
            if empty:
                check_channels(batch)
                check_value_range(batch)
                empty = False
            # One trace for batches of every size.
            spec = tf.TensorSpec([None, *batch.shape[1:]], batch.dtype)
            features = function.get_concrete_function(spec)(batch).numpy()
            check_finite(features, output)
            yield features, labels
        if empty:
            raise ValueError("Expected at least one image. Received: none.")

    return run


def check_finite(features: np.ndarray, output: str) -> None:
    """Raises ValueError if the outputs of an encoder are not finite."""
    if not np.isfinite(features).all():
        raise ValueError(
            f"The {output} must be finite. Received: NaN or infinity. The "
            "weights of the model are damaged, or float16 overflows."
        )


def feature_function(
    model: keras.Model, output: str = "features"
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of images to outputs `[B, C]` float32 of a model.

    See `embed` for arguments and errors. The model runs in inference mode.
    """
    if output not in ("features", "embeddings"):
        raise ValueError(
            '`output` must be "features" or "embeddings". '
            f"Received: output={output!r}."
        )
    forward = model
    if output == "features":
        forward = getattr(model, "features", model)

    def run(images):
        # Not every keras.Model takes uint8.
        outputs = forward(tf.cast(images, tf.float32), training=False)
        if len(outputs.shape) != 2:
            raise ValueError(
                f"The {output} of the model must be [B, C]; seed_tf.Encoder "
                "pools the outputs of a backbone. Received: shape "
                f"{tuple(outputs.shape)}."
            )
        return tf.cast(outputs, tf.float32)

    return run


def _batches(images, batch_size):
    """Yields (images, labels or None)."""
    if isinstance(images, tf.data.Dataset):
        for batch in steady(images):
            labels = batch[1] if isinstance(batch, tuple) else None
            if isinstance(batch, dict):
                labels = batch.get("label", batch.get("labels"))
            yield images_of(batch), labels
    else:
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size], None
