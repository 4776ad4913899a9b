"""Fine-tunes encoders as backbones of object detectors.

    seed-tf detect --encoder=runs/student --encoder=untrained:resnet18 \\
        --dataset=voc/2007 --train_split=train+validation --test_split=test \\
        --output=results

The command fine-tunes each encoder in a KerasCV RetinaNet, and prints a table
of COCO's metrics. With --output it also writes table and pictures into the
folder `detection` there. See docs/detection.md.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from typing import TYPE_CHECKING

from seed_tf.cli.flags import Call, Command, repeated
from seed_tf.config import setting

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    encoder: tuple[str, ...] = repeated(
        (),
        "A .keras file, run folder or published checkpoint, or a random "
        "network: 'untrained:resnet18'.",
        required=True,
        path="read",
    )
    dataset: str = setting(
        "synthetic_detection",
        "A TFDS name with boxes, 'voc/2007', 'coco/2017'; 'folder' for "
        "--data_dir of images with boxes in COCO's JSON or Pascal VOC's XML; "
        "or 'synthetic_detection': generated digits on black squares.",
    )
    data_dir: str | None = setting(
        None, "Where the TFDS data or the images lie.", path="read"
    )
    download: bool = setting(False, "Download and prepare the data.")
    train_split: str = setting("train", "To fine-tune on.")
    test_split: str = setting(
        "test", "To test on; COCO has labels for 'validation'."
    )
    image_size: int = setting(512, "Pixels, a multiple of 32.", minimum=32)
    smallest_anchor: float = setting(
        32.0, "Pixels; objects much smaller are not found.", minimum=1.0
    )
    steps: int = setting(10_000, "Steps of fine-tuning.", minimum=1)
    batch_size: int = setting(16, "Images per step.", minimum=2)
    learning_rate: float = setting(
        0.01, "Peak per 16 images; scaled linearly.", minimum=0.0
    )
    frozen_norm: bool = setting(
        True,
        "Freeze the BatchNorm layers of trained backbones. Untrained backbones "
        "always learn them.",
    )
    flip: bool = setting(
        True, "Mirror images; never those of 'synthetic_detection'."
    )
    seeds: int = setting(1, "Detectors of each encoder.", minimum=1)
    output: str | None = setting(
        None,
        "Folder for detection/: results.json, .csv, .md, .png, "
        "detections.png, the trained detectors as .keras and classes.json.",
        path="written",
    )


def data(
    settings: Settings,
) -> tuple[tf.data.Dataset, tf.data.Dataset, list[str]]:
    """Loads training and test images with boxes, and names of classes."""
    import tensorflow as tf

    from seed_tf import detection
    from seed_tf.detection.synthetic_detection import synthetic_detection

    if settings.dataset == "synthetic_detection":
        train, test = (
            tf.data.Dataset.from_tensor_slices(
                synthetic_detection(split, size, image_size=settings.image_size)
            )
            for split, size in (("train", 512), ("test", 200))
        )
        return train, test, [str(digit) for digit in range(10)]
    if settings.dataset == "folder":
        if not settings.data_dir:
            raise ValueError("--dataset=folder needs --data_dir.")
        (train, test), names = detection.load_box_files(
            settings.data_dir,
            [settings.train_split, settings.test_split],
            image_size=settings.image_size,
        )
        return train, test, names
    (train, names), (test, _) = (
        detection.load_boxes(
            settings.dataset,
            split,
            data_dir=settings.data_dir,
            image_size=settings.image_size,
            download=settings.download,
        )
        for split in (settings.train_split, settings.test_split)
    )
    return train, test, names


def run(call: Call[Settings]) -> None:
    from seed_tf import detection
    from seed_tf.evaluation.protocols import load_encoder
    from seed_tf.io.files import atomic_write, write_json

    settings = call.settings
    detection.import_pycocotools()  # before any download or training
    train, test, names = data(settings)
    encoders = {name: load_encoder(name) for name in settings.encoder}
    for encoder in encoders.values():
        detection.Pyramid(getattr(encoder, "backbone", encoder))
    trained = [x for x in encoders if not x.startswith("untrained:")]

    def start(name, seed):
        return encoders[name] if name in trained else load_encoder(name, seed)

    folder = settings.output and os.path.join(settings.output, "detection")

    def save(name, seed, model):
        stem = os.path.basename(os.path.normpath(name)).removesuffix(".keras")
        stem = re.sub(r"[^\w.-]+", "_", stem)
        number = settings.encoder.index(name)
        path = os.path.join(folder, f"{number}_{stem}_seed{seed}.keras")
        os.makedirs(folder, exist_ok=True)
        with atomic_write(path) as unfinished:
            model.save(unfinished)

    scores, images, drawn = detection.compare(
        {name: functools.partial(start, name) for name in encoders},
        train,
        test,
        num_classes=len(names),
        seeds=range(settings.seeds),
        frozen_norm=trained if settings.frozen_norm else (),
        smallest_anchor=settings.smallest_anchor,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        flip=settings.flip and settings.dataset != "synthetic_detection",
        save=save if folder else None,
        log=lambda text: print(text, flush=True),
    )
    if folder:  # the files of `evaluate` have the same names
        write_json(os.path.join(folder, "classes.json"), names)
        detection.write_results(folder, scores, images, drawn, names=names)
    print(f"\nCOCO's average precision, %\n\n{detection.table(scores)}")


COMMAND = Command(Settings, run)
