"""Random views of images, as KerasCV layers that are functions of a seed.

`moco_v1`, `moco_v2`, `simclr`, `swav` and `small_patches` return the pipelines
of the paper, and `multi_crop` joins two of them. `View` builds other pipelines
from the layers of this package, of KerasCV and of Keras.

Importing this package imports KerasCV, which takes a second or two. No module
that `import seed_tf` loads imports it.
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
