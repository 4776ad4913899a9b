"""A small data set for detection, generated from handwritten digits."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from seed_tf.arguments import integer
from seed_tf.datasets.digits import digits

_SIDES = (16, 20, 24, 28, 32, 36)  # pixels of a digit's square


def synthetic_detection(
    split: str,
    size: int,
    *,
    image_size: int = 96,
    max_digits: int = 4,
    seed: int = 0,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Generates black squares with handwritten digits, and the digits' boxes.

    Each square holds one to `max_digits` digits of 16 to 36 pixels, which do
    not overlap. A box is tight around the ink.

    Args:
        split: "train" or "test". The two use disjoint digits.
        size: positive int, N.
        image_size: int, S, 72 or more.
        max_digits: positive int, M.
        seed: int, for digits, sizes and positions.

    Returns:
        Images `[N, S, S, 3]` uint8 and a dict of "boxes" `[N, M, 4]` float32,
        (x1, y1, x2, y2) in pixels, "classes" `[N, M]` float32, the digits, and
        "crowd" `[N, M]` bool, all False. Boxes and classes are padded with -1,
        see `seed_tf.detection`.

    Raises:
        ValueError: if the split is unknown or a number is out of range.

    Example:

    >>> images, objects = synthetic_detection("test", 3)
    >>> images.shape, objects["boxes"].shape
    ((3, 96, 96, 3), (3, 4, 4))
    """
    size = integer("size", size)
    image_size = integer("image_size", image_size, least=2 * max(_SIDES))
    max_digits = integer("max_digits", max_digits)
    pictures, labels = digits(split, image_size=max(_SIDES))
    scaled = {
        side: np.round(
            tf.image.resize(pictures, [side, side], antialias=True)
        ).astype(np.uint8)
        for side in _SIDES
    }
    rng = np.random.default_rng([seed, split == "test"])
    images = np.zeros((size, image_size, image_size, 3), np.uint8)
    boxes = np.full((size, max_digits, 4), -1, np.float32)
    classes = np.full((size, max_digits), -1, np.float32)
    for n in range(size):
        taken = np.zeros((image_size, image_size), bool)
        count = 0
        # After ten tries without room, a digit is left out.
        for _ in range(rng.integers(1, max_digits + 1)):
            i, side = rng.integers(len(labels)), rng.choice(_SIDES)
            for _ in range(10):
                y, x = rng.integers(image_size - side + 1, size=2)
                place = slice(y, y + side), slice(x, x + side)
                if taken[place].any():
                    continue
                taken[place] = True
                digit = scaled[side][i]
                images[n][place] = digit
                ys, xs = np.nonzero(digit[..., 0] > 64)
                boxes[n, count] = (
                    *(x + xs.min(), y + ys.min()),
                    *(x + xs.max() + 1, y + ys.max() + 1),
                )
                classes[n, count] = labels[i]
                count += 1
                break
    return images, {
        "boxes": boxes,
        "classes": classes,
        "crowd": np.zeros((size, max_digits), bool),
    }
