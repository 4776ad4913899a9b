"""How good an encoder is: the paper's protocols, and reports of them."""

from seed_tf.evaluation.config import EvaluationConfig
from seed_tf.evaluation.feature_cache import FeatureCache
from seed_tf.evaluation.features import embed
from seed_tf.evaluation.fine_tune import FineTuneResult, fine_tune
from seed_tf.evaluation.knn import (
    knn,
    knn_grid,
    nearest_neighbours,
    nearest_others,
    neighbour_agreement,
)
from seed_tf.evaluation.labelled_images import LabelledImages
from seed_tf.evaluation.labels import accuracies, few_labels, label_fraction
from seed_tf.evaluation.linear_probe import (
    DivergenceError,
    ProbeResult,
    choose_learning_rate,
    linear_probe,
)
from seed_tf.evaluation.monitor import KNN, NeighbourAgreement
from seed_tf.evaluation.protocols import evaluate
from seed_tf.evaluation.results import Results
from seed_tf.evaluation.retrieval import RetrievalResult, retrieval
from seed_tf.evaluation.ridge_probe import RidgeResult, ridge_probe

__all__ = [
    "KNN",
    "DivergenceError",
    "EvaluationConfig",
    "FeatureCache",
    "FineTuneResult",
    "LabelledImages",
    "NeighbourAgreement",
    "ProbeResult",
    "Results",
    "RetrievalResult",
    "RidgeResult",
    "accuracies",
    "choose_learning_rate",
    "embed",
    "evaluate",
    "few_labels",
    "fine_tune",
    "knn",
    "knn_grid",
    "label_fraction",
    "linear_probe",
    "nearest_neighbours",
    "nearest_others",
    "neighbour_agreement",
    "retrieval",
    "ridge_probe",
]
