"""Tells how good encoders are as the backbones of object detectors.

    python -m experiments.detect --encoder=runs/student \\
        --encoder=untrained:resnet18 --dataset=voc/2007 \\
        --train_split=train+validation --test_split=test --output=results

Each is fine-tuned in a KerasCV RetinaNet and judged by COCO's metrics; prints
a table, with --output also writes it, and pictures, into a folder `detection`
there. See docs/detection.md.
"""

import functools
import os

import tensorflow as tf
from absl import flags

from seed_tf import detection
from seed_tf.detection.synthetic_detection import synthetic_detection
from seed_tf.evaluation.protocols import load_encoder

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "encoder",
    None,
    "A .keras file, run folder or published checkpoint, or a random network: "
    "'untrained:resnet18'; repeat it for several.",
)
flags.mark_flag_as_required("encoder")
flags.DEFINE_string(
    "dataset",
    "synthetic_detection",
    "A TFDS name with boxes, 'voc/2007', 'coco/2017', or "
    "'synthetic_detection': digits on black squares, made on the spot.",
)
flags.DEFINE_string("data_dir", None, "Where the TFDS data lies.")
flags.DEFINE_boolean("download", False, "Download and prepare the data.")
flags.DEFINE_string("train_split", "train", "To fine-tune on.")
flags.DEFINE_string(
    "test_split", "test", "To test on; of COCO 'validation' has labels."
)
flags.DEFINE_integer("image_size", 512, "Pixels, a multiple of 32.", 32)
flags.DEFINE_float(
    "smallest_anchor", 32.0, "Pixels; objects much smaller are not found.", 1.0
)
flags.DEFINE_integer("steps", 10_000, "Of fine-tuning.", 1)
flags.DEFINE_integer("batch_size", 16, "Images per step.", 2)
flags.DEFINE_float(
    "learning_rate", 0.01, "Peak per 16 images; scaled linearly.", 0.0
)
flags.DEFINE_boolean(
    "frozen_norm",
    True,
    "Keep the BatchNorm layers of the backbones as they are. An untrained "
    "network's always learn.",
)
flags.DEFINE_boolean(
    "flip", True, "Mirror images; never those of 'synthetic_detection'."
)
flags.DEFINE_integer("seeds", 1, "Detectors of each encoder.", 1)
flags.DEFINE_string(
    "output",
    None,
    "Folder for detection/: results.json, .csv, .md, .png and detections.png.",
)


def data():
    """Training and test images with boxes, and the classes' names."""
    if FLAGS.dataset == "synthetic_detection":
        train, test = (
            tf.data.Dataset.from_tensor_slices(
                synthetic_detection(split, size, image_size=FLAGS.image_size)
            )
            for split, size in (("train", 512), ("test", 200))
        )
        return train, test, [str(digit) for digit in range(10)]
    (train, names), (test, _) = (
        detection.load_boxes(
            FLAGS.dataset,
            split,
            data_dir=FLAGS.data_dir,
            image_size=FLAGS.image_size,
            download=FLAGS.download,
        )
        for split in (FLAGS.train_split, FLAGS.test_split)
    )
    return train, test, names


def main(_):
    detection.import_pycocotools()  # before any download or training
    train, test, names = data()
    encoders = {name: load_encoder(name) for name in FLAGS.encoder}
    for encoder in encoders.values():
        detection.Pyramid(getattr(encoder, "backbone", encoder))
    trained = [x for x in encoders if not x.startswith("untrained:")]

    def start(name, seed):
        return encoders[name] if name in trained else load_encoder(name, seed)

    scores, images, drawn = detection.compare(
        {name: functools.partial(start, name) for name in encoders},
        train,
        test,
        num_classes=len(names),
        seeds=range(FLAGS.seeds),
        frozen_norm=trained if FLAGS.frozen_norm else (),
        smallest_anchor=FLAGS.smallest_anchor,
        steps=FLAGS.steps,
        batch_size=FLAGS.batch_size,
        learning_rate=FLAGS.learning_rate,
        flip=FLAGS.flip and FLAGS.dataset != "synthetic_detection",
        tell=lambda text: print(text, flush=True),
    )
    if FLAGS.output:
        # Not among the files of evaluate, which have the same names.
        folder = os.path.join(FLAGS.output, "detection")
        detection.write_results(folder, scores, images, drawn, names=names)
    print(f"\nCOCO's average precision, %\n\n{detection.table(scores)}")
