"""Every protocol, on several encoders and seeds, into one table."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from seed_tf import checkpoints
from seed_tf.encoders import Encoder
from seed_tf.evaluation.config import (
    EvaluationConfig,
    paper_rate,
)
from seed_tf.evaluation.knn import check_k, knn_grid, nearest_neighbours
from seed_tf.evaluation.results import Results
from seed_tf.evaluation.retrieval import retrieval
from seed_tf.evaluation.ridge_probe import ridge_probe
from seed_tf.io.fingerprints import fingerprint
from seed_tf.reporting import figures

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "Results",
    "EvaluationConfig",
    "evaluate",
    "load_encoder",
    "paper_rate",
]

_OUTPUTS = ("features", "embeddings")
_SHOWN = 6  # queries, and neighbours of each, in the picture


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
        run: function of an encoder's name, its model, an
            `EvaluationConfig` and a seed that yields pairs of a column's
            heading and a number in percent, or a str that is not averaged.
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
        name: str, as `seed_tf.checkpoints.load_encoder` takes it; or
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
        return checkpoints.load_encoder(name)
    backbone, _, stem = rest.partition(":")
    keras.utils.set_random_seed(seed)
    return Encoder(backbone, stem=stem or "imagenet")


def evaluate(encoders, protocols, task, *, seeds=1):
    """Runs protocols on encoders.

    Args:
        encoders: list of names as `load_encoder` takes them, or dict of names
            to models.
        protocols: list of keys of `PROTOCOLS`.
        task: `EvaluationConfig`.
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
                task.log(f"{name}: {protocol}{of_seed} ...")
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
    return figures.neighbours(
        task.test.pick(chosen),
        {
            name: (bank, np.searchsorted(numbers, found))
            for name, (_, found) in task.neighbours.items()
        },
        query_labels=queries[chosen],
        bank_labels=labels[numbers],
    )
