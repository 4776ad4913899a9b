"""Images to train and evaluate on, as `tf.data` pipelines."""

from seed_tf.datasets.corrupt import CorruptFiles
from seed_tf.datasets.digits import digits
from seed_tf.datasets.loading import load

__all__ = ["CorruptFiles", "digits", "load"]
