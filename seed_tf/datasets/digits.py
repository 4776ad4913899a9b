"""Real images that need no download: they come with scikit-learn."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf


def digits(
    split: str, *, image_size: int = 16, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scikit-learn's 1,797 handwritten digits as RGB images.

    Grey values 0 to 16 become 0 to 255, the same in all three channels. The 8 x
    8 pixels are resized bilinearly. The split is stratified:
    1,297 training images and 500 test images, disjoint, with equal shares of
    the ten classes.

    Args:
        split: "train" or "test".
        image_size: positive int, S.
        seed: int, of the split. Compare only results of the same split.

    Returns:
        Images `[N, S, S, 3]` uint8 and labels `[N]` int64, 0 to 9.

    Raises:
        ValueError: if `split` is unknown.

    Source: UCI's "Optical Recognition of Handwritten Digits", test part.
    """
    if split not in ("train", "test"):
        raise ValueError(
            f'`split` must be "train" or "test". Received: split={split!r}.'
        )
    train, test = _splits(seed)
    pixels, labels = train if split == "train" else test
    images = tf.image.resize(pixels, [image_size, image_size])
    images = np.round(images).astype(np.uint8)
    return np.repeat(images, 3, axis=-1), labels.copy()


@functools.cache
def _splits(seed):
    """Pairs of images `[N, 8, 8, 1]` in [0, 255] and labels `[N]`."""
    # Importing scikit-learn takes most of a second.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1) * (255 / 16)
    parts = train_test_split(
        np.arange(len(labels)),
        test_size=500,
        stratify=labels,
        random_state=seed,
    )
    return [(images[part], labels[part].astype(np.int64)) for part in parts]
