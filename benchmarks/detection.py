"""What pre-training without labels is worth to a small detector.

    python -m benchmarks.detection --output=runs/detection

Handwritten digits are placed on black squares
(`seed_tf.detection.synthetic_detection`). A ResNet of 16 channels is distilled
with SEED, from a teacher twice as wide that MoCo v2 trained, on single digits
without labels. Then it is the backbone of a RetinaNet, which is fine-tuned on
the squares; and so is the same network from the same random start, for the same
steps, images and settings. BatchNorm learns in both. Ends with a table of
COCO's average precision on other digits (results.md, .json, .csv, .png) and a
picture (detections.png)."""

import time

import keras
import tensorflow as tf
from absl import app, flags

import seed_tf
from seed_tf import detection
from seed_tf.detection.synthetic_detection import synthetic_detection
from seed_tf.encoders.resnet import resnet
from seed_tf.io.pipelines import BATCHES_AHEAD
from seed_tf.io.units import duration

FLAGS = flags.FLAGS
flags.DEFINE_string("output", "runs/detection", "Folder for the results.")
flags.DEFINE_integer("seeds", 2, "Detectors of each kind.", 1)
flags.DEFINE_integer("steps", 150, "Of each detector.", 1)
flags.DEFINE_integer("batch_size", 8, "Images per step of a detector.", 2)
flags.DEFINE_float("learning_rate", 0.04, "Of a detector, per 16 images.", 0.0)
flags.DEFINE_integer("train_images", 512, "Squares to fine-tune on.", 1)
flags.DEFINE_integer("test_images", 200, "Squares to test on.", 6)
flags.DEFINE_integer("pretrain_steps", 300, "Of teacher and student each.", 1)

SIZE = 32  # pixels of the digits that are pre-trained on
BATCH, EPOCH = 128, 25


def build_encoder(width, seed):
    keras.utils.set_random_seed(seed)
    backbone = resnet(
        f"resnet10_{width}", depths=(1, 1, 1, 1), width=width, stem="imagenet"
    )
    return seed_tf.Encoder(backbone, embedding_dim=64)


def pretrain(model, images):
    steps = FLAGS.pretrain_steps
    schedule = seed_tf.training.warmup_cosine(
        batch_size=BATCH,
        steps_per_epoch=1,
        epochs=steps,
        warmup_epochs=steps / 20,
        rate_per_256=0.24,
    )
    model.compile(seed_tf.training.SGD(schedule))
    data = tf.data.Dataset.from_tensor_slices(images)
    data = data.shuffle(len(images), seed=model.seed).repeat()
    data = data.batch(BATCH, drop_remainder=True)
    model.fit(
        data.take(steps).prefetch(BATCHES_AHEAD),
        verbose=0,
        callbacks=[seed_tf.training.Progress(steps, BATCH)],
    )


def pretrained(seed):
    """The student, distilled from a teacher of its own."""
    images, _ = seed_tf.datasets.digits("train", image_size=SIZE)
    shared = {
        "views": seed_tf.views.moco_v2(SIZE, scale=(0.4, 1.0), flip=False),
        "queue_size": 1024,
        "seed": seed,
    }
    print(f"\nTeacher by MoCo v2, seed {seed}", flush=True)
    teacher = build_encoder(32, seed)
    pretrain(seed_tf.MoCo(teacher, momentum=0.99, **shared), images)
    print(f"\nStudent by SEED, seed {seed}", flush=True)
    student = build_encoder(16, seed)
    pretrain(
        seed_tf.SEED(
            student=student, teacher=teacher, teacher_temperature=0.1, **shared
        ),
        images,
    )
    return student


def main(_):
    start = time.monotonic()
    train = tf.data.Dataset.from_tensor_slices(
        synthetic_detection("train", FLAGS.train_images)
    )
    test = tf.data.Dataset.from_tensor_slices(
        synthetic_detection("test", FLAGS.test_images)
    )
    scores, images, drawn = detection.compare(
        {
            "from scratch": lambda seed: build_encoder(16, seed),
            "SEED, without labels": pretrained,
        },
        train,
        test,
        num_classes=10,
        seeds=range(1, FLAGS.seeds + 1),
        smallest_anchor=16.0,
        steps=FLAGS.steps,
        batch_size=FLAGS.batch_size,
        learning_rate=FLAGS.learning_rate,
        flip=False,  # mirrored, a digit is another sign
        log=lambda text: print(text, flush=True),
    )
    detection.write_results(FLAGS.output, scores, images, drawn, threshold=0.3)
    seconds = duration(time.monotonic() - start)
    print(f"\nCOCO's average precision, %, after {seconds}\n")
    print(detection.table(scores))
    print(f"\nResults: {FLAGS.output}")


if __name__ == "__main__":
    app.run(main)
