"""Random views of images, as KerasCV layers that are functions of a seed.

`moco_v1`, `moco_v2`, `simclr`, `swav` and `small_patches` make the pipelines
of the paper, `multi_crop` joins two; `View` makes one's own, of the layers
here and any of KerasCV's.
"""

from seed_tf.views.layers import (
    ColorJitter,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    SeededAugmentation,
)
from seed_tf.views.pipelines import (
    MultiCrop,
    View,
    moco_v1,
    moco_v2,
    multi_crop,
    simclr,
    small_patches,
    swav,
    swav_small_patches,
)

__all__ = [
    "ColorJitter",
    "MultiCrop",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "SeededAugmentation",
    "View",
    "moco_v1",
    "moco_v2",
    "multi_crop",
    "simclr",
    "small_patches",
    "swav",
    "swav_small_patches",
]
