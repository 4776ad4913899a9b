"""The page of a run: what was trained, how it went, what it sees."""

import html

from seed_tf.evaluation import report
from seed_tf.training.callbacks import duration, read_lines

_CURVES = {
    "loss": "loss (nats)",
    "gap": "gap: KL to the target (nats)",
    "accuracy": "contrastive accuracy",
    "agreement": "neighbours shared with teacher",
    "knn": "k-NN top-1",
    "cosine": "cosine between the towers",
    "spread": "spread of embeddings",
    "teacher_neighbours": "neighbours in the target",
    "student_neighbours": "neighbours in student's softmax",
    "self_mass": "target's mass on the image",
    "queue_filled": "share of the queue filled",
    "gradient_norm": "gradient norm",
    "learning_rate": "learning rate",
    "images_per_second": "images per second",
    "waiting": "share of time waiting for data",
}


def write_run_report(folder, title, *, views=None, neighbours=None):
    """Writes `report.html` and `report.png` of a run, from what it logged.

    Args:
        folder: `RunFolder` with a `metrics.jsonl`.
        title: str.
        views: `[N, S, S, 3]` uint8, views as the network sees them, or None.
        neighbours: arguments of `report.neighbours`, or None.
    """
    lines = read_lines(folder.file("metrics.jsonl"))
    if not lines:
        return
    names = dict.fromkeys(name for line in lines for name in line)
    history = {name: [line.get(name) for line in lines] for name in names}
    drawn = {name: label for name, label in _CURVES.items() if name in history}
    curves = report.curves({title: history}, drawn, x="step", xlabel="step")
    curves.savefig(folder.file("report.png"))
    last, config = lines[-1], folder.read("config.json")
    sections = [
        (
            "State",
            f"Step {last['step']:,}, epoch {last['epoch']:.2f}, after "
            f"{duration(last['seconds'])} of training.",
            report.table(
                [
                    {"": label, "last": f"{_latest(history[name]):.4g}"}
                    for name, label in drawn.items()
                ],
                ["", "last"],
                fmt="html",
            ),
        ),
        ("Curves", "", curves),
    ]
    if views is not None:
        sections.append(
            (
                "Views",
                "Images as the network sees them, augmented.",
                report.mosaic(views),
            )
        )
    if neighbours is not None:
        sections.append(
            (
                "Nearest neighbours",
                "Images held out of training, and those most similar to them.",
                report.neighbours(*neighbours),
            )
        )
    settings = "\n".join(f"{name} = {value}" for name, value in config.items())
    sections.append(
        (
            "Settings",
            "",
            f"<pre style='white-space: pre-wrap'>{html.escape(settings)}</pre>",
        )
    )
    report.write_report(folder.file("report.html"), title, sections)


def _latest(values):
    return next(x for x in reversed(values) if x is not None)
