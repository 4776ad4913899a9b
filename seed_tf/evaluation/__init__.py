"""How good an encoder is: the paper's protocols, and reports of them."""

from seed_tf.evaluation.features import embed
from seed_tf.evaluation.knn import (
    knn,
    nearest_neighbours,
    nearest_others,
    neighbour_agreement,
)
from seed_tf.evaluation.labels import few_labels
from seed_tf.evaluation.linear_probe import ProbeResult, linear_probe

__all__ = [
    "ProbeResult",
    "embed",
    "few_labels",
    "knn",
    "linear_probe",
    "nearest_neighbours",
    "nearest_others",
    "neighbour_agreement",
]
