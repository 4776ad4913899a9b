"""Images to train and evaluate on, as `tf.data` pipelines."""

from seed_tf.datasets.corrupt import CorruptFiles
from seed_tf.datasets.decoding import centre_crops
from seed_tf.datasets.digits import digits
from seed_tf.datasets.folders import image_files
from seed_tf.datasets.loading import load

__all__ = ["CorruptFiles", "centre_crops", "digits", "image_files", "load"]
