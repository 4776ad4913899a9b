"""Flags and set-up that the training launchers share."""

import os
import sys

import keras
from absl import app, flags, logging

import seed_tf

FLAGS = flags.FLAGS


def swav_small_patches(size, *, flip=True):
    """One view and six small ones of each image, 96 pixels where it has 224."""
    return seed_tf.views.multi_crop(
        seed_tf.views.swav(size, flip=flip),
        seed_tf.views.small_patches(round(size * 96 / 224), flip=flip),
    )


VIEWS = {
    "moco_v1": seed_tf.views.moco_v1,
    "moco_v2": seed_tf.views.moco_v2,
    "simclr": seed_tf.views.simclr,
    "swav": seed_tf.views.swav,
    "swav_small_patches": swav_small_patches,
}


def run(main):
    """absl's app.run, with bad input told in a line instead of a traceback."""

    def guarded(argv):
        try:
            main(argv)
        except (ValueError, FloatingPointError, OSError) as error:
            logging.debug("", exc_info=True)  # shown with --verbosity=1
            sys.exit(f"Error: {error}")

    app.run(guarded)


def define_training_flags():
    """Data, recipe and output; defaults are the paper's."""
    flags.DEFINE_string(
        "dataset",
        "folder",
        "Images to train on, without labels: 'folder', 'tsv', 'digits' "
        "(embedded, to try things out) or a TensorFlow Datasets name.",
    )
    flags.DEFINE_string(
        "data_dir", None, "The folder, the TSV file, or where TFDS data lies."
    )
    flags.DEFINE_string("split", "train", "Split of the dataset to train on.")
    flags.DEFINE_string("output", None, "Folder for all that the run leaves.")
    flags.mark_flag_as_required("output")
    flags.DEFINE_integer("image_size", 224, "Pixels of a view.", 1)
    flags.DEFINE_enum(
        "views", "moco_v2", sorted(VIEWS), "Augmentation; match the teacher's."
    )
    flags.DEFINE_boolean("flip", True, "Whether views may be mirrored.")
    flags.DEFINE_enum(
        "stem",
        "imagenet",
        ["imagenet", "cifar"],
        "'cifar' keeps the first layers at full size, for images of 64 pixels "
        "and less.",
    )
    flags.DEFINE_integer("batch_size", 256, "Images per step.", 1)
    flags.DEFINE_integer("epochs", 200, "Passes over the data.", 1)
    flags.DEFINE_integer("queue_size", 65536, "Embeddings in the queue.", 1)
    flags.DEFINE_float(
        "learning_rate", 0.03, "Peak rate per 256 images; scaled linearly.", 0.0
    )
    flags.DEFINE_float("warmup_epochs", 5, "Epochs of linear warm-up.", 0.0)
    flags.DEFINE_float("weight_decay", 1e-4, "Coupled, on every weight.", 0.0)
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["float32", "mixed_bfloat16", "mixed_float16"],
        "Arithmetic of the networks; losses are float32 always.",
    )
    flags.DEFINE_integer("seed", 0, "Start, order of images and views.")


def begin():
    """Seeds and precision, then the data: (dataset, views)."""
    keras.utils.set_random_seed(FLAGS.seed)
    keras.mixed_precision.set_global_policy(FLAGS.precision)
    dataset = seed_tf.datasets.load(
        FLAGS.dataset,
        split=FLAGS.split,
        data_dir=FLAGS.data_dir,
        # Room for the views to crop from, as 256 is to 224.
        image_size=round(FLAGS.image_size * 8 / 7),
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
    )
    views = VIEWS[FLAGS.views](FLAGS.image_size, flip=FLAGS.flip)
    return dataset, views


def train(model, encoder, dataset):
    """Compiles by the flags' recipe, trains, and says what was written."""
    schedule = seed_tf.training.warmup_cosine(
        batch_size=FLAGS.batch_size,
        steps_per_epoch=int(dataset.cardinality()),
        epochs=FLAGS.epochs,
        warmup_epochs=min(FLAGS.warmup_epochs, FLAGS.epochs / 2),
        rate_per_256=FLAGS.learning_rate,
    )
    model.compile(
        seed_tf.training.SGD(schedule, weight_decay=FLAGS.weight_decay)
    )
    path = seed_tf.training.train(
        model,
        dataset,
        encoder=encoder,
        epochs=FLAGS.epochs,
        batch_size=FLAGS.batch_size,
        output=FLAGS.output,
        config={
            "launcher": os.path.basename(sys.argv[0]).removesuffix(".py"),
            **{
                flag.name: flag.value
                for flag in FLAGS.get_key_flags_for_module("__main__")
            },
        },
    )
    print(f"Trained encoder: {path}")
