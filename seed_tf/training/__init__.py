"""Optimiser and schedule of the paper's recipe, and what a run leaves."""

from seed_tf.training.callbacks import MetricsLog, Progress
from seed_tf.training.optimizer import SGD
from seed_tf.training.run import train
from seed_tf.training.schedule import warmup_cosine

__all__ = ["MetricsLog", "Progress", "SGD", "train", "warmup_cosine"]
