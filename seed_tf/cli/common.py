"""Flags and set-up that the training launchers share."""

import dataclasses
import functools
import os
import shlex
import sys

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import seed_tf
from seed_tf import recipes
from seed_tf.cli.data import KNN_IMAGES, Data
from seed_tf.evaluation.monitor import HeldOut, LabelledKNN
from seed_tf.reporting import tables
from seed_tf.training import devices

FLAGS = flags.FLAGS

# Flags in which the same run may differ from one start to the next.
MAY_DIFFER = (
    "command",
    "output",
    "overwrite",
    "dry_run",
    "download",
    "max_corrupt_fraction",
    "checkpoint_minutes",
)


def run(main):
    """absl's app.run, with bad input told in a line instead of a traceback."""

    def guarded(argv):
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # TensorFlow raises it
            tf.get_logger().setLevel("WARNING")
        try:
            main(argv)
        except seed_tf.training.Stopped as stop:
            print(f"{stop} The same command goes on:\n  {command()}")
            sys.exit(128 + stop.signal)
        except KeyboardInterrupt:
            sys.exit(130)
        except (ValueError, FloatingPointError, OSError) as error:
            logging.debug("", exc_info=True)  # shown with --verbosity=1
            sys.exit(f"Error: {error}")
        except tf.errors.OpError as error:
            if not devices.worker_lost(error):
                raise
            restart(error)

    app.run(guarded)


def launcher():
    return os.path.basename(sys.argv[0]).removesuffix(".py")


def command():
    """The command line that started this process, to paste into a shell."""
    module = f"experiments.{launcher()}"
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def restart(error):
    """Starts this process anew: it waits for the lost worker, and goes on."""
    logging.warning("Another worker is gone (%s): starting anew.", error)
    arguments = [x for x in sys.argv[1:] if x.lstrip("-") != "overwrite"]
    module = f"experiments.{launcher()}"
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def define_view_flags():
    """Unlabelled images, and how they are augmented."""
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
    flags.DEFINE_boolean(
        "download", False, "Download and prepare a TensorFlow Dataset."
    )
    flags.DEFINE_float(
        "max_corrupt_fraction",
        0.01,
        "Share of unreadable images above which the run stops.",
        0.0,
        1.0,
    )
    flags.DEFINE_integer("image_size", 224, "Pixels of a view.", 1)
    flags.DEFINE_enum(
        "views",
        "moco_v2",
        sorted(recipes.VIEWS),
        "Augmentation; match the teacher's.",
    )
    flags.DEFINE_boolean("flip", True, "Whether views may be mirrored.")
    flags.DEFINE_integer("batch_size", 256, "Images per step.", 1)
    flags.DEFINE_integer("seed", 0, "Start, order of images and views.")


def define_training_flags():
    """Data, recipe and output; defaults are the paper's."""
    flags.DEFINE_string(
        "recipe",
        None,
        "An experiment of the paper, whose settings the other flags override; "
        "'list' prints all, with the paper's numbers. See docs/recipes.md.",
    )
    define_view_flags()
    flags.DEFINE_integer(
        "held_out",
        None,
        "Images kept from training, to compare neighbours on; by default "
        "1,000, but at most a twentieth of all.",
        0,
    )
    flags.DEFINE_enum(
        "stem",
        "imagenet",
        ["imagenet", "cifar"],
        "'cifar' keeps the first layers at full size, for images of 64 pixels "
        "and less.",
    )
    flags.DEFINE_integer("epochs", 200, "Passes over the data.", 1)
    flags.DEFINE_integer("queue_size", 65536, "Embeddings in the queue.", 1)
    flags.DEFINE_float(
        "learning_rate", 0.03, "Peak rate per 256 images; scaled linearly.", 0.0
    )
    flags.DEFINE_float("warmup_epochs", 5, "Epochs of linear warm-up.", 0.0)
    flags.DEFINE_float("weight_decay", 1e-4, "Coupled, on every weight.", 0.0)
    flags.DEFINE_enum(
        "precision",
        "auto",
        ["auto", "float32", "mixed_bfloat16", "mixed_float16"],
        "Arithmetic of the trained network, by default the fastest here; "
        "weights and losses are float32 always.",
    )
    flags.DEFINE_string("output", None, "Folder for all that the run leaves.")
    require("output")
    flags.DEFINE_boolean(
        "overwrite", False, "Remove the run in --output and start anew."
    )
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "Build everything, count operations and memory, run five steps if they "
        "fit, tell what the whole run takes, and leave nothing behind.",
    )
    flags.DEFINE_float(
        "checkpoint_minutes", 10, "From one checkpoint to the next.", 0.0
    )
    flags.DEFINE_integer(
        "knn_every",
        0,
        "Epochs from one k-NN evaluation on labelled images to the next; 0 "
        "for none.",
        0,
    )
    flags.DEFINE_string(
        "knn_data_dir", None, "Labelled images; by default --data_dir."
    )
    flags.DEFINE_list(
        "knn_splits",
        ["train", "test"],
        "Labelled splits, to vote and to be classified; of each at most "
        f"{KNN_IMAGES:,} images are taken.",
    )
    flags.DEFINE_integer(
        "patience",
        0,
        "Evaluations (of k-NN, or else of agreement with the teacher) without "
        "a new best after which training stops; 0 for never.",
        0,
    )
    flags.DEFINE_enum(
        "strategy",
        "auto",
        ["auto", "one", "mirrored", "multiworker", "tpu"],
        "Devices: 'one', all GPUs of this host, several hosts by TF_CONFIG, "
        "or a TPU; 'auto' takes what is there.",
    )
    flags.DEFINE_string("tpu", None, "Name or address of a TPU.")
    flags.DEFINE_boolean(
        "sync_batch_norm",
        False,
        "Statistics of BatchNorm over all replicas; the paper's are of each.",
    )
    flags.DEFINE_boolean(
        "jit",
        None,
        "Compile the step by XLA; by default on a single GPU and on TPUs. On "
        "CPUs it is slower.",
    )


def require(name):
    """Makes a flag required, but not to list the recipes."""
    flags.register_multi_flags_validator(
        [name, "recipe"],
        lambda given: given["recipe"] == "list" or given[name] is not None,
        f"Flag --{name} must have a value other than None.",
    )


def use_recipe():
    """Sets flags that were not given to what `--recipe` says.

    With `--recipe=list` it prints all of them and ends the process.

    Raises:
        ValueError: if there is no such recipe, or it is another launcher's.
    """
    if FLAGS.recipe is None:
        return
    if FLAGS.recipe == "list":
        print(list_recipes())
        sys.exit()
    named = recipes.get(FLAGS.recipe)
    if named.launcher != launcher():
        raise ValueError(
            f"{FLAGS.recipe} is run by experiments.{named.launcher}, this is "
            f"experiments.{launcher()}."
        )
    for name, value in named.flags().items():
        FLAGS.set_default(name, value)  # a value that was given stays


def recipe(**renamed):
    """The `Recipe` that all flags together make.

    Args:
        **renamed: values of fields whose flags have other names.
    """
    names = {field.name for field in dataclasses.fields(recipes.Recipe)}
    names &= set(FLAGS) - {"teacher", "recipe"}
    values = {name: FLAGS[name].value for name in names}
    return recipes.Recipe(**{**values, **renamed})


def list_recipes():
    """A table of all recipes, beside the paper's numbers."""

    def number(value):
        pair = isinstance(value, tuple)
        return "-".join(map(str, value)) if pair else value

    rows = []
    for name in recipes.names():
        each = recipes.get(name)
        paper = each.paper
        rows.append(
            {
                "recipe": name,
                "views": each.views,
                "epochs": each.epochs,
                "top-1": number(paper.top1),
                "top-5": paper.top5,
                "1 %": paper.one_percent,
                "10 %": paper.ten_percent,
            }
        )
    notes = "\n".join(
        f"{name}: {recipes.get(name).note}"
        for name in recipes.names()
        if recipes.get(name).note
    )
    elsewhere = "\n".join(
        f"{row}: {how}" for row, how in recipes.ELSEWHERE.items()
    )
    return (
        f"{tables.table(rows, list(rows[0]))}\n\n{notes}\n\n"
        "The paper's linear probes on ImageNet (top-1, top-5), and its top-1 "
        "with 1 % and 10 %\nof the labels; – where no source confirms a "
        "number. None of them was run here.\nmocov2_... are run by "
        "experiments.pretrain, all others by experiments.distill."
        f"\n\nRun with a trained encoder:\n{elsewhere}"
    )


def train(build, *, num_views=1, view_cache=None):
    """Does what the launchers share: data, devices, model, run, report.

    Args:
        build: function of views to (model, the encoder that it trains, its
            teacher or None), called where its variables belong.
        num_views: int, views of each image in a step.
        view_cache: `seed_tf.view_cache.ViewCache` to train from, or None.
    """
    if FLAGS.precision == "auto":
        # Resolved before it is noted: a run goes on as it began.
        FLAGS.precision = (
            seed_tf.acceleration.precision.default_student_policy()
        )
    config = {"launcher": launcher(), "command": command()} | {
        flag.name: flag.value
        for flag in FLAGS.get_key_flags_for_module(f"seed_tf.cli.{launcher()}")
    }
    folder = seed_tf.training.RunFolder(
        FLAGS.output,
        config,
        overwrite=FLAGS.overwrite,
        ignore=MAY_DIFFER,
        chief=devices.is_chief(),
    )
    strategy = devices.make_strategy(FLAGS.strategy, FLAGS.tpu)
    keras.utils.set_random_seed(FLAGS.seed)
    keras.mixed_precision.set_global_policy(FLAGS.precision)
    views = recipes.VIEWS[FLAGS.views](FLAGS.image_size, flip=FLAGS.flip)
    data = Data(views, num_views, view_cache)
    with strategy.scope():
        model, encoder, teacher = build(views)
        if FLAGS.sync_batch_norm:
            devices.synchronise_batch_norm(encoder)
        schedule = seed_tf.training.warmup_cosine(
            batch_size=FLAGS.batch_size,
            steps_per_epoch=data.steps_per_epoch,
            epochs=FLAGS.epochs,
            warmup_epochs=min(FLAGS.warmup_epochs, FLAGS.epochs / 2),
            rate_per_256=FLAGS.learning_rate,
        )
        model.compile(
            seed_tf.training.SGD(schedule, weight_decay=FLAGS.weight_decay),
            jit_compile="auto" if FLAGS.jit is None else FLAGS.jit,
        )
    plan = {
        "load": lambda step: devices.distribute(
            strategy, functools.partial(data.training, step)
        ),
        "encoder": encoder,
        "epochs": FLAGS.epochs,
        "steps_per_epoch": data.steps_per_epoch,
        "batch_size": FLAGS.batch_size,
        "targets_cached": view_cache is not None,
    }
    if FLAGS.dry_run:
        print(seed_tf.training.dry_run(model, teacher=teacher, **plan))
        return
    fingerprint = teacher and seed_tf.training.fingerprint(teacher)
    folder.claim(teacher_fingerprint=fingerprint)
    devices.barrier(strategy)
    try:
        _train(folder, model, teacher, data, plan)
    except tf.errors.OpError:
        data.check()  # a better word for it, if that was the cause
        raise
    finally:
        folder.close()


def _train(folder, model, teacher, data, plan):
    encoder = plan["encoder"]
    measures, unseen = {}, None
    if data.held_out > 10:
        unseen = HeldOut(encoder, data.unseen(), teacher)
        if teacher is not None:
            measures["agreement"] = unseen.agreement, 1
    if data.labelled:
        labelled = LabelledKNN(encoder, *data.labelled)
        measures["knn"] = labelled.accuracy, FLAGS.knn_every
    earlier = folder.read("summary.json").get("corrupt_files", {})

    def summary():
        return {"corrupt_files": {**earlier, **data.corrupt_files}}

    def write_report():
        seed_tf.training.write_run_report(
            folder,
            f"{launcher()}: {folder.path}",
            views=_some_views(model, data),
            neighbours=unseen and unseen.neighbours(),
        )

    result = seed_tf.training.train(
        model,
        folder=folder,
        measures=measures,
        # k-NN where there are labels, else agreement.
        monitor=list(measures)[-1] if measures else None,
        patience=FLAGS.patience,
        checkpoint_minutes=FLAGS.checkpoint_minutes,
        summary=summary,
        on_evaluated=write_report,
        **plan,
    )
    if folder.chief:
        _tell(folder, result)


def _some_views(model, data):
    """The first 32 views of the run, uint8."""
    images = next(iter(data.training()))
    views = model.augment(images, 0)[0][:32]
    return np.clip(np.round(views), 0, 255).astype(np.uint8)


def _tell(folder, result):
    last = result["last"]
    shown = {
        name: f"{last[name]:.3f}"
        for name in ("loss", "gap", "accuracy", "cosine", "agreement", "knn")
        if name in last
    }
    row = {"step": f"{result['step']:,}", **shown}
    print(f"\n{result['ended'].capitalize()}.\n")
    print(tables.table([row], list(row)))
    if result["corrupt_files"]:
        print(
            f"\n{len(result['corrupt_files'])} unreadable images were left "
            f"out: {folder.file('summary.json')}"
        )
    print(
        f"\nTrained encoder: {folder.file('student.keras')} "
        f"(of step {result['encoder_of_step']:,})\n"
        f"Report: {folder.file('report.html')}"
    )
