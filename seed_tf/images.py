"""What every entrance checks of images before any work on them."""

import numpy as np


def check_channels(images):
    """Raises ValueError unless images are a batch `[B, H, W, 3]`."""
    if len(images.shape) != 4 or images.shape[-1] != 3:
        raise ValueError(
            "Expected a batch of RGB images [B, H, W, 3]. Received: shape "
            f"{tuple(images.shape)}. Repeat a grey channel three times, and "
            "call `dataset.batch(...)` on single images."
        )


def check_value_range(images):
    """Raises ValueError if float images cannot be RGB in [0, 255].

    Refused are values that are not finite, and batches in which no value
    exceeds 5 but some differ from 0: images in [0, 1], or normalised ones.
    """
    images = np.asarray(images)
    if images.dtype.kind != "f" or not images.size:
        return
    low, high = float(images.min()), float(images.max())
    if not 5 < max(-low, high) < np.inf and (low, high) != (0, 0):
        raise ValueError(
            "Expected RGB images in [0, 255], as uint8 or float. Received: "
            f"{images.dtype} values in [{low:.4g}, {high:.4g}]. Leave out the "
            "normalisation (it is inside the Encoder), or multiply by 255."
        )
