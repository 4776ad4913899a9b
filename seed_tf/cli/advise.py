"""Recommends a temperature and a queue size for your images.

    seed-tf advise --encoder=runs/teacher --data_dir=photos --output=advice

The teacher embeds a few thousand images, in views as in training. The command
prints the neighbours in the target by the teacher's temperature. With --output
it also writes them as JSON, picture and page.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING

import seed_tf
from seed_tf.cli.flags import Call, Command
from seed_tf.config import TEACHER_HELP, ViewsConfig, setting

if TYPE_CHECKING:
    from seed_tf.evaluation.advice import Advice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ViewsConfig):
    encoder: str = setting(None, TEACHER_HELP, required=True, path="read")
    max_images: int = setting(4096, "Images to read at most.", minimum=64)
    teacher_temperature: float = setting(
        0.01, "The temperature to judge: a warning says if it does not suit."
    )
    queue_size: int = setting(
        65536, "The queue size to judge, likewise.", minimum=1
    )
    output: str | None = setting(
        None,
        "Folder for advice.json, advice.png and report.html.",
        path="written",
    )


def rows(found: Advice) -> list[dict[str, str]]:
    """Returns the table of temperatures."""
    from seed_tf.evaluation import advice

    both = zip(found.measured, found.expected, strict=True)
    return [
        {
            "teacher temperature": f"{measured.temperature:g}",
            f"queue of {found.sample:,}": advice.about(measured.neighbours),
            f"of {found.queue_size:,}, about": advice.about(
                expected.neighbours
            ),
            "mass on itself": f"{expected.self_mass:.0%}",
            "": "one-hot"
            if expected.one_hot
            else "recommended"
            if expected.temperature == found.temperature
            else "",
        }
        for measured, expected in both
    ]


def words(found: Advice) -> list[str]:
    """Returns recommendation, reasons and warnings as paragraphs."""
    return [
        f"Recommended: --teacher_temperature={found.temperature:g} "
        f"--queue_size={found.queue_size}",
        *found.reasons,
        f"The numbers for a queue of {found.queue_size:,} are estimates, right "
        f"within a factor of {found.doubt:.1f}: the error when a quarter of "
        f"the {found.sample:,} embeddings predicts all. Only training shows "
        "the best temperature.",
        *(f"Warning: {warning}" for warning in found.warnings),
    ]


def write(found: Advice, settings: Settings) -> None:
    """Writes `advice.json`, `advice.png` and `report.html`."""
    from seed_tf.reporting import figures, pages, tables

    os.makedirs(settings.output, exist_ok=True)
    with open(os.path.join(settings.output, "advice.json"), "w") as f:
        json.dump(dataclasses.asdict(found), f, indent=2)
    figure = figures.target_curve(found)
    figure.savefig(os.path.join(settings.output, "advice.png"))
    table = rows(found)
    pages.write_page(
        os.path.join(settings.output, "report.html"),
        f"Advice for {settings.encoder}",
        [
            ("Advice", "\n\n".join(words(found))),
            (
                "Neighbours in the target",
                "exp(entropy) of the target, median of images.",
                figure,
                tables.table(table, list(table[0]), "html"),
            ),
        ],
    )


def run(call: Call[Settings]) -> None:
    from seed_tf import recipes
    from seed_tf.evaluation import advice
    from seed_tf.images import shorter_side
    from seed_tf.reporting import tables
    from seed_tf.teachers import load_encoder

    settings = call.settings
    teacher = load_encoder(settings.encoder, image_size=settings.image_size)
    views = recipes.build_views(settings)
    source = seed_tf.datasets.describe(
        settings.dataset,
        split=settings.split,
        data_dir=settings.data_dir,
        download=settings.download,
    ).source
    print(source.summary, flush=True)
    batches = seed_tf.datasets.load(
        source,
        split=settings.split,
        image_size=shorter_side(settings.image_size),
        batch_size=settings.batch_size,
        seed=settings.seed,
        views=views,
        drop_remainder=False,
        corrupt=seed_tf.datasets.CorruptFiles(settings.max_corrupt_fraction),
    )
    batches = batches.take(-(-settings.max_images // settings.batch_size))
    embeddings = advice.view_embeddings(
        teacher, batches, views, seed=settings.seed
    )[: settings.max_images]
    found = advice.advise(
        embeddings,
        images=source.size,
        temperature=settings.teacher_temperature,
        queue_size=settings.queue_size,
    )
    table = rows(found)
    print("Neighbours in the target, exp(entropy), median of images\n")
    print(tables.table(table, list(table[0])))
    print("", *words(found), sep="\n")
    if settings.output:
        write(found, settings)
        print(f"\nReport: {os.path.join(settings.output, 'report.html')}")


COMMAND = Command(Settings, run)
