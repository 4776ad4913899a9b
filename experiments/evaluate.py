"""Tells how good encoders are, by their features and few or many labels.

    python -m experiments.evaluate --encoder=runs/teacher \\
        --encoder=runs/student --data_dir=labelled_photos

Prints a table; with --output also writes it as JSON and Markdown.
"""

import json
import os

from absl import flags

import seed_tf
from experiments import common
from seed_tf.evaluation import report

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "encoder",
    None,
    "A .keras file, run folder or published checkpoint; repeat it for several.",
)
flags.mark_flag_as_required("encoder")
flags.DEFINE_multi_enum(
    "protocol",
    ["knn", "linear"],
    ["knn", "linear"],
    "'knn': nearest neighbours by cosine. 'linear': a linear probe on features "
    "of centre crops (no views; standardised).",
)
flags.DEFINE_string(
    "dataset", "folder", "'folder' of class folders, 'digits' or a TFDS name."
)
flags.DEFINE_string("data_dir", None, "The folder, or where TFDS data lies.")
flags.DEFINE_string("train_split", "train", "Labelled images to learn from.")
flags.DEFINE_string("test_split", "test", "Labelled images to test on.")
flags.DEFINE_integer("image_size", 224, "Pixels of the centre crop.", 1)
flags.DEFINE_integer("batch_size", 64, "Images run at a time.", 1)
flags.DEFINE_integer("k", 10, "Neighbours that vote.", 1)
flags.DEFINE_float("learning_rate", 10.0, "Of the linear probe.", 0.0)
flags.DEFINE_integer("probe_epochs", 100, "Of the linear probe.", 1)
flags.DEFINE_string("output", None, "Folder for results.json and results.md.")


def load(split):
    """The split's centre crops, resized as 256 is to 224, with labels."""
    return seed_tf.datasets.load(
        FLAGS.dataset,
        split=split,
        data_dir=FLAGS.data_dir,
        image_size=FLAGS.image_size,
        resize=round(FLAGS.image_size * 8 / 7),
        batch_size=FLAGS.batch_size,
        shuffle=False,
        labels=True,
    )


def evaluate(name, train, test):
    encoder = seed_tf.checkpoints.load_teacher(name)
    row = {"encoder": name}
    for output in ("features", "embeddings"):
        bank = seed_tf.evaluation.embed(encoder, train, output=output)
        queries = seed_tf.evaluation.embed(encoder, test, output=output)
        if "knn" in FLAGS.protocol:
            accuracy = seed_tf.evaluation.knn(bank, queries, k=FLAGS.k)
            row[f"{FLAGS.k}-NN, {output}"] = round(100 * accuracy, 2)
        if "linear" in FLAGS.protocol and output == "features":
            probe = seed_tf.evaluation.linear_probe(
                bank,
                queries,
                learning_rate=FLAGS.learning_rate,
                epochs=FLAGS.probe_epochs,
                standardize=True,
            )
            row["linear probe"] = round(100 * probe.accuracy, 2)
    return row


def main(_):
    train, test = load(FLAGS.train_split), load(FLAGS.test_split)
    rows = []
    for name in FLAGS.encoder:
        print(f"Embedding with {name} ...", flush=True)
        rows.append(evaluate(name, train, test))
    columns = list(rows[0])
    print("\nTop-1 accuracy, %\n")
    print(report.table(rows, columns, fmt="text"))
    if FLAGS.output:
        os.makedirs(FLAGS.output, exist_ok=True)
        with open(os.path.join(FLAGS.output, "results.json"), "w") as f:
            json.dump(rows, f, indent=2)
        with open(os.path.join(FLAGS.output, "results.md"), "w") as f:
            f.write(report.table(rows, columns, fmt="markdown") + "\n")


if __name__ == "__main__":
    common.run(main)
