"""SEED, self-supervised distillation of small image encoders, in Keras.

Shapes in all docstrings: B images in a batch, H x W pixels, D the width of an
embedding, C of pooled features, K the size of the queue. Images are RGB in
[0, 255].
"""

from seed_tf import (
    checkpoints,
    datasets,
    evaluation,
    export,
    losses,
    random,
    recipes,
    search,
    training,
    view_cache,
    views,
)
from seed_tf.acceleration import precision
from seed_tf.embedding_queue import EmbeddingQueue
from seed_tf.encoders import Encoder, backbone
from seed_tf.moco import MoCo
from seed_tf.seed import SEED
from seed_tf.version import __version__

__all__ = [
    "Encoder",
    "EmbeddingQueue",
    "MoCo",
    "SEED",
    "__version__",
    "backbone",
    "checkpoints",
    "datasets",
    "evaluation",
    "export",
    "losses",
    "precision",
    "recipes",
    "search",
    "random",
    "training",
    "view_cache",
    "views",
]
