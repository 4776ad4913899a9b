"""Every protocol, on several encoders and seeds, into one table."""

import csv
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import keras
import matplotlib
import numpy as np
from absl import logging
from matplotlib.figure import Figure

from seed_tf.checkpoints import load_teacher
from seed_tf.encoders import Encoder
from seed_tf.evaluation import report
from seed_tf.evaluation.feature_cache import FeatureCache
from seed_tf.evaluation.fine_tune import fine_tune, training_view
from seed_tf.evaluation.knn import check_k, knn_grid, nearest_neighbours
from seed_tf.evaluation.labelled_images import LabelledImages
from seed_tf.evaluation.labels import check_classes
from seed_tf.evaluation.linear_probe import (
    best_rate,
    choose_learning_rate,
    linear_probe,
)
from seed_tf.evaluation.retrieval import retrieval
from seed_tf.evaluation.ridge_probe import ridge_probe
from seed_tf.training.saving import fingerprint, replacing

_OUTPUTS = ("features", "embeddings")
_SHOWN = 6  # queries, and neighbours of each, in the picture
_PROBE_BATCH = 256
_HELD_OUT = 0.1  # of the training images, to choose a learning rate on


@dataclasses.dataclass
class Task:
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
        tell: function of one str, for progress.
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
    tell: Callable = logging.info

    def __post_init__(self):
        self._cache = FeatureCache(self.cache_dir, tell=self.tell)
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
            tell=self.tell,
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
                tell=self.tell,
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
        self.tell(
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


def _knn(name, model, task, seed):
    for output in _OUTPUTS:
        found = knn_grid(*task.features(model, output), ks=task.ks)
        for (k, weighting), accuracy in found.items():
            if weighting == "uniform":
                yield f"{k}-NN, {output}", 100 * accuracy
            elif k > 1:  # one neighbour has no weight
                yield f"{k}-NN weighted, {output}", 100 * accuracy


def _linear(name, model, task, seed):
    probe, rate = task.probe(model, seed)
    yield "linear probe", 100 * probe.accuracy
    yield "linear probe, rate", f"{rate:g}"


def _linear_views(name, model, task, seed):
    probe, rate = task.probe_views(model, seed)
    yield "linear probe on views", 100 * probe.accuracy
    yield "linear probe on views, rate", f"{rate:g}"


def _ridge(name, model, task, seed):
    yield "ridge probe", 100 * ridge_probe(*task.features(model)).accuracy


def _fine_tune(name, model, task, seed):
    for labels, (images, share) in task.subsets(seed).items():
        result = task.fine_tune(model, images, seed, share)
        yield f"fine-tuned, {labels}", 100 * result.accuracy


def _transfer(name, model, task, seed):
    probe, rate = task.probe(model, seed)
    yield f"transfer, linear ({task.metric})", task.score(probe)
    yield "transfer, rate", f"{rate:g}"
    result = task.fine_tune(model, task.train, seed)
    yield f"transfer, fine-tuned ({task.metric})", task.score(result)


def _retrieval(name, model, task, seed):
    alone = task.train == task.test
    for output in _OUTPUTS:
        bank, queries = task.features(model, output)
        if output == "features":
            task.neighbours[name] = _some_neighbours(bank, queries, alone)
            task.labels = bank[1], queries[1]
        found = retrieval(bank, None if alone else queries, ks=task.ks)
        for k, recall in found.recall.items():
            yield f"recall@{k}, {output}", 100 * recall
        yield f"mAP, {output}", 100 * found.mean_average_precision


def _some_neighbours(bank, queries, alone):
    """Numbers of a few queries `[q]`, and of their neighbours `[q, k]`."""
    count = len(queries[1])
    chosen = np.random.default_rng(0).permutation(count)[:_SHOWN]
    k = min(_SHOWN, len(bank[1]) - alone)
    _, found = nearest_neighbours(bank[0], queries[0][chosen], k + alone)
    if alone:
        itself = found == chosen[:, None]
        last = np.argsort(itself, axis=1, kind="stable")
        found = np.take_along_axis(found, last, axis=1)[:, :k]
    return chosen, found


class Protocol(NamedTuple):
    """One way to tell how good an encoder is.

    Attributes:
        run: function of an encoder's name, its model, a `Task` and a seed
            that yields pairs of a column's heading and a number in percent,
            or a str that is not averaged.
        random: bool, whether seeds matter.
    """

    run: Callable
    random: bool


PROTOCOLS = {
    "knn": Protocol(_knn, random=False),
    "linear": Protocol(_linear, random=True),
    "linear_views": Protocol(_linear_views, random=True),
    "ridge": Protocol(_ridge, random=False),
    "fine_tune": Protocol(_fine_tune, random=True),
    "transfer": Protocol(_transfer, random=True),
    "retrieval": Protocol(_retrieval, random=False),
}


def load_encoder(name, seed=0):
    """An encoder by name.

    Args:
        name: str, as `seed_tf.checkpoints.load_teacher` takes it; or
            "untrained:resnet18", a network that `seed_tf.backbone` knows with
            random weights, also with a stem: "untrained:resnet18:cifar".
        seed: int, of random weights.

    Returns:
        `Encoder` or keras.Model.

    Raises:
        ValueError: if there is none.

    Example:

    >>> load_encoder("untrained:resnet18:cifar").feature_dim
    512
    """
    kind, _, rest = name.partition(":")
    if kind != "untrained":
        return load_teacher(name)
    backbone, _, stem = rest.partition(":")
    keras.utils.set_random_seed(seed)
    return Encoder(backbone, stem=stem or "imagenet")


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


def evaluate(encoders, protocols, task, *, seeds=1):
    """Runs protocols on encoders.

    Args:
        encoders: list of names as `load_encoder` takes them, or dict of names
            to models.
        protocols: list of keys of `PROTOCOLS`.
        task: `Task`.
        seeds: int, runs of each protocol that is random, and of each on an
            untrained network.

    Returns:
        `Results`.

    Raises:
        ValueError: if data, encoders or settings do not fit. What can be
            checked is checked before anything is embedded or trained.
    """
    _check(task, protocols, seeds)
    models = {
        name: encoders[name]
        if isinstance(encoders, dict)
        else load_encoder(name)
        for name in encoders
    }
    scores = {}
    for name, model in models.items():
        columns = scores.setdefault(name, {})
        for seed in range(seeds):
            untrained = not isinstance(encoders, dict) and name.startswith(
                "untrained:"
            )
            if untrained and seed:
                model = load_encoder(name, seed)
            for protocol in protocols:
                run, random = PROTOCOLS[protocol]
                if seed and not (random or untrained):
                    continue
                of_seed = f", seed {seed}" if seeds > 1 else ""
                task.tell(f"{name}: {protocol}{of_seed} ...")
                for column, value in run(name, model, task, seed):
                    columns.setdefault(column, []).append(value)
    pictures = {}
    if task.neighbours:
        pictures["neighbours"] = _picture(task)
    fingerprints = {name: fingerprint(model) for name, model in models.items()}
    return Results(scores, pictures, fingerprints, task.data)


def _check(task, protocols, seeds):
    """Raises ValueError for what would go wrong only after a long time."""
    if unknown := set(protocols) - set(PROTOCOLS):
        raise ValueError(
            f"`protocols` must be among {', '.join(PROTOCOLS)}. "
            f"Received: {', '.join(sorted(unknown))}."
        )
    if seeds < 1:
        raise ValueError(f"`seeds` must be positive. Received: seeds={seeds}.")
    if task.metric not in ("top-1", "mean per class"):
        raise ValueError(
            '`metric` must be "top-1" or "mean per class". '
            f"Received: metric={task.metric!r}."
        )
    task.test.load()
    alone = task.train == task.test
    if alone and set(protocols) != {"retrieval"}:
        raise ValueError(
            "Only the protocol retrieval can take the same images to learn "
            f"from and to test on. Received: split {task.train.split!r} for "
            "both."
        )
    if not alone:
        probed = {"linear", "linear_views", "transfer"} & set(protocols)
        several = len(task.learning_rates or ()) > 1
        task.check_labels(held_out=bool(probed) and several)
    if {"knn", "retrieval"} & set(protocols):
        for k in task.ks:
            check_k(range(len(task.train) - alone), k)
    if "fine_tune" in protocols:
        for seed in range(seeds):
            task.subsets(seed)


def _picture(task):
    """A few queries and their neighbours under every encoder."""
    numbers = np.unique(
        np.concatenate([found.ravel() for _, found in task.neighbours.values()])
    )
    bank = task.train.pick(numbers)
    chosen = next(iter(task.neighbours.values()))[0]
    labels, queries = task.labels
    return report.neighbours(
        task.test.pick(chosen),
        {
            name: (bank, np.searchsorted(numbers, found))
            for name, (_, found) in task.neighbours.items()
        },
        query_labels=queries[chosen],
        bank_labels=labels[numbers],
    )


class Results:
    """Scores of encoders: one table in several forms, and figures.

    Args:
        scores: dict of encoders to dicts of columns to lists, of one value per
            seed: percent, or str.
        pictures: dict of names to figures.
        fingerprints: dict of encoders to what tells their weights apart.
        data: JSON dict that tells what they were evaluated on.
    """

    def __init__(self, scores, pictures=(), fingerprints=(), data=()):
        self.scores, self.pictures = scores, dict(pictures)
        self.fingerprints, self.data = dict(fingerprints), dict(data)

    @classmethod
    def read(cls, folder, data):
        """What `write` left in a folder, without pictures; empty if nothing.

        Raises:
            ValueError: if that was on other data, or the folder has results
                of other kinds, or damaged ones.
        """
        path = os.path.join(folder, "scores.json")
        remedy = "Choose another --output, or remove them."
        try:
            with open(path, encoding="utf-8") as file:
                earlier = json.load(file)
            scores, fingerprints, there = (
                earlier[key] for key in ("scores", "fingerprints", "data")
            )
        except FileNotFoundError:
            if os.path.exists(os.path.join(folder, "results.json")):
                raise ValueError(
                    f"{folder!r} holds results without a scores.json, which "
                    f"would tell on which data. {remedy}"
                ) from None
            return cls({}, data=data)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path!r} is damaged: {error!r}.") from error
        if there != data:
            different = "; ".join(
                f"{key}: {there.get(key)!r} there, {value!r} here"
                for key, value in data.items()
                if there.get(key) != value
            )
            raise ValueError(
                f"{folder!r} holds results on other data. {different}. {remedy}"
            )
        return cls(scores, (), fingerprints, data)

    def beside(self, earlier):
        """These and earlier results on the same data, as one.

        Where both have a column of an encoder, it is this one's. Of an encoder
        whose weights are others now, nothing earlier stays, with a warning.
        """
        kept = dict(earlier.scores)
        for name in set(self.scores) & set(kept):
            if self.fingerprints.get(name) != earlier.fingerprints.get(name):
                logging.warning(
                    "%s has other weights than when it was evaluated before. "
                    "What was found then is left out: %s.",
                    *(name, ", ".join(kept.pop(name))),
                )
        scores = {
            name: kept.get(name, {}) | self.scores.get(name, {})
            for name in [*earlier.scores, *self.scores]
        }
        fingerprints = earlier.fingerprints | self.fingerprints
        return Results(scores, self.pictures, fingerprints, self.data)

    @property
    def columns(self):
        """Headings, of all encoders."""
        return list(
            dict.fromkeys(c for found in self.scores.values() for c in found)
        )

    def table(self, fmt="text"):
        """The table as "text", "markdown" or "html"; mean ± spread of seeds.

        The spread is the standard deviation over the seeds. A row is an
        encoder or, where these would be too long to read, a column's heading.
        """
        cells = {
            name: {column: _cell(values) for column, values in found.items()}
            for name, found in self.scores.items()
        }
        if len(self.columns) <= 6:
            rows = [{"encoder": name} | found for name, found in cells.items()]
            return report.table(rows, ["encoder", *self.columns], fmt)
        rows = [
            {"": column}
            | {name: found.get(column) for name, found in cells.items()}
            for column in self.columns
        ]
        return report.table(rows, ["", *cells], fmt)

    def rows(self):
        """Flat rows, as JSON and CSV have them; spreads in columns apart."""
        rows = []
        for name, found in self.scores.items():
            row = {"encoder": name}
            for column, values in found.items():
                cell = _cell(values)
                mean, *spread = cell if isinstance(cell, tuple) else (cell,)
                row[column] = mean if isinstance(mean, str) else round(mean, 2)
                if spread:
                    row[f"{column}, spread"] = round(spread[0], 2)
            rows.append(row)
        return rows

    @matplotlib.rc_context(
        {"font.size": 9, "figure.constrained_layout.use": True}
    )
    def figure(self):
        """All scores in one figure, a line per column, a dot per encoder."""
        colours = report.palette(self.scores)
        columns = [
            column
            for column in self.columns
            if not any(
                isinstance(value, str)
                for found in self.scores.values()
                for value in found.get(column, ())
            )
        ]
        figure = Figure((7, 1.4 + 0.3 * len(columns)))
        axes = figure.subplots()
        for name, found in self.scores.items():
            places = [i for i, x in enumerate(columns) if x in found]
            values = [found[columns[i]] for i in places]
            axes.errorbar(
                [np.mean(x) for x in values],
                places,
                xerr=[np.std(x) for x in values],
                **{"fmt": "o", "capsize": 3, "alpha": 0.85},
                color=colours[name],
                label=name,
            )
        axes.set_yticks(range(len(columns)), columns)
        axes.invert_yaxis()
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("%")
        figure.legend(loc="outside upper left", frameon=False)
        return figure

    def write(self, folder):
        """Writes results.json, .csv, .md and .png, and the pictures.

        And scores.json, with what `read` takes: the values of all seeds.

        Raises:
            OSError: if a file cannot be written.
        """
        os.makedirs(folder, exist_ok=True)
        rows = self.rows()
        columns = list(dict.fromkeys(c for row in rows for c in row))

        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        everything = {
            "data": self.data,
            "fingerprints": self.fingerprints,
            "scores": self.scores,
        }
        for name, text in {
            "scores.json": json.dumps(everything, indent=2),
            "results.json": json.dumps(rows, indent=2),
            "results.csv": sheet.getvalue(),
            "results.md": self.table("markdown") + "\n",
        }.items():
            with (
                replacing(os.path.join(folder, name)) as path,
                open(path, "w", encoding="utf-8") as file,
            ):
                file.write(text)
        for name, figure in {"results": self.figure(), **self.pictures}.items():
            with replacing(os.path.join(folder, f"{name}.png")) as path:
                figure.savefig(path, dpi=130)


def _cell(values):
    """One value, or (mean, standard deviation); of words all that occur."""
    if isinstance(values[0], str):
        return ", ".join(dict.fromkeys(values))
    if len(values) == 1:
        return float(values[0])
    return float(np.mean(values)), float(np.std(values))
