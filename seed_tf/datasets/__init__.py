"""Images to train and evaluate on, as `tf.data` pipelines."""

from seed_tf.datasets.corrupt import CorruptFiles
from seed_tf.datasets.decoding import centre_crops
from seed_tf.datasets.digits import digits
from seed_tf.datasets.loading import Description, describe, load
from seed_tf.datasets.sampler import Sampler
from seed_tf.datasets.sources import Source
from seed_tf.datasets.walking import image_files

__all__ = [
    "CorruptFiles",
    "Description",
    "Sampler",
    "Source",
    "centre_crops",
    "describe",
    "digits",
    "image_files",
    "load",
]
