"""What an encoder makes of a set of images, as NumPy arrays."""

import numpy as np
import tensorflow as tf

from seed_tf.images import check_channels, check_value_range


def embed(model, images, *, batch_size=256, output="features"):
    """Runs an encoder in inference mode over a set of images.

    Args:
        model: an `Encoder`, or any keras.Model of images that gives `[B, C]`.
        images: `[N, H, W, 3]` array, uint8 or float, RGB in [0, 255], or a
            `tf.data.Dataset` of batches of such images, alone or as
            (images, labels). The last batch may be smaller.
        batch_size: int, images run at a time. A dataset has its own.
        output: "features", what `model.features` gives (pooled, before the
            projection head; what the paper's probes use), or "embeddings",
            what `model` itself gives. A model without `.features` gives its
            output for both.

    Returns:
        `[N, C]` float32, in the order of the images; for a dataset with
        labels a pair of it and the labels `[N]` int64.

    Raises:
        ValueError: if the images cannot be RGB in [0, 255], there are none,
            or the model's outputs are not finite `[B, C]`.
    """
    return embedder(model, output=output)(images, batch_size=batch_size)


def embedder(model, *, output="features"):
    """`embed` of one model as a function of images, traced once for all calls.

    Args:
        model, output: as of `embed`.

    Returns:
        Function of `images` and `batch_size`, as `embed`. It sees the weights
        that the model has at the time of the call.
    """
    batches = batch_embedder(model, output=output)

    def run(images, *, batch_size=256):
        rows, labels = zip(*batches(images, batch_size), strict=True)
        features = np.concatenate(rows)
        if labels[0] is None:
            return features
        return features, np.concatenate(labels).astype(np.int64)

    return run


def batch_embedder(model, *, output="features"):
    """`embedder`, batch by batch, for what does not fit in memory.

    Args:
        model, output: as of `embed`.

    Returns:
        Function of `images` and `batch_size`, as `embed`, that yields pairs of
        features `[b, C]` float32 and labels `[b]`, or None without labels.
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


def check_finite(features, output):
    """Raises ValueError if what an encoder gave is not finite."""
    if not np.isfinite(features).all():
        raise ValueError(
            f"The {output} are not finite (NaN or infinity). The weights of "
            "the model are damaged, or its float16 range is exceeded."
        )


def feature_function(model, output="features"):
    """The function images -> outputs `[B, C]` float32 of a frozen model.

    Arguments and errors as `embed`.
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
                f"The model must give {output} [B, C]; seed_tf.Encoder pools "
                f"those of a backbone. Received: shape {tuple(outputs.shape)}."
            )
        return tf.cast(outputs, tf.float32)

    return run


def _batches(images, batch_size):
    """Yields (images, labels or None)."""
    if isinstance(images, tf.data.Dataset):
        for batch in images:
            yield batch if isinstance(batch, tuple) else (batch, None)
    else:
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size], None
