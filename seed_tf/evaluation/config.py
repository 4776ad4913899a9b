"""Settings of an evaluation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import keras
from absl import logging

from seed_tf.evaluation.fine_tune import FineTuneResult
from seed_tf.evaluation.labelled_images import LabelledImages
from seed_tf.evaluation.linear_probe import ProbeResult


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The images that encoders are evaluated on, and how.

    Args:
        train, test: `LabelledImages`. Where they are equal, retrieval leaves
            out the query itself.
        metric: "top-1" or "mean per class", of the protocol "transfer".
        ks: ints, of k-NN and of recall@k.
        learning_rates: floats, of the linear probes. Of several the best is
            chosen on a tenth of the training set. None for 10 on features
            and, on views, the paper's: see `paper_rate`.
        probe_epochs: int.
        label_fractions: floats in (0, 1], for fine-tuning.
        label_list: path of a file of image names, in place of fractions.
        fine_tune_rate: float, per 256 images.
        fine_tune_epochs: int; None for SimCLR's, 60 with at most 1 % of the
            labels and 30 with more.
        fine_tune_batch_size: int.
        cache_dir: str, where features are kept; None for nowhere.
        log: function of one str, called with lines of progress.
    """

    train: LabelledImages
    test: LabelledImages
    metric: str = "top-1"
    ks: tuple = (10,)
    learning_rates: tuple | None = None
    probe_epochs: int = 100
    label_fractions: tuple = (1.0,)
    label_list: str | None = None
    fine_tune_rate: float = 0.05
    fine_tune_epochs: int | None = None
    fine_tune_batch_size: int = 256
    cache_dir: str | None = None
    log: Callable = logging.info

    @property
    def data(self) -> dict:
        """Settings that must match before two results are compared."""
        folder = self.train.data_dir
        return {
            "dataset": self.train.dataset,
            "data_dir": folder and os.path.realpath(os.path.expanduser(folder)),
            "train_split": self.train.split,
            "test_split": self.test.split,
            "image_size": self.train.image_size,
        }

    def score(self, result: ProbeResult | FineTuneResult) -> float:
        """Accuracy of a result in percent, by the data set's metric."""
        mean = self.metric == "mean per class"
        return 100 * (result.mean_per_class if mean else result.accuracy)


def paper_rate(model: keras.Model) -> float:
    """The learning rate of the paper's linear probe: 30, or 3.

    3 is that of EfficientNet and MobileNet, as BINGO and DisCo take it.

    Args:
        model: `Encoder` or keras.Model, recognised by its backbone's name.

    Example:

    >>> paper_rate(student)
    30.0
    """
    network = getattr(model, "backbone", model).name
    return 3.0 if network.startswith(("efficientnet", "mobilenet")) else 30.0
