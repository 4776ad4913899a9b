"""Encoders of other libraries, as teachers and as students."""

from seed_tf.teachers.loading import (
    absolute,
    is_path,
    license_of,
    load_encoder,
    load_network,
    start_from,
)
from seed_tf.teachers.networks import Network

__all__ = [
    "Network",
    "absolute",
    "is_path",
    "license_of",
    "load_encoder",
    "load_network",
    "start_from",
]
