"""Trained encoders from files."""

from seed_tf.checkpoints.keras_files import load_teacher

__all__ = ["load_teacher"]
