"""Tells how good encoders are, by their features and few or many labels.

    python -m experiments.evaluate --encoder=runs/teacher \\
        --encoder=runs/student --data_dir=labelled_photos \\
        --protocol=knn,linear --output=results

Prints a table; with --output also writes it as JSON, CSV, Markdown and a
figure. See docs/evaluation.md for what the protocols are.
"""

import os
import shlex

from absl import flags

from seed_tf.evaluation import protocols, transfer
from seed_tf.evaluation.labelled_images import LabelledImages

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "encoder",
    None,
    "A .keras file, run folder or published checkpoint, or a random network: "
    "'untrained:resnet18', 'untrained:resnet18:cifar'; repeat it for several.",
)
flags.mark_flag_as_required("encoder")
flags.DEFINE_list(
    "protocol",
    ["knn", "linear"],
    f"Among {', '.join(protocols.PROTOCOLS)}, separated by commas. 'linear' "
    "and 'ridge' are on features of centre crops; 'linear_views' is the "
    "paper's probe to the letter. Detection is experiments.detect.",
)
flags.DEFINE_string(
    "dataset", "folder", "'folder' of class folders, 'digits' or a TFDS name."
)
flags.DEFINE_string("data_dir", None, "The folder, or where TFDS data lies.")
flags.DEFINE_boolean(
    "download", False, "Download and prepare a TensorFlow Dataset."
)
flags.DEFINE_string(
    "train_split",
    None,
    "Labelled images to learn from; by default the data set's usual ones, "
    "'train' where none are known.",
)
flags.DEFINE_string("test_split", None, "Labelled images to test on; likewise.")
flags.DEFINE_enum(
    "metric",
    None,
    ["top-1", "mean per class"],
    "Of 'transfer'; by default the one usual for the data set.",
)
flags.DEFINE_integer("image_size", 224, "Pixels of the centre crop.", 1)
flags.DEFINE_integer("batch_size", 64, "Images embedded at a time.", 1)
flags.DEFINE_list("k", ["10"], "Neighbours that vote, and k of recall@k.")
flags.DEFINE_list(
    "learning_rate",
    None,
    "Of linear probes. Of several, '1,3,10,30', the best on a tenth of the "
    "training set is taken. By default 10; of 'linear_views' the paper's, 30, "
    "or 3 for EfficientNet and MobileNet.",
)
flags.DEFINE_alias("lr", "learning_rate")
flags.DEFINE_integer("probe_epochs", 100, "Of linear probes.", 1)
flags.DEFINE_list(
    "label_fraction",
    ["1"],
    "Shares of every class to fine-tune on: '0.01,0.1'.",
)
flags.DEFINE_string(
    "label_list",
    None,
    "A file of image names, one per line, to fine-tune on: SimCLR's "
    "1percent.txt, 10percent.txt.",
)
flags.DEFINE_float(
    "fine_tune_learning_rate", 0.05, "Per 256 images; scaled linearly.", 0.0
)
flags.DEFINE_integer(
    "fine_tune_epochs",
    None,
    "By default 60 with 1 % of the labels, 30 with more.",
    1,
)
flags.DEFINE_integer("fine_tune_batch_size", 256, "Images per step.", 1)
flags.DEFINE_integer("seeds", 1, "Runs of protocols that are random.", 1)
flags.DEFINE_string(
    "cache_dir",
    None,
    "Folder for features, which a later call then finds; by default 'features' "
    "in --output.",
)
flags.DEFINE_string(
    "output",
    None,
    "Folder for results.json, .csv, .md, .png. Results on the same data that "
    "are there already stay, and stand in one table with the new ones.",
)


def numbers(flag, kind):
    """The values of a list flag, None if it has none."""
    if FLAGS[flag].value is None:
        return None
    try:
        return tuple(map(kind, FLAGS[flag].value))
    except ValueError:
        raise ValueError(
            f"--{flag} must be numbers, separated by commas. "
            f"Received: {','.join(FLAGS[flag].value)}."
        ) from None


def task():
    """What the flags say is to be done."""
    usual = transfer.convention(FLAGS.dataset)
    train, test = (
        LabelledImages(
            FLAGS.dataset,
            split,
            FLAGS.data_dir,
            FLAGS.image_size,
            FLAGS.batch_size,
            FLAGS.download,
        )
        for split in (
            FLAGS.train_split or usual.train,
            FLAGS.test_split or usual.test,
        )
    )
    cache = FLAGS.cache_dir
    if cache is None and FLAGS.output:
        cache = os.path.join(FLAGS.output, "features")
    return protocols.Task(
        train,
        test,
        metric=FLAGS.metric or usual.metric,
        ks=numbers("k", int),
        learning_rates=numbers("learning_rate", float),
        probe_epochs=FLAGS.probe_epochs,
        label_fractions=numbers("label_fraction", float),
        label_list=FLAGS.label_list,
        fine_tune_rate=FLAGS.fine_tune_learning_rate,
        fine_tune_epochs=FLAGS.fine_tune_epochs,
        fine_tune_batch_size=FLAGS.fine_tune_batch_size,
        cache_dir=cache,
        tell=lambda text: print(text, flush=True),
    )


def detect_command():
    """What to give in place of `--protocol=detection`."""
    shared = ("dataset", "data_dir", "train_split", "test_split", "seeds")
    given = [("encoder", name) for name in FLAGS.encoder]
    given += [
        (name, FLAGS[name].value)
        for name in (*shared, "output")
        if FLAGS[name].present
    ]
    return shlex.join(
        ["python", "-m", "experiments.detect"]
        + [f"--{name}={value}" for name, value in given]
    )


def main(_):
    if "detection" in FLAGS.protocol:
        raise ValueError(
            "Detection needs boxes instead of labels, and has a launcher of "
            f"its own, see docs/detection.md:\n  {detect_command()}"
        )
    work = task()
    if FLAGS.output:  # which may hold other results
        earlier = protocols.Results.read(FLAGS.output, work.data)
    results = protocols.evaluate(
        FLAGS.encoder, FLAGS.protocol, work, seeds=FLAGS.seeds
    )
    if FLAGS.output:
        results = results.beside(earlier)
        results.write(FLAGS.output)
    print(f"\n%, top-1 accuracy unless named otherwise\n\n{results.table()}")
