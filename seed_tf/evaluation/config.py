"""What encoders are evaluated on: images, settings, features of them."""

import dataclasses
import os
import tempfile
from collections.abc import Callable

import numpy as np
from absl import logging

from seed_tf.evaluation.feature_cache import FeatureCache
from seed_tf.evaluation.fine_tune import fine_tune, training_view
from seed_tf.evaluation.labelled_images import LabelledImages
from seed_tf.evaluation.labels import check_classes
from seed_tf.evaluation.linear_probe import (
    best_rate,
    choose_learning_rate,
    linear_probe,
)

_PROBE_BATCH = 256
_HELD_OUT = 0.1  # of the training images, to choose a learning rate on


@dataclasses.dataclass
class EvaluationConfig:
    """What the encoders are evaluated on, and how.

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

    def __post_init__(self):
        self._cache = FeatureCache(self.cache_dir, log=self.log)
        self._folder = tempfile.TemporaryDirectory(prefix="subsets_")
        self._subsets = {}
        self.neighbours, self.labels = {}, ()

    @property
    def data(self):
        """Dict of what has to be equal for results to be comparable."""
        folder = self.train.data_dir
        return {
            "dataset": self.train.dataset,
            "data_dir": folder and os.path.realpath(os.path.expanduser(folder)),
            "train_split": self.train.split,
            "test_split": self.test.split,
            "image_size": self.train.image_size,
        }

    def check_labels(self, held_out=False):
        """Raises ValueError if labels do not fit, before images are decoded.

        Args:
            held_out: bool, whether a tenth of every class will be held out.
        """
        train, test = map(self._cache.labels, (self.train, self.test))
        names = self.train.class_names | self.test.class_names
        check_classes(train, test, names)
        if not held_out:
            return
        labels, counts = np.unique(train, return_counts=True)
        label, count = labels[counts.argmin()], counts.min()
        if not round(_HELD_OUT * count):
            rates = ", ".join(f"{rate:g}" for rate in self.learning_rates)
            raise ValueError(
                "Of several learning rates the best is chosen on a tenth of "
                "every class's training images. Class "
                f"{names.get(label, label)} has {count}, too few for that. "
                f"Give one learning rate. Received: {rates}."
            )

    def features(self, model, output="features"):
        """Pairs of features and labels, of training and of test images."""
        return tuple(
            self._cache.features(model, images, output)
            for images in (self.train, self.test)
        )

    def subsets(self, seed):
        """Labelled subsets to fine-tune on, by what to call them.

        Each is a pair of `LabelledImages` and the share of labels, a float.
        """
        if seed not in self._subsets:
            folder = os.path.join(self._folder.name, str(seed))
            if self.label_list:
                listed = self.train.listed(self.label_list, folder)
                share = len(listed) / len(self.train)
                found = {os.path.basename(self.label_list): (listed, share)}
            else:
                found = {
                    f"{100 * x:g} % of labels": (
                        self.train.fraction(x, f"{folder}-{x}", seed),
                        x,
                    )
                    for x in self.label_fractions
                }
            self._subsets[seed] = found
        return self._subsets[seed]

    def fine_tune(self, model, images, seed, share=1.0):
        """`FineTuneResult` of one encoder, images, and their share of all."""
        epochs = self.fine_tune_epochs
        if epochs is None:
            epochs = 60 if share <= 0.01 else 30
        train, steps_per_epoch = images.training(
            training_view(images.image_size),
            epochs=epochs,
            batch_size=self.fine_tune_batch_size,
            seed=seed,
        )
        return fine_tune(
            model,
            train,
            self.test.load(),
            num_classes=self.train.num_classes,
            learning_rate=self.fine_tune_rate,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            log=self.log,
        )

    def probe(self, model, seed):
        """`ProbeResult` of one encoder, and the rate of it."""
        train, test = self.features(model)
        options = {
            "epochs": self.probe_epochs,
            "standardize": True,
            "seed": seed,
        }
        rate, *others = self.learning_rates or (10.0,)
        if others:
            rate, found = choose_learning_rate(
                train, self.learning_rates, held_out=_HELD_OUT, **options
            )
            self._tell_rates(found)
        return linear_probe(train, test, learning_rate=rate, **options), rate

    def probe_views(self, model, seed):
        """`probe` on new views of the images in every epoch, by the paper."""

        def probe(rate, test, **part):
            train, steps_per_epoch = self.train.training(
                training_view(self.train.image_size),
                epochs=self.probe_epochs,
                batch_size=_PROBE_BATCH,
                seed=seed,
                drop_remainder=False,
                **part,
            )
            return linear_probe(
                train,
                test,
                encoder=model,
                num_classes=self.train.num_classes,
                learning_rate=rate,
                epochs=self.probe_epochs,
                steps_per_epoch=steps_per_epoch,
                seed=seed,
                log=self.log,
            )

        rate, *others = self.learning_rates or (paper_rate(model),)
        if others:
            size = round(_HELD_OUT * len(self.train))
            kept = self.train.load(held_out=size, subset="held_out")
            rate, found = best_rate(
                self.learning_rates,
                lambda rate: probe(rate, kept, held_out=size).accuracy,
            )
            self._tell_rates(found)
        return probe(rate, self.test.load()), rate

    def _tell_rates(self, found):
        self.log(
            "linear probe, held-out accuracy by rate: "
            + ", ".join(
                f"{x:g}: {'diverged' if y is None else f'{100 * y:.1f}'}"
                for x, y in found.items()
            )
        )

    def score(self, result):
        """A result's accuracy, in percent, by the data set's metric."""
        mean = self.metric == "mean per class"
        return 100 * (result.mean_per_class if mean else result.accuracy)


def paper_rate(model):
    """The learning rate of the paper's linear probe: 30, or 3.

    3 is that of EfficientNet and MobileNet, as BINGO and DisCo take it.

    Args:
        model: `Encoder` or keras.Model, told by the name of its backbone.

    Example:

    >>> paper_rate(student)
    30.0
    """
    network = getattr(model, "backbone", model).name
    return 3.0 if network.startswith(("efficientnet", "mobilenet")) else 30.0
