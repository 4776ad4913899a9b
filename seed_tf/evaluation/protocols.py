"""Every protocol, on several encoders and seeds, into one table."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np

from seed_tf import teachers
from seed_tf.encoders import Encoder
from seed_tf.evaluation.config import EvaluationConfig, paper_rate
from seed_tf.evaluation.feature_cache import FeatureCache
from seed_tf.evaluation.fine_tune import (
    FineTuneResult,
    fine_tune,
    training_view,
)
from seed_tf.evaluation.knn import check_k, knn_grid, nearest_neighbours
from seed_tf.evaluation.labelled_images import LabelledImages
from seed_tf.evaluation.labels import check_classes
from seed_tf.evaluation.linear_probe import (
    ProbeResult,
    best_rate,
    choose_learning_rate,
    linear_probe,
)
from seed_tf.evaluation.results import Results
from seed_tf.evaluation.retrieval import retrieval
from seed_tf.evaluation.ridge_probe import ridge_probe
from seed_tf.io.fingerprints import fingerprint
from seed_tf.reporting import figures

__all__ = [
    "PROTOCOLS",
    "EvaluationConfig",
    "Outcome",
    "Protocol",
    "Resources",
    "Results",
    "Subsets",
    "common_image_size",
    "evaluate",
    "load_encoder",
    "paper_rate",
]

_OUTPUTS = ("features", "embeddings")
_SHOWN = 6  # queries, and neighbours of each, in the picture
_PROBE_BATCH = 256
_HELD_OUT = 0.1  # of the training images, to choose a learning rate on


class Subsets:
    """Labelled subsets of the training images, to fine-tune on.

    Args:
        config: `EvaluationConfig`, whose fractions or list are taken.
        folder: Folder for the subsets' files.
    """

    def __init__(self, config: EvaluationConfig, folder: str):
        self._config, self._folder, self._found = config, folder, {}

    def __call__(self, seed: int) -> dict[str, tuple[LabelledImages, float]]:
        """Returns, by their titles, subsets and their shares of labels."""
        if seed in self._found:
            return self._found[seed]
        config, folder = self._config, os.path.join(self._folder, str(seed))
        if config.label_list:
            listed = config.train.listed(config.label_list, folder)
            title = os.path.basename(config.label_list)
            found = {title: (listed, len(listed) / len(config.train))}
        else:
            found = {
                f"{100 * x:g} % of labels": (
                    config.train.fraction(x, f"{folder}-{x}", seed),
                    x,
                )
                for x in config.label_fractions
            }
        self._found[seed] = found
        return found


class Resources(NamedTuple):
    """What the protocols of one evaluation share.

    Attributes:
        cache: `FeatureCache`.
        subsets: `Subsets`.
    """

    cache: FeatureCache
    subsets: Subsets


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a protocol found.

    Attributes:
        scores: Dict of columns' headings to a number in percent, or to a str,
            which is not averaged.
        neighbours: None, or queries `[q]` and their neighbours `[q, k]`, as
            numbers of test and training images, for a picture.
    """

    scores: Mapping[str, float | str]
    neighbours: tuple[np.ndarray, np.ndarray] | None = None


def _features(model, config, resources, output="features"):
    """Pairs of features and labels, of training and of test images."""
    return tuple(
        resources.cache.features(model, images, output)
        for images in (config.train, config.test)
    )


def _knn(model, config, resources, seed):
    scores = {}
    for output in _OUTPUTS:
        data = _features(model, config, resources, output)
        for (k, weighting), value in knn_grid(*data, ks=config.ks).items():
            if weighting == "uniform":
                scores[f"{k}-NN, {output}"] = 100 * value
            elif k > 1:  # one neighbour has no weight
                scores[f"{k}-NN weighted, {output}"] = 100 * value
    return Outcome(scores)


def _linear(model, config, resources, seed):
    probe, rate = _probe(model, config, resources, seed)
    return Outcome(
        {
            "linear probe": 100 * probe.accuracy,
            "linear probe, rate": f"{rate:g}",
        }
    )


def _linear_views(model, config, resources, seed):
    probe, rate = _probe_views(model, config, seed)
    return Outcome(
        {
            "linear probe on views": 100 * probe.accuracy,
            "linear probe on views, rate": f"{rate:g}",
        }
    )


def _ridge(model, config, resources, seed):
    result = ridge_probe(*_features(model, config, resources))
    return Outcome({"ridge probe": 100 * result.accuracy})


def _fine_tune(model, config, resources, seed):
    scores = {}
    for title, (images, share) in resources.subsets(seed).items():
        result = _tuned(model, config, images, seed, share)
        scores[f"fine-tuned, {title}"] = 100 * result.accuracy
    return Outcome(scores)


def _transfer(model, config, resources, seed):
    probe, rate = _probe(model, config, resources, seed)
    result = _tuned(model, config, config.train, seed)
    return Outcome(
        {
            f"transfer, linear ({config.metric})": config.score(probe),
            "transfer, rate": f"{rate:g}",
            f"transfer, fine-tuned ({config.metric})": config.score(result),
        }
    )


def _retrieval(model, config, resources, seed):
    alone = config.train == config.test
    scores, neighbours = {}, None
    for output in _OUTPUTS:
        bank, queries = _features(model, config, resources, output)
        if output == "features":
            neighbours = _some_neighbours(bank, queries, alone)
        found = retrieval(bank, None if alone else queries, ks=config.ks)
        for k, recall in found.recall.items():
            scores[f"recall@{k}, {output}"] = 100 * recall
        scores[f"mAP, {output}"] = 100 * found.mean_average_precision
    return Outcome(scores, neighbours)


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


def _probe(model, config, resources, seed) -> tuple[ProbeResult, float]:
    """The linear probe of cached features, and its learning rate."""
    train, test = _features(model, config, resources)
    options = {
        "epochs": config.probe_epochs,
        "standardize": True,
        "seed": seed,
    }
    rate, *others = config.learning_rates or (10.0,)
    if others:
        rate, found = choose_learning_rate(
            train, config.learning_rates, held_out=_HELD_OUT, **options
        )
        _log_rates(config, found)
    return linear_probe(train, test, learning_rate=rate, **options), rate


def _probe_views(model, config, seed) -> tuple[ProbeResult, float]:
    """The paper's probe: new views of the images in every epoch."""

    def probe(rate, test, **part):
        train, steps_per_epoch = config.train.training(
            training_view(config.train.image_size),
            epochs=config.probe_epochs,
            batch_size=_PROBE_BATCH,
            seed=seed,
            drop_remainder=False,
            **part,
        )
        return linear_probe(
            train,
            test,
            encoder=model,
            num_classes=config.train.num_classes,
            learning_rate=rate,
            epochs=config.probe_epochs,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            log=config.log,
        )

    rate, *others = config.learning_rates or (paper_rate(model),)
    if others:
        size = round(_HELD_OUT * len(config.train))
        kept = config.train.load(held_out=size, subset="held_out")
        rate, found = best_rate(
            config.learning_rates,
            lambda rate: probe(rate, kept, held_out=size).accuracy,
        )
        _log_rates(config, found)
    return probe(rate, config.test.load()), rate


def _log_rates(config, found):
    config.log(
        "linear probe, held-out accuracy by rate: "
        + ", ".join(
            f"{x:g}: {'diverged' if y is None else f'{100 * y:.1f}'}"
            for x, y in found.items()
        )
    )


def _tuned(model, config, images, seed, share=1.0) -> FineTuneResult:
    """Fine-tunes on images that have this share of all labels."""
    epochs = config.fine_tune_epochs
    if epochs is None:
        epochs = 60 if share <= 0.01 else 30
    train, steps_per_epoch = images.training(
        training_view(images.image_size),
        epochs=epochs,
        batch_size=config.fine_tune_batch_size,
        seed=seed,
    )
    return fine_tune(
        model,
        train,
        config.test.load(),
        num_classes=config.train.num_classes,
        learning_rate=config.fine_tune_rate,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        log=config.log,
    )


class Protocol(NamedTuple):
    """One way to measure an encoder.

    Attributes:
        run: Function of a model, an `EvaluationConfig`, `Resources` and a seed
            to an `Outcome`.
        random: Whether the seed matters.
    """

    run: Callable[[keras.Model, EvaluationConfig, Resources, int], Outcome]
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


def load_encoder(name: str, seed: int = 0) -> keras.Model:
    """An encoder by name.

    Args:
        name: str, as `seed_tf.teachers.load_encoder` takes it; or
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
        return teachers.load_encoder(name)
    backbone, _, stem = rest.partition(":")
    keras.utils.set_random_seed(seed)
    return Encoder(backbone, stem=stem or "imagenet")


def common_image_size(models: Mapping[str, keras.Model]) -> tuple[int, str]:
    """Chooses one image size for several encoders.

    Args:
        models: Encoders by name.

    Returns:
        The largest size that an encoder was trained at, or 224 where none
        remembers a size; and the reason, for a reader.
    """
    sizes = {name: getattr(x, "image_size", None) for name, x in models.items()}
    known = sorted({size for size in sizes.values() if size})
    if not known:
        return 224, "no encoder remembers the size that it was trained at"
    if len(known) == 1:
        return known[0], "the size that the encoders were trained at"
    each = ", ".join(f"{name} {size}" for name, size in sizes.items() if size)
    return known[-1], f"the largest that an encoder was trained at ({each})"


def evaluate(
    encoders: Sequence[str] | Mapping[str, keras.Model],
    protocols: Sequence[str],
    config: EvaluationConfig,
    *,
    seeds: int = 1,
) -> Results:
    """Runs protocols on encoders.

    Args:
        encoders: Names as `load_encoder` takes them, or dict of names to
            models. A name "untrained:..." stands for new random weights with
            each seed.
        protocols: Keys of `PROTOCOLS`.
        config: `EvaluationConfig`.
        seeds: Runs of each protocol that is random, and of each protocol on
            an untrained network.

    Returns:
        `Results`.

    Raises:
        ValueError: if data, encoders or settings do not fit. Most errors are
            found before anything is embedded or trained.
    """
    with tempfile.TemporaryDirectory(prefix="subsets_") as folder:
        resources = Resources(
            FeatureCache(config.cache_dir, log=config.log),
            Subsets(config, folder),
        )
        _check(config, resources, protocols, seeds)
        for images in dict.fromkeys((config.train, config.test)):
            config.log(images.summary)
        return _run(encoders, protocols, config, resources, seeds)


def _run(encoders, protocols, config, resources, seeds):
    if isinstance(encoders, Mapping):
        models = encoders
    else:
        models = {name: load_encoder(name) for name in encoders}
    scores, neighbours = {}, {}
    for name, model in models.items():
        columns = scores.setdefault(name, {})
        for seed in range(seeds):
            untrained = name.startswith("untrained:")
            if untrained and seed:
                model = load_encoder(name, seed)
            for protocol in protocols:
                run, random = PROTOCOLS[protocol]
                if seed and not (random or untrained):
                    continue
                of_seed = f", seed {seed}" if seeds > 1 else ""
                config.log(f"{name}: {protocol}{of_seed} ...")
                outcome = run(model, config, resources, seed)
                for column, value in outcome.scores.items():
                    columns.setdefault(column, []).append(value)
                if outcome.neighbours is not None:
                    neighbours[name] = outcome.neighbours
    pictures = {}
    if neighbours:
        pictures["neighbours"] = _picture(config, resources, neighbours)
    fingerprints = {name: fingerprint(model) for name, model in models.items()}
    return Results(scores, pictures, fingerprints, config.data)


def _check(config, resources, protocols, seeds):
    """Raises ValueError where a protocol would fail after a long time."""
    if unknown := set(protocols) - set(PROTOCOLS):
        raise ValueError(
            f"`protocols` must be among {', '.join(PROTOCOLS)}. "
            f"Received: {', '.join(sorted(unknown))}."
        )
    if seeds < 1:
        raise ValueError(f"`seeds` must be positive. Received: seeds={seeds}.")
    if config.metric not in ("top-1", "mean per class"):
        raise ValueError(
            '`metric` must be "top-1" or "mean per class". '
            f"Received: metric={config.metric!r}."
        )
    config.test.load()
    alone = config.train == config.test
    if alone and set(protocols) != {"retrieval"}:
        raise ValueError(
            "Only the protocol retrieval can take the same images to learn "
            f"from and to test on. Received: split {config.train.split!r} for "
            "both."
        )
    if not alone:
        probed = {"linear", "linear_views", "transfer"} & set(protocols)
        several = len(config.learning_rates or ()) > 1
        _check_labels(config, resources, bool(probed) and several)
    if {"knn", "retrieval"} & set(protocols):
        for k in config.ks:
            check_k(range(len(config.train) - alone), k)
    if "fine_tune" in protocols:
        for seed in range(seeds):
            resources.subsets(seed)


def _check_labels(config, resources, held_out):
    """Raises ValueError if labels do not fit, before images are decoded."""
    train, test = map(resources.cache.labels, (config.train, config.test))
    names = config.train.class_names | config.test.class_names
    check_classes(train, test, names)
    if not held_out:
        return
    labels, counts = np.unique(train, return_counts=True)
    label, count = labels[counts.argmin()], counts.min()
    if not round(_HELD_OUT * count):
        rates = ", ".join(f"{rate:g}" for rate in config.learning_rates)
        raise ValueError(
            "Of several learning rates the best is chosen on a tenth of "
            "every class's training images. Class "
            f"{names.get(label, label)} has {count}, too few for that. "
            f"Give one learning rate. Received: {rates}."
        )


def _picture(config, resources, neighbours):
    """A few queries and their neighbours under every encoder."""
    numbers = np.unique(
        np.concatenate([found.ravel() for _, found in neighbours.values()])
    )
    bank = config.train.pick(numbers)
    chosen, _ = next(iter(neighbours.values()))
    labels, queries = map(resources.cache.labels, (config.train, config.test))
    return figures.neighbours(
        config.test.pick(chosen),
        {
            name: (bank, np.searchsorted(numbers, found))
            for name, (_, found) in neighbours.items()
        },
        query_labels=queries[chosen],
        bank_labels=labels[numbers],
    )
