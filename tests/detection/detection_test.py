"""Feature maps, boxes, metrics, training and comparison of detectors."""

import csv
import functools
import json
import os
import pathlib
import sys
import unittest.mock

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from helpers.runs import command
from PIL import Image

import seed_tf
from seed_tf import detection
from seed_tf.detection import (
    comparison,
    training,
)
from seed_tf.detection.boxes import checked, padded
from seed_tf.detection.synthetic_detection import synthetic_detection
from seed_tf.encoders.backbones import BACKBONES
from seed_tf.encoders.resnet import resnet
from seed_tf.evaluation import protocols
from seed_tf.training import finished_run

RESNETS = [name for name in BACKBONES if name.startswith("resnet")]


def tiny_encoder(width=4):
    keras.utils.set_random_seed(0)
    backbone = resnet("tiny", depths=(1,) * 4, width=width, stem="imagenet")
    return seed_tf.Encoder(backbone, embedding_dim=8)


@functools.cache
def tiny_detector(frozen_norm=True):
    return detection.detector(
        tiny_encoder(), 10, smallest_anchor=16.0, frozen_norm=frozen_norm
    )


def data_set(images, objects):
    return tf.data.Dataset.from_tensor_slices((images, objects))


class PyramidTest(parameterized.TestCase):
    @parameterized.parameters(*BACKBONES)
    @pytest.mark.slow
    def test_levels_of_every_backbone(self, name):
        # The wide ones narrowed: depths, names and strides are the same.
        narrow = {"width": 8} if name in RESNETS else {}
        backbone = BACKBONES[name](name, stem="imagenet", **narrow)
        maps = detection.pyramid_maps(backbone)
        shapes = keras.Model(backbone.inputs, maps).compute_output_spec(
            keras.KerasTensor((2, 96, 64, 3))
        )
        for level, stride in (("P3", 8), ("P4", 16), ("P5", 32)):
            shape = shapes[level].shape
            self.assertEqual(shape[:3], (2, 96 // stride, 64 // stride))
        widths = [shapes[level].shape[-1] for level in ("P3", "P4", "P5")]
        if name in RESNETS:  # the stages' outputs, not the blocks' insides
            wide = 1 if name in ("resnet18", "resnet34") else 4
            self.assertEqual(widths, [16 * wide, 32 * wide, 64 * wide])
        elif name == "mobilenet_v3_large":
            # Of SSDLite, torchvision's too: the expansion before the stride.
            self.assertEqual(widths, [240, 672, 960])
        else:
            self.assertEqual(widths, [240, 672, 1280])

    def test_encoder_pools_the_last_level(self):
        encoder = tiny_encoder()
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (2, 64, 64, 3)).astype("uint8")
        rescaling = encoder.rescaling
        pyramid = detection.Pyramid(
            encoder.backbone, rescaling.scale, rescaling.offset
        )
        top = pyramid(images.astype("float32"))["P5"]
        np.testing.assert_allclose(
            np.mean(top, axis=(1, 2)), encoder.features(images), 1e-5, 1e-6
        )

    def test_user_models_sequential_or_of_fixed_size(self):
        for size in (None, 96):
            layers = [
                keras.layers.Conv2D(4 + i, 3, 2, padding="same")
                for i in range(5)
            ]
            model = keras.Sequential([keras.Input((size, size, 3)), *layers])
            maps = detection.pyramid_maps(model)
            self.assertEqual([m.shape[-1] for m in maps.values()], [6, 7, 8])

    def test_maps_inside_a_branch_are_ignored(self):
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, 8, padding="same")(inputs)
        around = keras.layers.Conv2D(6, 1, 2, padding="same")(x)
        inside = keras.layers.Conv2D(5, 1)(x)
        inside = keras.layers.Conv2D(6, 3, 2, padding="same")(inside)
        x = around + inside
        x = keras.layers.Conv2D(7, 3, 2, padding="same")(x)
        maps = detection.pyramid_maps(keras.Model(inputs, x))
        self.assertEqual([m.shape[-1] for m in maps.values()], [4, 6, 7])

    def test_a_missing_stride_is_named(self):
        backbone = resnet("small", depths=(1,) * 4, width=4, stem="cifar")
        with self.assertRaisesRegex(
            ValueError, r"none at stride 16, 32: .* stem=\"cifar\""
        ):
            detection.detector(seed_tf.Encoder(backbone), 3)

    def test_unknown_graphs_are_refused(self):
        class Subclassed(keras.Model):
            def call(self, images):
                return images

        shared = keras.layers.Conv2D(3, 3, 2)
        inputs = keras.Input((None, None, 3))
        twice = keras.Model(inputs, shared(shared(inputs)))
        with self.assertRaisesRegex(ValueError, "functional or sequential"):
            detection.detector(Subclassed(), 3)
        with self.assertRaisesRegex(ValueError, "calls a layer twice"):
            detection.detector(twice, 3)

    @parameterized.parameters(
        ({"num_classes": 0}, "`num_classes` must be a positive integer"),
        ({"smallest_anchor": 0}, "`smallest_anchor` must be positive"),
        ({"encoder": "resnet18"}, "`encoder` must be an `Encoder` or"),
    )
    def test_bad_arguments(self, change, message):
        arguments = {"encoder": tiny_encoder(), "num_classes": 3}
        with self.assertRaisesRegex(ValueError, message):
            detection.detector(**(arguments | change))


class BoxesTest(parameterized.TestCase):
    def test_boxes_are_cut_at_the_image_and_those_without_area_are_crowds(self):
        given = [[-0.2, 0.5, 0.5, 1.3], [0.5, 0.5, 0.5, 0.9]]  # y1, x1, y2, x2
        _, objects = padded(
            tf.zeros([8, 8, 3]),
            tf.constant(given),
            tf.constant([0.0, 1.0]),
            tf.constant([False, False]),
            image_size=8,
            max_boxes=3,
        )
        np.testing.assert_allclose(
            objects["boxes"],
            [[4, 0, 8, 4], [4, 4, 7.2, 4], [-1] * 4],
            atol=1e-5,
        )
        np.testing.assert_array_equal(objects["crowd"], [False, True, False])

    def test_flip(self):
        rng = np.random.default_rng(0)
        images = rng.uniform(size=(3, 8, 8, 3)).astype("float32")
        boxes = np.full((3, 2, 4), -1, "float32")
        boxes[:, 0] = [[1, 2, 4, 7], [0, 0, 8, 8], [5, 1, 6, 3]]
        classes = np.float32([[0, -1], [1, -1], [2, -1]])
        drawn = np.array([True, True, False])
        flipped, moved = detection.flip_images(images, boxes, classes, drawn)
        np.testing.assert_array_equal(flipped[:2], images[:2, :, ::-1])
        np.testing.assert_array_equal(flipped[2], images[2])
        np.testing.assert_array_equal(
            moved[:, 0], [[4, 2, 7, 7], [0, 0, 8, 8], [5, 1, 6, 3]]
        )
        np.testing.assert_array_equal(moved[:, 1], boxes[:, 1])

    @parameterized.parameters((100, 200), (200, 100), (64, 64), (33, 60))
    def test_resize(self, height, width):
        image = np.zeros((height, width, 3), "uint8")
        y1, x1, y2, x2 = height // 4, width // 3, height // 2, width - 4
        image[y1:y2, x1:x2] = 255
        relative = [[y1 / height, x1 / width, y2 / height, x2 / width]]
        resized, boxes = detection.resize(image, np.float32(relative), 64)
        self.assertEqual(resized.shape, (64, 64, 3))
        ys, xs = np.nonzero(resized[..., 0] > 127)
        found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(boxes[0], found, atol=1)
        scale = 64 / max(height, width)
        np.testing.assert_allclose(
            boxes[0], [x1 * scale, y1 * scale, x2 * scale, y2 * scale], atol=1
        )


class SyntheticDetectionTest(parameterized.TestCase):
    def test_boxes_are_tight_and_apart(self):
        images, objects = synthetic_detection("train", 40)
        present = objects["classes"] >= 0
        self.assertTrue((present.sum(1) >= 1).all())
        self.assertGreater(present.sum(1).max(), 2)
        for image, boxes, there in zip(
            images[..., 0], objects["boxes"], present, strict=True
        ):
            ink = np.zeros_like(image)
            for x1, y1, x2, y2 in boxes[there].astype(int):
                self.assertEqual(ink[y1:y2, x1:x2].sum(), 0)
                ink[y1:y2, x1:x2] = image[y1:y2, x1:x2]
                for edge in (
                    *(image[y1, x1:x2], image[y2 - 1, x1:x2]),
                    *(image[y1:y2, x1], image[y1:y2, x2 - 1]),
                ):
                    self.assertGreater(edge.max(), 64)
            self.assertLessEqual(image[ink == 0].max(), 64)
        np.testing.assert_array_equal(objects["boxes"][~present], -1)

    def test_it_is_seeded(self):
        first, again, other = (
            synthetic_detection("test", 4, seed=s) for s in (0, 0, 1)
        )
        np.testing.assert_array_equal(first[0], again[0])
        self.assertFalse(np.array_equal(first[0], other[0]))

    @parameterized.parameters(
        ({"size": 0}, "`size` must be a positive integer"),
        ({"image_size": 64}, "`image_size` must be an integer of at least 72"),
        ({"max_digits": 0}, "`max_digits` must be a positive integer"),
        ({"split": "dev"}, '`split` must be "train" or "test"'),
    )
    def test_errors(self, change, message):
        with self.assertRaisesRegex(ValueError, message):
            synthetic_detection(**({"split": "train", "size": 2} | change))


def overlap(a, b, crowd):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    area = (a[2] - a[0]) * (a[3] - a[1])
    other = (b[2] - b[0]) * (b[3] - b[1])
    return inter / (area if crowd else area + other - inter)


def average_precision(truth, found, label, threshold):
    """Returns a class's precision by definition; None without objects."""
    scored, objects = [], 0
    for i in range(len(truth["classes"])):
        mine = truth["classes"][i] == label
        boxes, crowd = truth["boxes"][i][mine], truth["crowd"][i][mine]
        objects += (~crowd).sum()
        taken = np.zeros(len(boxes), bool)
        hits = found["classes"][i] == label
        for score, box in sorted(
            zip(
                found["confidence"][i][hits],
                found["boxes"][i][hits].tolist(),
                strict=True,
            ),
            reverse=True,
        ):
            free = [
                (overlap(box, boxes[j], False), j)
                for j in range(len(boxes))
                if not taken[j] and not crowd[j]
            ]
            best, j = max(free, default=(0, None))
            if best >= threshold:
                taken[j] = True
                scored.append((score, True))
            elif not any(
                overlap(box, boxes[j], True) >= threshold
                for j in np.flatnonzero(crowd)
            ):
                scored.append((score, False))
    if not objects:
        return None
    right = np.array([hit for _, hit in sorted(scored, reverse=True)], bool)
    recall = np.cumsum(right) / objects
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return np.mean(
        [max(precision[recall >= r], default=0) for r in np.linspace(0, 1, 101)]
    )


def some_boxes(rng, images, count, labels):
    corners = rng.uniform(0, 60, (images, count, 2))
    sizes = rng.uniform(10, 40, (images, count, 2))
    classes = rng.integers(-1, labels, (images, count)).astype("float32")
    boxes = np.concatenate([corners, corners + sizes], -1)
    return {"boxes": boxes, "classes": classes}


class MetricsTest(parameterized.TestCase):
    @parameterized.parameters(range(4))
    def test_against_the_definition(self, seed):
        rng = np.random.default_rng(seed)
        truth = some_boxes(rng, 8, 5, 3)
        truth["crowd"] = rng.uniform(size=(8, 5)) < 0.2
        found = {k: np.repeat(truth[k], 2, axis=1) for k in truth}
        found["boxes"] = found["boxes"] + rng.normal(0, 1.5, (8, 10, 4))
        guessed = rng.integers(-1, 3, (8, 10))
        wrong = rng.uniform(size=(8, 10)) < 0.3
        found["classes"] = np.where(wrong, guessed, found["classes"])
        found["classes"][:2] = -1  # images in which nothing is found
        found["confidence"] = rng.permutation(80).reshape(8, 10) / 80
        thresholds = np.linspace(0.5, 0.95, 10)
        precision = np.array(
            [
                [
                    average_precision(truth, found, label, t)
                    for label in range(3)
                ]
                for t in thresholds
            ]
        )
        expected = {
            "AP": precision.mean(),
            "AP50": precision[0].mean(),
            "AP75": precision[5].mean(),
        }
        self.assertBetween(expected["AP"], 0.1, 0.8)
        result = detection.coco_metrics(truth, found)
        for name, value in expected.items():
            self.assertAlmostEqual(result[name], value, places=6, msg=name)

    def test_the_truth_itself_is_perfect_and_nothing_is_zero(self):
        truth = some_boxes(np.random.default_rng(0), 4, 3, 2)
        found = truth | {"confidence": np.ones((4, 3))}
        perfect = dict.fromkeys(detection.METRICS, 1.0)
        self.assertEqual(detection.coco_metrics(truth, found), perfect)
        found["classes"] = np.full((4, 3), -1.0)
        nothing = dict.fromkeys(detection.METRICS, 0.0)
        self.assertEqual(detection.coco_metrics(truth, found), nothing)

    def test_missed_images_count(self):
        truth = {"boxes": [[[0, 0, 9, 9]]] * 4, "classes": [[0]] * 4}
        found = truth | {"confidence": [[1.0]] * 4}
        found["classes"] = [[0], [-1], [-1], [-1]]
        result = detection.coco_metrics(truth, found)
        self.assertAlmostEqual(result["AP"], 26 / 101)  # recalls 0 to 0.25

    def test_errors(self):
        truth = some_boxes(np.random.default_rng(0), 2, 3, 2)
        found = truth | {"confidence": np.ones((2, 3))}
        with self.assertRaisesRegex(ValueError, "at least one object"):
            detection.coco_metrics(
                truth | {"classes": np.full((2, 3), -1)}, found
            )
        with self.assertRaisesRegex(ValueError, "2 and 1 images"):
            detection.coco_metrics(truth, {k: v[:1] for k, v in found.items()})


class FineTuneTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_it_learns_repeats_nothing_frozen_and_can_be_saved(self):
        images, objects = synthetic_detection("train", 1)
        train = data_set(images, objects)
        model = tiny_detector()
        copied = model.backbone.copied
        norm = copied.get_layer("layer3_0_bn1")
        conv = copied.get_layer("layer3_0_conv1")
        before = [w.numpy() for w in (*norm.weights, conv.kernel)]
        lines = []
        losses = detection.fine_tune_detector(
            model,
            train,
            steps=20,
            batch_size=2,
            learning_rate=0.08,
            flip=False,
            log=lines.append,
        )
        self.assertLen(losses, 10)
        self.assertLess(losses[-1], 0.9 * losses[0])
        self.assertLen(lines, 10)
        self.assertRegex(lines[0], r"step 2/20, loss \d\.\d+, .* s left")
        for old, weight in zip(before[:-1], norm.weights, strict=True):
            np.testing.assert_array_equal(old, weight)
        self.assertGreater(np.abs(before[-1] - conv.kernel).max(), 0)
        found = detection.detect(model, images)
        self.assertEqual(found["boxes"].shape, (1, 100, 4))
        metrics = detection.evaluate_detector(model, train)
        self.assertEqual(metrics, detection.coco_metrics(objects, found))
        path = os.path.join(self.create_tempdir().full_path, "model.keras")
        model.save(path)
        again = keras.models.load_model(path)
        for key, value in detection.detect(again, images).items():
            np.testing.assert_allclose(value, found[key], 1e-5, 1e-5)
        figure = detection.drawn_detections(
            np.concatenate([images, images]),
            {"truth": {k: np.repeat(v, 2, 0) for k, v in objects.items()}},
        )
        self.assertLen(figure.axes, 2)
        shown = (objects["classes"] >= 0).sum()
        self.assertLen(figure.axes[1].patches, shown)

    def test_the_encoder_is_not_changed_and_norm_may_learn(self):
        encoder = tiny_encoder()
        model = detection.detector(encoder, 2, frozen_norm=False)
        norm = model.backbone.copied.get_layer("bn1")
        self.assertTrue(norm.trainable)
        norm.gamma.assign(norm.gamma + 1)
        original = encoder.backbone.get_layer("bn1").gamma
        np.testing.assert_array_equal(original, 1)
        frozen = tiny_detector().backbone.copied.get_layer("bn1")
        self.assertFalse(frozen.trainable)

    @parameterized.parameters(
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"batch_size": 1}, "`batch_size` must be an integer of at least 2"),
        ({"train": [1]}, "Expected a tf.data.Dataset of single images"),
    )
    def test_bad_arguments(self, change, message):
        train = data_set(*synthetic_detection("train", 1))
        arguments = {"model": tiny_detector(), "train": train, "steps": 1}
        with self.assertRaisesRegex(ValueError, message):
            detection.fine_tune_detector(**(arguments | change))

    def test_data_must_fit_the_detector(self):
        images, objects = synthetic_detection("train", 1)
        objects["classes"][:] = 10
        with self.assertRaisesRegex(ValueError, "class 10 .* from 0 to 9"):
            detection.evaluate_detector(
                tiny_detector(), data_set(images, objects)
            )
        images, objects = synthetic_detection("train", 1, image_size=80)
        with self.assertRaisesRegex(ValueError, "multiple of 32"):
            detection.evaluate_detector(
                tiny_detector(), data_set(images, objects)
            )

    @parameterized.parameters(
        ("boxes", [0.1, 0.2, 0.5, 0.6]),  # in [0, 1]
        ("boxes", [10, 10, 90, 120]),  # beyond the image
        ("boxes", [-9, 10, 40, 40]),
        ("boxes", [40, 10, 30, 40]),  # no area
        ("boxes", [10, 10, np.nan, 40]),
        ("classes", 10),
        ("classes", -2),
        ("classes", 0.5),
    )
    def test_every_sample_is_checked(self, field, value):
        images, objects = synthetic_detection("train", 3)
        objects[field][2, 0] = value
        data = data_set(images, objects)
        message = r"^Sample 2 .* object 0 .*the 96 x 96 pixels\.$"
        with self.assertRaisesRegex(ValueError, message):
            detection.evaluate_detector(tiny_detector(), data)
        objects["classes"][2, 0] = 0
        objects["crowd"][2, 0] = True
        with checked(data_set(images, objects), 10) as samples:
            self.assertLen(list(samples), 3)

    @pytest.mark.slow
    def test_training_stops_at_a_box_in_0_to_1(self):
        images, objects = synthetic_detection("train", 3)
        objects["boxes"][2] /= 96
        with self.assertRaisesRegex(ValueError, "^Sample 2 .* object 0"):
            detection.fine_tune_detector(
                tiny_detector(),
                data_set(images, objects),
                steps=2,
                batch_size=2,
            )

    def test_infinite_loss_stops_training(self):
        progress = training._Progress(10, 10, 0.5, print)
        with self.assertRaisesRegex(ValueError, "learning_rate=0.5"):
            progress.on_train_batch_end(0, {"loss": float("nan")})


class LoadTest(absltest.TestCase):
    def prepare(self, name, objects, images=3, size=(50, 100)):
        """A TFDS data set; image i has i + 1 objects of class i."""
        folder = self.create_tempdir().full_path
        features = {"image": tfds.features.Image(encoding_format="png")}
        if objects:
            features["objects"] = tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                    "is_difficult": tfds.features.Tensor(
                        shape=(), dtype=np.bool_
                    ),
                }
            )

        def example(i):
            image = np.full((*size, 3), 80 * i, np.uint8)
            boxes = [
                {
                    "bbox": tfds.features.BBox(0.1 * j, 0.2, 1.0, 0.5),
                    "label": i,
                    "is_difficult": j == 1,
                }
                for j in range(i + 1)
            ]
            return {"image": image} | ({"objects": boxes} if objects else {})

        examples = [(i, example(i)) for i in range(images)]
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(features),
            split_datasets={"train": examples},
            data_dir=folder,
            download_config=tfds.download.DownloadConfig(num_shards=1),
        )
        return folder

    def test_boxes_of_a_prepared_data_set(self):
        folder = self.prepare("boxed", objects=True)
        data, names = detection.load_boxes(
            "boxed", "train", data_dir=folder, image_size=64, max_boxes=4
        )
        self.assertEqual(names, ["a", "b", "c"])
        self.assertEqual(data.element_spec[1]["boxes"].shape, (4, 4))
        by_class = {
            int(objects["classes"][0]): (image, objects)
            for image, objects in data.as_numpy_iterator()
        }
        image, objects = by_class[2]
        # 50 x 100 becomes 32 x 64, at the top.
        np.testing.assert_array_equal(image[:32], 160)
        np.testing.assert_array_equal(image[32:], 0)
        np.testing.assert_allclose(
            objects["boxes"],
            [
                [12.8, 0, 32, 32],
                [12.8, 3.2, 32, 32],
                [12.8, 6.4, 32, 32],
                [-1, -1, -1, -1],
            ],
            rtol=1e-5,
        )
        np.testing.assert_array_equal(objects["classes"], [2, 2, 2, -1])
        np.testing.assert_array_equal(objects["crowd"], [0, 1, 0, 0])
        few, _ = detection.load_boxes(
            "boxed", "train", data_dir=folder, image_size=64, max_boxes=2
        )
        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError, "more than `max_boxes`"
        ):
            list(few)

    def test_loading_errors(self):
        empty = self.create_tempdir().full_path
        for name in ("voc/2007", "coco/2017"):
            with (
                self.assertRaisesRegex(ValueError, "is not prepared"),
                unittest.mock.patch.object(
                    tfds.core.DatasetBuilder, "download_and_prepare"
                ) as prepare,
            ):
                detection.load_boxes(name, "train", data_dir=empty)
            prepare.assert_not_called()
        folder = self.prepare("plain", objects=False)
        with self.assertRaisesRegex(ValueError, 'must have "objects"'):
            detection.load_boxes("plain", "train", data_dir=folder)
        with self.assertRaisesRegex(ValueError, "multiple of 32"):
            detection.load_boxes("plain", "train", image_size=100)


def write_voc(folder):
    """A few files as Pascal VOC's archives hold them.

    Image i is 40 x 80 pixels and has an object of class i, "aeroplane",
    "bicycle", ..., and a difficult one; images 3 and 4 are for tests.
    """
    root = pathlib.Path(folder, "VOCdevkit", "VOC2007")
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for name, images in (("train", "01"), ("val", "2"), ("test", "34")):
        (root / f"ImageSets/Main/{name}.txt").write_text("\n".join(images))
    names = ("aeroplane", "bicycle", "bird", "boat", "bottle")
    for i, name in enumerate(names):
        pixels = np.full((40, 80, 3), 50 * i, np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{i}.jpg")
        objects = "".join(
            f"<object><name>{name}</name><pose>Left</pose><truncated>0"
            f"</truncated><difficult>{difficult}</difficult><bndbox>"
            "<xmin>20</xmin><ymin>10</ymin><xmax>60</xmax><ymax>40</ymax>"
            "</bndbox></object>"
            for difficult in (0, 1)
        )
        (root / f"Annotations/{i}.xml").write_text(
            "<annotation><size><width>80</width><height>40</height></size>"
            f"{objects}</annotation>"
        )
    return {"trainval": folder, "test": folder}


def write_coco(folder):
    """A few files as COCO 2017's archives hold them.

    Image i is 40 x 80 pixels and has i objects of class i, the last a crowd.
    """
    paths = {}
    for split, name in (
        *(("train", "train2017"), ("validation", "val2017")),
        ("test", "test2017"),
    ):
        pathlib.Path(folder, name).mkdir()
        for i in range(3):
            pixels = np.full((40, 80, 3), 100 * i, np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{name}/{i}.jpg")
        content = {
            # Identifiers of COCO's classes have gaps.
            "categories": [{"id": 7 * i, "name": f"c{i}"} for i in range(80)],
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 80}
                for i in range(3)
            ],
            "annotations": [
                {
                    **{"id": 10 * i + j, "image_id": i, "category_id": 7 * i},
                    **{"bbox": [20, 10, 40, 30], "area": 1200},
                    "iscrowd": int(j == 1),
                }
                for i in range(3)
                for j in range(i)
            ],
        }
        kind = "instances"
        if split == "test":
            kind = "image_info"
            del content["annotations"]
        annotations = pathlib.Path(folder, "annotations")
        annotations.mkdir(exist_ok=True)
        (annotations / f"{kind}_{name}.json").write_text(json.dumps(content))
        paths |= {f"{split}_images": folder, f"{split}_annotations": folder}
    return paths


class PublishedTest(absltest.TestCase):
    """Prepares VOC and COCO with TFDS's builders, from a few small files."""

    def prepare(self, paths):
        """Makes TFDS's builders find these paths instead of downloading."""
        self.enter_context(
            unittest.mock.patch.object(
                tfds.download.DownloadManager,
                "download_and_extract",
                return_value=paths,
            )
        )
        return self.create_tempdir().full_path

    @pytest.mark.slow
    def test_voc(self):
        data_dir = self.prepare(write_voc(self.create_tempdir().full_path))
        output = self.create_tempdir().full_path
        encoder = os.path.join(output, "tiny.keras")
        tiny_encoder().save(encoder)
        command(
            "detect",
            *(f"--encoder={encoder}", "--dataset=voc/2007", "--download"),
            *("--train_split=train+validation", "--test_split=test"),
            *(f"--data_dir={data_dir}", "--image_size=64", "--batch_size=2"),
            *("--smallest_anchor=16", "--steps=1", f"--output={output}"),
        )
        # Evaluations and runs write files of these names into `output`.
        self.assertCountEqual(os.listdir(output), ["tiny.keras", "detection"])
        kept = os.path.join(output, "detection", "0_tiny_seed0.keras")
        self.assertEqual(keras.models.load_model(kept).num_classes, 20)
        results = os.path.join(output, "detection", "results.json")
        (row,) = finished_run.read_results(results)
        self.assertCountEqual(row, ["encoder", *detection.METRICS])
        self.assertEqual(row["encoder"], encoder)
        data, names = detection.load_boxes(
            *("voc/2007", "train+validation"), data_dir=data_dir, image_size=64
        )
        self.assertLen(names, 20)
        self.assertEqual(names[:3], ["aeroplane", "bicycle", "bird"])
        found = list(data.as_numpy_iterator())
        self.assertCountEqual([o["classes"][0] for _, o in found], [0, 1, 2])
        for image, objects in found:
            # 40 x 80 pixels became 32 x 64.
            label = int(objects["classes"][0])
            np.testing.assert_allclose(image[:32], 50 * label, atol=2)
            np.testing.assert_allclose(
                objects["boxes"][:3],
                [[16, 8, 48, 32], [16, 8, 48, 32], [-1] * 4],
            )
            self.assertEqual(
                objects["classes"][:3].tolist(), [label, label, -1]
            )
            self.assertEqual(objects["crowd"][:3].tolist(), [0, 1, 0])

    def test_coco(self):
        data_dir = self.prepare(write_coco(self.create_tempdir().full_path))
        train, names = detection.load_boxes(
            *("coco/2017", "train"),
            data_dir=data_dir,
            image_size=64,
            download=True,
        )
        self.assertLen(names, 80)
        self.assertEqual(names[:2], ["c0", "c1"])
        counts = {}
        for image, objects in train.as_numpy_iterator():
            label = int(objects["classes"].max())
            counts[label] = int((objects["classes"] >= 0).sum())
            shade = 0 if label < 0 else 100 * label
            np.testing.assert_allclose(image[:32], shade, atol=2)
            if label == 2:
                np.testing.assert_allclose(
                    objects["boxes"][:2], [[16, 8, 48, 32]] * 2
                )
                self.assertEqual(objects["crowd"][:3].tolist(), [0, 1, 0])
        self.assertEqual(counts, {-1: 0, 1: 1, 2: 2})
        # Images without boxes are refused before any training.
        test, _ = detection.load_boxes(
            "coco/2017", "test", data_dir=data_dir, image_size=64
        )
        with self.assertRaisesRegex(
            ValueError, "none in the first 3 images. COCO"
        ):
            detection.compare(
                {"a": self.fail}, train, test, num_classes=80, seeds=[0]
            )


def noted(calls, result):
    """Returns a function that records its arguments and returns `result`."""

    def call(*args, **kwargs):
        calls.append((args, kwargs))
        return result

    return call


class CompareTest(absltest.TestCase):
    def test_every_start_with_every_seed(self):
        calls = {"starts": [], "detector": [], "train": []}
        metrics = iter(
            {"AP": x, "AP50": 2 * x, "AP75": 0.0} for x in (0.1, 0.2, 0.3, 0.4)
        )
        found = iter("abcd")
        data = data_set(*synthetic_detection("train", 2))
        with unittest.mock.patch.multiple(
            comparison,
            detector=lambda encoder, classes, *, frozen_norm, **_: (
                calls["detector"].append((encoder, classes, frozen_norm))
                or keras.random.normal([1]).numpy()
            ),
            fine_tune_detector=noted(calls["train"], None),
            evaluate_detector=lambda *_: next(metrics),
            detect=lambda *_: next(found),
        ):
            scores, images, drawn = detection.compare(
                {
                    "a": lambda seed: f"a{seed}",
                    "b": lambda seed: f"b{seed}",
                },
                *(data, data),
                num_classes=10,
                seeds=[3, 5],
                frozen_norm=["b"],
                num_pictures=2,
                steps=7,
            )
        self.assertEqual(
            calls["detector"],
            [
                *(("a3", 10, False), ("b3", 10, True)),
                *(("a5", 10, False), ("b5", 10, True)),
            ],
        )
        heads = [args[0] for args, _ in calls["train"]]
        self.assertEqual(heads[0], heads[1])  # the same for a seed
        self.assertNotEqual(heads[1], heads[2])
        self.assertEqual(
            [(k["seed"], k["steps"]) for _, k in calls["train"]],
            [(3, 7), (3, 7), (5, 7), (5, 7)],
        )
        self.assertEqual([s["AP"] for s in scores["a"]], [0.1, 0.3])
        self.assertEqual([s["AP"] for s in scores["b"]], [0.2, 0.4])
        self.assertLen(images, 2)
        # Drawn are the detectors of the first seed.
        self.assertEqual({k: drawn[k] for k in "ab"}, {"a": "a", "b": "b"})

    def test_pycocotools_is_asked_for_before_any_training(self):
        data = data_set(*synthetic_detection("train", 1))
        with (
            unittest.mock.patch.dict(sys.modules, {"pycocotools": None}),
            self.assertRaisesRegex(ValueError, r"seed_tf\[detection\]"),
        ):
            detection.compare(
                {"a": self.fail}, data, data, num_classes=10, seeds=[0]
            )

    def test_mean_and_spread_over_seeds_are_written(self):
        images, objects = synthetic_detection("train", 2)
        values = {"from scratch": (0.1, 0.2, 0.6), "runs/a": (0.4, 0.4, 0.1)}
        scores = {
            name: [{"AP": x, "AP50": 0.5, "AP75": x / 2} for x in of_seeds]
            for name, of_seeds in values.items()
        }
        # Of 10, 20, 60: the mean 30, the standard deviation 21.6.
        self.assertRegex(
            detection.table(scores), r"scratch +30.0 ± 21.6 +50.0 ± 0.0 +15.0"
        )
        folder = self.create_tempdir().full_path
        detection.write_results(folder, scores, images, {"truth": objects})
        self.assertCountEqual(
            os.listdir(folder),
            [f"results.{x}" for x in ("json", "csv", "md", "png")]
            + ["detections.png", "scores.json"],
        )
        rows = finished_run.read_results(f"{folder}/results.json")
        self.assertEqual([row["encoder"] for row in rows], list(values))
        self.assertEqual((rows[0]["AP"], rows[0]["AP, spread"]), (30, 21.6))
        with open(f"{folder}/results.csv") as file:
            table = list(csv.DictReader(file))
        self.assertEqual(float(table[1]["AP75"]), 15)
        # One seed has no spread.
        scores = {name: runs[:1] for name, runs in scores.items()}
        self.assertNotIn("±", detection.table(scores))


class LauncherTest(parameterized.TestCase):
    @parameterized.parameters(
        (
            "synthetic_detection",
            [],
            True,
            False,
        ),  # a mirrored digit is another sign
        ("synthetic_detection", ["--nofrozen_norm"], False, False),
        ("voc/2007", [], True, True),
        ("voc/2007", ["--noflip"], True, False),
    )
    @pytest.mark.slow
    def test_flags(self, dataset, arguments, frozen, flip):
        trained, untrained = "runs/student", "untrained:resnet18"
        load = functools.cache(lambda name, seed=0: tiny_encoder())
        scores = {trained: [dict.fromkeys(detection.METRICS, 0.5)]}
        boxed, calls = data_set(*synthetic_detection("train", 3)), []
        with (
            unittest.mock.patch.object(protocols, "load_encoder", load),
            unittest.mock.patch.object(
                detection, "load_boxes", return_value=(boxed, ["a", "b"])
            ),
            unittest.mock.patch.object(
                detection, "compare", noted(calls, (scores, None, None))
            ),
        ):
            command(
                "detect",
                *(f"--encoder={trained}", f"--encoder={untrained}"),
                *(f"--dataset={dataset}", "--image_size=96", "--seeds=2"),
                *arguments,
            )
        (((starts, train, test), options),) = calls
        self.assertEqual(options["frozen_norm"], [trained] if frozen else ())
        self.assertEqual(options["flip"], flip)
        self.assertEqual(list(options["seeds"]), [0, 1])
        # A trained encoder is the same for all seeds, an untrained is not.
        self.assertIs(starts[trained](0), starts[trained](1))
        for seed in (0, 1):
            self.assertIs(starts[untrained](seed), load(untrained, seed))
        synthetic = dataset == "synthetic_detection"
        self.assertEqual(options["num_classes"], 10 if synthetic else 2)
        sizes = int(train.cardinality()), int(test.cardinality())
        self.assertEqual(sizes, (512, 200) if synthetic else (3, 3))
        if synthetic:
            (image, _), (other, _) = next(iter(zip(train, test, strict=False)))
            self.assertEqual(image.shape, (96, 96, 3))
            self.assertFalse(np.array_equal(image, other))

    def test_pycocotools_is_asked_for_before_anything_else(self):
        with unittest.mock.patch.dict(sys.modules, {"pycocotools": None}):
            printed = command("detect", "--encoder=there is none", code=1)
        self.assertRegex(
            printed, r"Error: .*metrics need .*'seed_tf\[detection\]'"
        )

    def test_encoders_are_checked_before_any_training(self):
        with unittest.mock.patch.object(detection, "compare") as compare:
            printed = command(
                *("detect", "--encoder=untrained:resnet18:cifar"),
                "--image_size=96",
                code=1,
            )
        self.assertRegex(printed, "Error: --encoder must have feature maps")
        compare.assert_not_called()


if __name__ == "__main__":
    absltest.main()
