"""What every entrance of images shares: sizes and checks."""

import numpy as np


def shorter_side(image_size):
    """Returns the shorter side to resize to before a central square is cut.

    The paper resizes to 256 pixels and cuts 224.

    Args:
        image_size: int, pixels of the square.

    >>> shorter_side(224)
    256
    """
    return round(image_size * 256 / 224)


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
