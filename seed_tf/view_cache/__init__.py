"""Views fixed once, and what a teacher makes of them, for any students."""

from seed_tf.view_cache.building import build
from seed_tf.view_cache.cache import ViewCache

__all__ = ["ViewCache", "build"]
