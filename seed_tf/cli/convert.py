"""Converts published checkpoints to Keras, and back to PyTorch.

    seed-tf convert --encoder=moco_v2_800ep_pretrain.pth.tar \\
        --output=teacher.keras
    seed-tf convert --encoder=runs/student --to=torch --output=student.pth
    seed-tf convert --explain=mystery.pth --data_dir=photos

--explain writes nothing: it prints the content of a file, whether all of the
content fits, and how the network behaves. See docs/checkpoints.md.
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


STEMS = (
    *("imagenet", "cifar", "cifar_padding_2", "cifar_pool"),
    *("stride_2", "stride_2_pool"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    encoder: str | None = setting(
        None, "The file or run folder to convert.", path="read"
    )
    output: str | None = setting(None, "The file to write.", path="written")
    to: str = setting(
        "keras",
        "'torch' writes a state dict: in torchvision's layout for a ResNet, "
        "else in the layout of SEED's authors.",
        choices=("keras", "torch"),
    )
    explain: str | None = setting(None, "A file to explain.", path="read")
    source: str = setting(
        "auto",
        "Origin of the file; 'auto' recognises its keys. 'seed_teacher' takes "
        "the teacher from a file of SEED's authors.",
        choices=SOURCES,
    )
    branch: str | None = setting(
        None,
        "Which network of a file with several, such as teacher: part of the "
        "prefix of its keys.",
    )
    stem: str = setting(
        "auto",
        "How a ResNet begins, which a file does not record where its first "
        "convolution is 3x3. See docs/checkpoints.md.",
        choices=("auto", *STEMS),
    )
    mean: tuple[float, ...] | None = setting(
        None,
        "Mean of red, green and blue in [0, 1] that the network was trained "
        "with, which a file does not record. The default is ImageNet's; 0,0,0 "
        "with --std=1,1,1 is for images in [0, 1].",
    )
    std: tuple[float, ...] | None = setting(None, "As --mean.")
    head: bool = setting(
        True,
        "Keep the projection head, which a teacher needs. Without it, the "
        "encoder gives pooled features.",
    )
    data_dir: str | None = setting(
        None, "Folder of images for --explain to embed.", path="read"
    )
    image_size: int = setting(
        224, "Pixels of the images' centre crops.", minimum=32
    )


def run(call: Call[Settings]) -> None:
    from seed_tf.conversion import converting, explaining

    settings = call.settings
    names = ("source", "branch", "stem", "mean", "std")
    choices = {name: getattr(settings, name) for name in names}
    if settings.explain:
        for part in explaining.explain(
            settings.explain,
            images=settings.data_dir,
            image_size=settings.image_size,
            **choices,
        ):
            print(part + "\n", flush=True)
    elif settings.encoder and settings.output:
        print(
            converting.convert(
                settings.encoder,
                settings.output,
                to=settings.to,
                head=settings.head,
                **choices,
            )
        )
        size = os.path.getsize(settings.output)
        print(f"\nWrote {settings.output} ({size:,} bytes).")
    else:
        raise ValueError(
            "Expected --encoder and --output, or --explain. Try --help."
        )


COMMAND = Command(Settings, run)
