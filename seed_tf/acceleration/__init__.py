"""What makes a training step fast and changes none of its results."""

from seed_tf.acceleration.folded_teacher import FoldedTeacher
from seed_tf.acceleration.hardware import Hardware
from seed_tf.acceleration.plan import Acceleration, Plan

__all__ = ["Acceleration", "FoldedTeacher", "Hardware", "Plan"]
