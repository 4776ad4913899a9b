"""PyTorch's rule of SGD, and the schedule of its learning rate."""

from seed_tf.optimizers.schedule import warmup_cosine
from seed_tf.optimizers.sgd import SGD

__all__ = ["SGD", "warmup_cosine"]
