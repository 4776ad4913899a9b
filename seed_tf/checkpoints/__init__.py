"""Trained encoders from files, Keras's or published ones, and back again."""

from seed_tf.checkpoints.exporting import save_torch
from seed_tf.checkpoints.loading import load_encoder, load_student

load_teacher = load_encoder

__all__ = ["load_encoder", "load_student", "load_teacher", "save_torch"]
