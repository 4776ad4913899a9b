"""Converts published checkpoints to Keras, and back to PyTorch.

    seed-tf convert --encoder=moco_v2_800ep_pretrain.pth.tar \\
        --output=teacher.keras
    seed-tf convert --encoder=runs/student --to=torch --output=student.pth
    seed-tf convert --explain=mystery.pth --data_dir=photos

--explain writes nothing: it prints what a file holds, whether all of it fits,
and how the network behaves. docs/checkpoints.md lists the known formats.
"""

from __future__ import annotations

import dataclasses
import os

from seed_tf.cli.flags import Call, Command
from seed_tf.config import setting

SOURCES = (
    *("auto", "keras", "moco_v1", "moco_v2", "seed", "seed_teacher"),
    *("deepcluster_v2", "swav", "simclr", "simclr_tf", "torchvision"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    encoder: str | None = setting(None, "The file or run folder to convert.")
    output: str | None = setting(None, "The file to write.")
    to: str = setting(
        "keras",
        "'torch' writes a state dict: torchvision's layout of a ResNet, the "
        "authors' of the others.",
        choices=("keras", "torch"),
    )
    explain: str | None = setting(None, "A file to explain.")
    source: str = setting(
        "auto",
        "Origin of the file; by default its keys show it. 'seed_teacher' takes "
        "the teacher out of a file of the authors.",
        choices=SOURCES,
    )
    head: bool = setting(
        True,
        "Keep the projection head. Teachers need theirs; --nohead gives pooled "
        "features.",
    )
    data_dir: str | None = setting(
        None, "Folder of images for --explain to embed."
    )
    image_size: int = setting(224, "Pixels of their centre crops.", minimum=32)


def run(call: Call[Settings]) -> None:
    from seed_tf.conversion import converting, explaining

    settings = call.settings
    if settings.explain:
        for part in explaining.explain(
            settings.explain,
            source=settings.source,
            images=settings.data_dir,
            image_size=settings.image_size,
        ):
            print(part + "\n", flush=True)
    elif settings.encoder and settings.output:
        print(
            converting.convert(
                settings.encoder,
                settings.output,
                to=settings.to,
                source=settings.source,
                head=settings.head,
            )
        )
        size = os.path.getsize(settings.output)
        print(f"\nWrote {settings.output} ({size:,} bytes).")
    else:
        raise ValueError(
            "Expected --encoder and --output, or --explain. Try --help."
        )


COMMAND = Command(Settings, run)
