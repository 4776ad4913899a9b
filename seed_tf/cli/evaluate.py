"""Measures the features of encoders: k-NN, probes, fine-tuning.

    seed-tf evaluate --encoder=runs/teacher --encoder=runs/student \\
        --data_dir=labelled_photos --protocol=knn,linear --output=results

The command prints a table. With --output it also writes the table as JSON, CSV,
Markdown and a figure. docs/evaluation.md explains the protocols.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from typing import TYPE_CHECKING

from seed_tf.cli.flags import Call, Command, repeated
from seed_tf.config import setting

if TYPE_CHECKING:
    from seed_tf.evaluation.config import EvaluationConfig

PROTOCOLS = (
    *("knn", "linear", "linear_views", "ridge", "fine_tune", "transfer"),
    *("retrieval", "detection"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    encoder: tuple[str, ...] = repeated(
        (),
        "A .keras file, run folder or published checkpoint, or a random "
        "network: 'untrained:resnet18', 'untrained:resnet18:cifar'.",
        required=True,
        path="read",
    )
    protocol: tuple[str, ...] = setting(
        ("knn", "linear"),
        "Protocols. 'linear' and 'ridge' use features of centre crops; "
        "'linear_views' is the paper's probe with its augmentation. For "
        "detection see seed-tf detect.",
        choices=PROTOCOLS,
    )
    dataset: str = setting(
        "folder", "'folder' of class folders, 'digits' or a TFDS name."
    )
    data_dir: str | None = setting(
        None, "The folder, or where TFDS data lies.", path="read"
    )
    download: bool = setting(
        False, "Download and prepare a TensorFlow Dataset."
    )
    max_corrupt_fraction: float = setting(
        0.01,
        "Share of unreadable images above which the command stops.",
        minimum=0.0,
        maximum=1.0,
    )
    train_split: str | None = setting(
        None,
        "Labelled images to learn from. The default is the data set's usual "
        "split, 'train' if none is known.",
    )
    test_split: str | None = setting(
        None, "Labelled images to test on; likewise."
    )
    metric: str | None = setting(
        None,
        "Metric of 'transfer'. The default is the usual one of the data set.",
        choices=("top-1", "mean per class"),
    )
    image_size: int | None = setting(
        None,
        "Pixels of the centre crop. The default is the size that the encoders "
        "were trained at.",
        minimum=1,
    )
    batch_size: int = setting(64, "Images embedded at a time.", minimum=1)
    k: tuple[int, ...] = setting(
        (10,), "Neighbours that vote, and k of recall@k."
    )
    learning_rate: tuple[float, ...] | None = setting(
        None,
        "Learning rates of linear probes. A tenth of the training set chooses "
        "among several, '1,3,10,30'. The default is 10; for 'linear_views' it "
        "is the paper's: 30, or 3 for EfficientNet and MobileNet.",
    )
    probe_epochs: int = setting(100, "Epochs of linear probes.", minimum=1)
    label_fraction: tuple[float, ...] = setting(
        (1.0,), "Shares of every class to fine-tune on: '0.01,0.1'."
    )
    label_list: str | None = setting(
        None,
        "A file of image names, one per line, to fine-tune on: SimCLR's "
        "1percent.txt, 10percent.txt.",
        path="read",
    )
    fine_tune_learning_rate: float = setting(
        0.05, "Per 256 images; scaled linearly.", minimum=0.0
    )
    fine_tune_epochs: int | None = setting(
        None,
        "The default is 60 with 1 % of the labels, 30 with more.",
        minimum=1,
    )
    fine_tune_batch_size: int = setting(256, "Images per step.", minimum=1)
    seeds: int = setting(1, "Runs of protocols that are random.", minimum=1)
    cache_dir: str | None = setting(
        None,
        "Folder for features, which a later call reads. The default is "
        "'features' in --output.",
        path="written",
    )
    output: str | None = setting(
        None,
        "Folder for results.json, .csv, .md, .png. Earlier results on the same "
        "data stay in the table.",
        path="written",
    )


def evaluation_config(settings: Settings, image_size: int) -> EvaluationConfig:
    """Makes the `EvaluationConfig` of the settings."""
    from seed_tf.evaluation import protocols, transfer
    from seed_tf.evaluation.labelled_images import LabelledImages

    usual = transfer.convention(settings.dataset)
    train, test = (
        LabelledImages(
            settings.dataset,
            split,
            settings.data_dir,
            image_size,
            settings.batch_size,
            settings.download,
            settings.max_corrupt_fraction,
        )
        for split in (
            settings.train_split or usual.train,
            settings.test_split or usual.test,
        )
    )
    cache = settings.cache_dir
    if cache is None and settings.output:
        cache = os.path.join(settings.output, "features")
    return protocols.EvaluationConfig(
        train,
        test,
        metric=settings.metric or usual.metric,
        ks=settings.k,
        learning_rates=settings.learning_rate,
        probe_epochs=settings.probe_epochs,
        label_fractions=settings.label_fraction,
        label_list=settings.label_list,
        fine_tune_rate=settings.fine_tune_learning_rate,
        fine_tune_epochs=settings.fine_tune_epochs,
        fine_tune_batch_size=settings.fine_tune_batch_size,
        cache_dir=cache,
        log=lambda text: print(text, flush=True),
    )


def detect_command(call: Call[Settings]) -> str:
    """Returns the command that replaces `--protocol=detection`."""
    names = (
        *("encoder", "dataset", "data_dir", "train_split", "test_split"),
        *("seeds", "output"),
    )
    given = [text for name in names for text in call.flags.get(name, ())]
    return shlex.join(["seed-tf", "detect", *given])


def run(call: Call[Settings]) -> None:
    from seed_tf.evaluation import protocols

    settings = call.settings
    if "detection" in settings.protocol:
        raise ValueError(
            "Detection needs boxes instead of labels, and has its own command, "
            f"see docs/detection.md:\n  {detect_command(call)}"
        )
    encoders = {name: protocols.load_encoder(name) for name in settings.encoder}
    size = settings.image_size
    if size is None:
        size, reason = protocols.common_image_size(encoders)
        print(f"Images of {size} pixels: {reason}.", flush=True)
    work = evaluation_config(settings, size)
    if settings.output:  # may hold earlier results
        earlier = protocols.Results.read(settings.output, work.data)
    results = protocols.evaluate(
        encoders, settings.protocol, work, seeds=settings.seeds
    )
    if settings.output:
        results = results.beside(earlier)
        results.write(settings.output)
    print(f"\n%, top-1 accuracy unless named otherwise\n\n{results.table()}")


COMMAND = Command(Settings, run, aliases={"split": "train_split"})
