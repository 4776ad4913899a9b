"""Figures of results, made from plain data.

Every figure is a `matplotlib.figure.Figure`: save it with
`figure.savefig("name.png")`, or put it on a page. An encoder is named by the
key of a dict, and keeps its colour in all figures that get the same `colours`
(see `palette`).

matplotlib and scikit-learn are imported when the first figure is drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from seed_tf.embeddings import l2_normalise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_P = ParamSpec("_P")
_T = TypeVar("_T")

_INK, _RIGHT, _WRONG = "#222222", "#009E73", "#D5302F"
# Distinct under the common forms of colour blindness: Okabe and Ito's colours
# for encoders, Paul Tol's "muted" ones for classes.
_ENCODERS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7"),
    *("#56B4E9", "#D55E00", "#7F7F7F"),
)
_CLASSES = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#DDCC77"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#777777"),
)
_STYLE: dict[Any, Any] = {
    "figure.dpi": 130,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.edgecolor": "#aaaaaa",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "xtick.color": "#aaaaaa",
    "xtick.labelcolor": _INK,
    "ytick.color": "#aaaaaa",
    "ytick.labelcolor": _INK,
}


def styled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Makes a function draw in the style of this module.

    Names come from files, classes and runs. matplotlib shows them as they are,
    and takes none for a formula.
    """

    @functools.wraps(function)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return function(*args, **kwargs)

    return styled


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((width, height))


def palette(names: Iterable[str]) -> dict[str, str]:
    """Returns a colour "#rrggbb" for each encoder.

    After seven names the colours repeat.
    """
    return {name: _ENCODERS[i % len(_ENCODERS)] for i, name in enumerate(names)}


@styled
def bars(
    results: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    xlabel: str = "top-1 accuracy (%)",
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draws accuracies as bars: mean, standard deviation and every seed.

    Args:
        results: dict of encoder names to dicts of protocol names to lists of
            accuracies, one per seed, in percent.
        xlabel: label of the axis.
        colours: dict of encoder names to colours, by default `palette`'s.

    Returns:
        Figure, one panel per protocol.
    """
    names = list(results)
    colours = colours or palette(names)
    protocols = list(dict.fromkeys(p for r in results.values() for p in r))
    figure = _figure(1.6 + 2.7 * len(protocols), 0.9 + 0.4 * len(names))
    panels = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    for axes, protocol in zip(panels, protocols, strict=True):
        for y, name in enumerate(names):
            if protocol in results[name]:
                _bar(axes, y, results[name][protocol], colours[name])
        axes.set_title(protocol, loc="left")
        axes.set_xlabel(xlabel)
        axes.set_xlim(0, 118)  # room for the number beside a full bar
        axes.set_xticks(range(0, 101, 25))
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
    panels[0].invert_yaxis()
    return figure


def _bar(axes: Axes, y: int, values: Sequence[float], colour: str) -> None:
    accuracies = np.asarray(values, float)
    mean, spread = accuracies.mean(), accuracies.std()
    axes.barh(y, mean, height=0.66, color=colour)
    end = mean
    if len(values) > 1:
        axes.errorbar(mean, y, xerr=spread, color=_INK, lw=1.3, capsize=3)
        heights = y + np.linspace(-0.2, 0.2, len(values))
        style: dict[str, Any] = {"c": "white", "edgecolors": _INK, "zorder": 3}
        axes.scatter(accuracies, heights, s=12, lw=0.8, **style)
        end = max(mean + spread, accuracies.max())
    axes.text(end + 2, y, f"{mean:.1f}", va="center", fontsize=9)


@styled
def curves(
    histories: Mapping[str, Mapping[str, Sequence[float | None]]],
    metrics: Sequence[str] | Mapping[str, str],
    *,
    x: str | None = None,
    every: int = 1,
    xlabel: str = "epoch",
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draws training curves, one panel per metric.

    Args:
        histories: dict of run names to dicts of metric names to lists of
            values, as `model.fit(...).history`. A run may lack a metric. A
            missing value is None.
        metrics: metric names, or dict of metric names to labels.
        x: name of the metric along the horizontal axis; by default values
            stand `every` apart.
        every: units of `xlabel` from one value to the next.
        xlabel: label of the horizontal axis.
        colours: dict of run names to colours, by default `palette`'s.

    Returns:
        Figure.
    """
    colours = colours or palette(histories)
    columns = min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    figure = _figure(3.4 * columns, 0.5 + 2.5 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    labels = metrics if isinstance(metrics, dict) else {m: m for m in metrics}
    for axes, (metric, label) in zip(panels, labels.items(), strict=False):
        for name, history in histories.items():
            values = history.get(metric, ())
            steps = history[x] if x else every * np.arange(1, len(values) + 1)
            points = [
                point
                for point in zip(steps, values, strict=bool(values))
                if point[1] is not None
            ]
            style = {"marker": "."} if len(points) < 20 else {}
            axes.plot(
                *zip(*points, strict=True) if points else ((), ()),
                color=colours[name],
                lw=1.6,
                **style,
            )
        axes.set_title(label, loc="left")
        axes.set_xlabel(xlabel)
        axes.grid(axis="y")
        axes.margins(x=0.01)
    for axes in panels[len(labels) :]:
        axes.set_visible(False)
    if len(histories) > 1:
        _legend(figure, {name: colours[name] for name in histories}, "-")
    return figure


@styled
def points(
    values: Mapping[str, tuple[float, float]],
    *,
    xlabel: str,
    ylabel: str,
    ticks: str | None = None,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draws named points, as figure 1 of the paper: accuracy by parameters.

    Args:
        values: dict of names to pairs (x, y), x positive.
        xlabel, ylabel: labels of the axes.
        ticks: format of the values of x, such as "{x:g}"; by default they have
            the prefixes k, M, G, T, P, E.
        colours: dict of names to colours, by default `palette`'s.

    Returns:
        Figure with a logarithmic horizontal axis. The names stand beside it
        in a column, in the order of their points from top to bottom.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    colours = colours or palette(values)
    figure = _figure(7.6, max(3.6, 0.8 + 0.19 * len(values)))
    axes = figure.subplots()
    axes.set_xscale("log")
    for name, (x, y) in values.items():
        axes.scatter(x, y, s=44, color=colours[name], zorder=3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticks or EngFormatter(sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid()
    axes.margins(x=0.1, y=0.1)
    low, high = axes.get_ylim()
    names = sorted(values, key=lambda name: values[name][1])
    heights = [(values[name][1] - low) / (high - low) for name in names]
    for name, height in zip(names, _apart(heights), strict=True):
        axes.annotate(
            name,
            values[name],
            (1.06, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colours[name],
                "lw": 0.6,
                "relpos": (0, 0.5),
            },
        )
    return figure


def _apart(heights: Sequence[float]) -> list[float]:
    """Moves rising heights in [0, 1] apart, to leave room for names."""
    gap = min(0.06, 1 / max(len(heights) - 1, 1))
    moved = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    top = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], top)
        top = moved[i] - gap
    return moved


@styled
def target_curve(advice: Any) -> Figure:
    """Draws neighbours in the target and its self-mass by temperature.

    Args:
        advice: `seed_tf.evaluation.advice.Advice`.

    Returns:
        Figure, one panel each.
    """
    both = {
        f"queue of {advice.sample:,}, measured": (advice.measured, ":"),
        f"queue of {advice.queue_size:,}, about": (advice.expected, "-"),
    }
    figure = _figure(7.6, 3.3)
    left, right = figure.subplots(1, 2)
    for label, (targets, line) in both.items():
        style: dict[str, Any] = {
            "color": _ENCODERS[0],
            "marker": ".",
            "ls": line,
        }
        x = [target.temperature for target in targets]
        neighbours = [target.neighbours for target in targets]
        left.plot(x, neighbours, label=label, **style)
        mass = [100 * target.self_mass for target in targets]
        right.plot(x, mass, **style)
    left.set_yscale("log")
    left.set_title("neighbours in the target", loc="left")
    right.set_title("target's mass on the image itself (%)", loc="left")
    for axes in (left, right):
        axes.set_xscale("log")
        for axis in (axes.xaxis, left.yaxis):  # by default, formulas
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.set_xlabel("teacher temperature")
        axes.grid()
        axes.axvline(advice.temperature, color=_RIGHT, lw=1.6)
    left.legend(frameon=False, fontsize=8)
    right.annotate(
        f"recommended: {advice.temperature:g}",
        (advice.temperature, 100),
        (5, 0),
        textcoords="offset points",
        va="top",
        color=_RIGHT,
        fontsize=8,
    )
    return figure


@styled
def embedding_map(
    features: Mapping[str, np.ndarray],
    labels: Sequence[int] | np.ndarray,
    *,
    seed: int = 0,
    method: str = "tsne",
    max_points: int = 1000,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws 2-D maps of the same images under several encoders.

    Args:
        features: dict of encoder names to features `[N, C]` of the same N
            images. They are L2-normalised first, because k-NN compares
            directions only.
        labels: `[N]` integers. If there are more than ten classes, the ten
            with most images are shown.
        seed: seed of the points shown and of the map.
        method: "tsne" for t-SNE, started from the principal components, or
            "pca" for the first two principal components.
        max_points: number of points shown, the same for every encoder.
        class_names: names of the classes by label, by default the labels.

    Returns:
        Figure.

    Raises:
        ValueError: if `method` is neither.
    """
    if method not in ("tsne", "pca"):
        raise ValueError(
            f'`method` must be "tsne" or "pca". Received: method={method!r}.'
        )
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")[: len(_CLASSES)]
    classes = np.sort(classes[order])
    shown = np.flatnonzero(np.isin(labels, classes))
    shown = np.random.default_rng(seed).permutation(shown)[:max_points]
    named = {
        c: str(c if class_names is None else class_names[c]) for c in classes
    }
    colours = dict(zip(named.values(), _CLASSES, strict=False))
    figure = _figure(3.6 * len(features), 4.25)
    panels = figure.subplots(1, len(features), squeeze=False)[0]
    for axes, (name, vectors) in zip(panels, features.items(), strict=True):
        vectors = np.asarray(vectors, np.float32)[shown]
        points = _plane(l2_normalise(vectors), method, seed)
        for label, text in named.items():
            mine = points[labels[shown] == label]
            style = {"color": colours[text], "marker": _mark(text)}
            axes.scatter(*mine.T, s=26, lw=0.4, **style)
        axes.set_title(name, loc="left")
        axes.set_box_aspect(1)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, color="#dddddd")
    _legend(figure, colours, "o")
    return figure


def _mark(name: str) -> str:
    """Returns a marker: a short name itself, readable without its colour."""
    return f"${name}$" if len(name) == 1 and name.isalnum() else "."


def _plane(vectors: np.ndarray, method: str, seed: int) -> np.ndarray:
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, random_state=seed).fit_transform(vectors)
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30, (len(vectors) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=seed)
    # On a busy machine its threads wait for each other, for minutes.
    with threadpool_limits(1):
        return tsne.fit_transform(vectors)


@styled
def mosaic(images: np.ndarray, *, columns: int = 8) -> Figure:
    """Draws images in rows.

    Args:
        images: `[N, H, W, 3]` uint8.
        columns: number of images in a row.

    Returns:
        Figure.
    """
    images = np.asarray(images)
    columns = min(columns, len(images))
    rows = len(images) // columns
    figure = _figure(0.9 * columns, 0.9 * rows)
    grid = images[: rows * columns].reshape(rows, columns, *images.shape[1:])
    _mosaic(figure.subplots(), grid)
    return figure


@styled
def neighbours(
    query_images: np.ndarray,
    results: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    query_labels: np.ndarray | None = None,
    bank_labels: np.ndarray | None = None,
) -> Figure:
    """Draws query images and their neighbours under several encoders.

    Args:
        query_images: `[Q, H, W, 3]` uint8.
        results: dict of encoder names to pairs of bank images
            `[N, H, W, 3]` uint8 and indices `[Q, k]` into them, nearest first
            (see `nearest_neighbours`).
        query_labels, bank_labels: `[Q]` and `[N]` integers. If both are
            given, neighbours of the query's class are outlined in green, all
            others in a thicker red.

    Returns:
        Figure.
    """
    from matplotlib.patches import Rectangle

    widths = [1] + [np.shape(indices)[1] for _, indices in results.values()]
    count = len(query_images)
    figure = _figure(0.54 * sum(widths) + 0.3, 0.54 * count + 0.8)
    panels = figure.subplots(1, len(widths), width_ratios=widths)
    _mosaic(panels[0], np.asarray(query_images)[:, None])
    panels[0].set_title("query", loc="left")
    for axes, (name, (bank, indices)) in zip(
        panels[1:], results.items(), strict=True
    ):
        _mosaic(axes, np.asarray(bank)[indices])
        axes.set_title(name, loc="left")
        if query_labels is None or bank_labels is None:
            continue
        right = np.asarray(bank_labels)[indices] == np.reshape(
            query_labels, (-1, 1)
        )
        axes.set_xlabel(f"{right.sum()} of {right.size} of the query's class")
        for (y, x), same in np.ndenumerate(right):
            outline = Rectangle(
                (x + 0.05, y + 0.05),
                *(0.9, 0.9),
                fill=False,
                edgecolor=_RIGHT if same else _WRONG,
                lw=1.2 if same else 2.4,
            )
            axes.add_patch(outline)
    return figure


def _mosaic(axes: Axes, images: np.ndarray) -> None:
    """Draws `[rows, columns, H, W, 3]` images, each in a unit square."""
    rows, columns = images.shape[:2]
    for y in range(rows):
        for x in range(columns):
            extent = (x + 0.07, x + 0.93, y + 0.93, y + 0.07)
            axes.imshow(images[y, x], extent=extent, interpolation="nearest")
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)


def _legend(figure: Figure, colours: Mapping[str, str], marker: str) -> None:
    """Adds one legend for all panels: a line or a dot for each name."""
    from matplotlib.lines import Line2D

    style = {"lw": 2} if marker == "-" else {"ls": "", "marker": marker}
    handles = [
        Line2D([], [], color=colour, label=name, **style)
        for name, colour in colours.items()
    ]
    # About as many as fit: a character is a twelfth of an inch wide.
    width = 4 + max(map(len, colours))
    fit = max(int(12 * figure.get_figwidth() / width), 1)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), fit, 10),
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.2,
    )
