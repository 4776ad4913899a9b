"""Views against torchvision's formulas, PIL, SciPy and colorsys."""

import colorsys
import functools
import json
import math
import os
import re
from unittest import mock

import keras
import keras_cv
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.devices import two_logical_cpus, two_replicas
from PIL import Image, ImageEnhance

from seed_tf import (
    random,
    views,
)
from seed_tf.acceleration import hardware
from seed_tf.trainer import Trainer
from seed_tf.views import pipelines

two_logical_cpus()

LUMA = np.array([0.2989, 0.587, 0.114])
SAME = 255 * 1e-3  # largest difference between ways to run one view


def random_images(n, height=40, width=48, seed=0):
    """Smooth noise, uint8 `[n, height, width, 3]`, black and white included."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, height, width, 3))
    noise = scipy.ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 0))
    noise = 128 + 80 * noise / noise.std()
    return np.clip(noise, 0, 255).astype(np.uint8)


def seeds(n, seed=0, step=0):
    return random.image_seeds(seed, tf.constant(step, tf.int64), n)


def draw(layer, n, height=32, width=32, seed=0):
    """What a layer draws for n images of a size, as NumPy arrays."""
    drawn = layer.get_random_transformation_batch(
        n, images=tf.zeros([1, height, width, 3]), seeds=seeds(n, seed)
    )
    return tf.nest.map_structure(lambda x: x.numpy(), drawn)


def seeded(view):
    """`view` as a function of two positional arguments, for `map`."""
    return lambda images, keys: view(images, seeds=keys)


def augment(layer, images):
    """A layer on a batch, with `seeds(B)`, as a NumPy array."""
    inputs = {"images": tf.constant(images), "seeds": seeds(len(images))}
    return layer(inputs)["images"].numpy()


def apply(layer, images, transformations):
    transformations = tf.nest.map_structure(tf.constant, transformations)
    images = tf.constant(images, tf.float32)
    return layer.augment_images(images, transformations).numpy()


class LayerTest(parameterized.TestCase):
    """Assertions shared by the tests below."""

    def setUp(self):
        super().setUp()
        keras.utils.set_random_seed(0)  # for the calls without seeds

    def assert_distribution(self, samples, *distribution):
        """Kolmogorov-Smirnov against another sample or a distribution."""
        p = scipy.stats.kstest(samples, *distribution).pvalue
        self.assertGreater(p, 1e-3)

    def assert_rate(self, drawn, p):
        p_value = scipy.stats.binomtest(int(drawn.sum()), drawn.size, p).pvalue
        self.assertGreater(p_value, 1e-3)


def torchvision_box(rng, height, width, scale, ratio):
    """`RandomResizedCrop.get_params`, as torchvision documents it."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = rng.integers(0, height - h + 1)
            left = rng.integers(0, width - w + 1)
            return top, left, h, w
    aspect = width / height
    if aspect < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif aspect > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


class RandomResizedCropTest(LayerTest):
    @parameterized.parameters(
        (224, 224, (0.2, 1.0)),
        (240, 320, (0.2, 1.0)),
        (60, 180, (0.5, 1.0)),  # three in ten draws fall back on the centre
        (500, 375, (0.05, 0.14)),
        (16, 16, (0.2, 1.0)),
    )
    def test_draws_torchvisions_boxes(self, height, width, scale):
        layer = views.RandomResizedCrop(8, scale)
        rng = np.random.default_rng(0)
        expected = np.array(
            [
                torchvision_box(rng, height, width, scale, (3 / 4, 4 / 3))
                for _ in range(10000)
            ]
        )
        boxes = draw(layer, 10000, height, width)
        self.assertTrue(np.all(boxes[:, :2] >= 0))
        self.assertTrue(np.all(boxes[:, 2:] > 0))
        self.assertTrue(np.all(boxes[:, :2] + boxes[:, 2:] <= [height, width]))
        for measure in (
            lambda box: box[:, 2] * box[:, 3],  # area
            lambda box: np.log(box[:, 3] / box[:, 2]),  # aspect ratio
            lambda box: box[:, 0],
            lambda box: box[:, 1],
            lambda box: box[:, 0] + box[:, 2] + 2 * box[:, 1] + box[:, 3],
        ):
            self.assert_distribution(measure(boxes), measure(expected))

    def test_area_is_uniform_and_aspect_log_uniform(self):
        layer = views.RandomResizedCrop(8, (0.1, 0.5))
        _, _, height, width = draw(layer, 10000, 3000, 3000).T
        area = height * width / 3000**2
        self.assert_distribution(area, "uniform", (0.1, 0.4))
        aspect = np.log(width / height) / math.log(4 / 3)
        self.assert_distribution(aspect, "uniform", (-1, 2))
        self.assertLess(abs(np.corrcoef(area, aspect)[0, 1]), 0.04)

    @parameterized.parameters(
        # Never fits: as wide as high, or nearly.
        (30, 30, (1.0, 1.0), (1.5, 2.0), [5, 0, 20, 30]),
        (10, 200, (0.9, 1.0), (3 / 4, 4 / 3), [0, 93, 10, 13]),
        (200, 10, (0.9, 1.0), (3 / 4, 4 / 3), [93, 0, 13, 10]),
        (100, 110, (1.0, 1.0), (0.5, 1.0), [0, 5, 100, 100]),
        (100, 110, (1.0, 1.0), (1.05, 3.0), [0, 0, 100, 110]),
    )
    def test_falls_back_on_the_centre(self, height, width, scale, ratio, box):
        layer = views.RandomResizedCrop(8, scale, ratio)
        boxes = draw(layer, 64, height, width)
        kept = boxes[np.any(boxes != box, axis=1)]
        if ratio[0] <= width / height <= ratio[1]:  # may fit by luck
            self.assertLess(len(kept), 32)
        else:
            self.assertEmpty(kept)

    @parameterized.product(
        size=((224, 224), (333, 500), (60, 180), (180, 60), (4000, 3000)),
        scale=((0.2, 1.0), (0.05, 0.14), (1.0, 1.0)),
    )
    def test_boxes_by_numpy_are_those_of_the_step(self, size, scale):
        layer = views.RandomResizedCrop(8, scale)
        uniforms = random.uniform(seeds(2000), layer.num_uniforms).numpy()
        boxes = layer.boxes(uniforms, *map(np.float32, size))
        self.assertIsInstance(boxes, np.ndarray)
        self.assertEqual(boxes.dtype, np.float32)
        drawn = draw(layer, 2000, *size)
        np.testing.assert_array_equal(boxes, drawn)

    @parameterized.parameters(7, 32, 61)
    def test_resizes_as_pil_resizes_the_crop(self, size):
        """Down, up, and both at once; PIL in float32, channel by channel."""
        images = random_images(5).astype(np.float32)
        boxes = np.array(
            [
                [0, 0, 40, 48],
                [3, 5, 9, 11],
                [39, 47, 1, 1],
                [10, 2, 30, 8],
                [0, 17, 13, 31],
            ]
        )
        resized = apply(views.RandomResizedCrop(size), images, boxes)
        for image, (top, left, h, w), ours in zip(
            images, boxes, resized, strict=True
        ):
            crop = image[top : top + h, left : left + w]
            pil = [
                Image.fromarray(channel).resize(
                    (size, size), Image.Resampling.BILINEAR
                )
                for channel in np.moveaxis(crop, -1, 0)
            ]
            np.testing.assert_allclose(ours, np.stack(pil, -1), atol=2e-3)

    def test_equals_pil_on_8_bits_to_rounding(self):
        image = random_images(1)[0]
        pil = Image.fromarray(image).crop((4, 6, 44, 36))
        pil = np.asarray(pil.resize((24, 24), Image.Resampling.BILINEAR))
        box = [[6, 4, 30, 40]]
        ours = apply(views.RandomResizedCrop(24), image[None], box)[0]
        self.assertLess(np.abs(ours - pil).max(), 1.01)
        self.assertLess(np.abs(ours - pil).mean(), 0.4)


def reference_jitter(image, order, factors, turns):
    """torchvision's adjust_* on one float image in [0, 255], in float64."""
    image = image.astype(np.float64)
    for name in order:
        grey = (image @ LUMA)[..., None]
        if name == "hue":
            image = turn_hue(image, turns)
            continue
        other = {
            "brightness": 0.0,
            "contrast": grey.mean(),
            "saturation": grey,
        }[name]
        factor = factors[name]
        image = np.clip(factor * image + (1 - factor) * other, 0, 255)
    return image


def turn_hue(image, turns):
    def turned(rgb):
        h, s, v = colorsys.rgb_to_hsv(*(rgb / 255))
        return 255 * np.array(colorsys.hsv_to_rgb((h + turns) % 1, s, v))

    return np.apply_along_axis(turned, -1, image)


NAMES = ("brightness", "contrast", "saturation")


class ColorJitterTest(LayerTest):
    def test_factors_are_uniform(self):
        layer = views.ColorJitter(0.4, 0.8, 1.5, 0.1)
        drawn = draw(layer, 10000)
        for column, low, high in zip(
            drawn["factors"].T, (0.6, 0.2, 0), (1.4, 1.8, 2.5), strict=True
        ):
            self.assert_distribution(column, "uniform", (low, high - low))
        self.assert_distribution(drawn["hue"], "uniform", (-0.1, 0.2))
        columns = np.vstack([drawn["factors"].T, drawn["hue"], drawn["order"]])
        correlation = np.corrcoef(columns) - np.eye(5)
        self.assertLess(np.abs(correlation).max(), 0.04)

    def test_all_orders_are_equally_likely(self):
        order = draw(views.ColorJitter(0.4, 0.4, 0.4, 0.1), 24000)["order"]
        counts = np.bincount(order, minlength=24)
        self.assertLen(counts, 24)
        self.assertGreater(scipy.stats.chisquare(counts).pvalue, 1e-3)
        orders = views.ColorJitter.orders
        self.assertLen(set(orders), 24)
        self.assertEqual({frozenset(x) for x in orders}, {frozenset(orders[0])})

    def test_rate(self):
        layer = views.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
        drawn = draw(layer, 10000)
        self.assert_rate(drawn["order"] < 24, 0.8)
        images = random_images(64)
        out = augment(layer, images)
        unchanged = np.all(out == images, axis=(1, 2, 3))
        np.testing.assert_array_equal(unchanged, drawn["order"][:64] == 24)

    @parameterized.product(
        order=tuple(range(24)),
        single=(False, True),
        accelerated=(False, True),
    )
    def test_equals_the_formulas_in_every_order(
        self, order, single, accelerated
    ):
        self.enter_context(hardware.assume(hardware.Hardware(accelerated)))
        layer = views.ColorJitter(0.4, 0.4, 0.4, 0.1)
        n = 1 if single else 2
        images = random_images(n, 12, 10, seed=order)
        rng = np.random.default_rng(order)
        factors = rng.uniform(0.5, 1.5, [n, 3]).astype(np.float32)
        turns = rng.uniform(-0.5, 0.5, n).astype(np.float32)
        out = apply(
            layer,
            images,
            {
                "factors": factors,
                "hue": turns,
                "order": np.full(n, order, np.int32),
            },
        )
        for i in range(n):
            expected = reference_jitter(
                images[i],
                layer.orders[order],
                dict(zip(NAMES, factors[i], strict=True)),
                turns[i],
            )
            np.testing.assert_allclose(out[i], expected, atol=0.01)

    @parameterized.parameters(False, True)
    def test_products_are_for_processors(self, accelerated):
        drawn = {
            "factors": tf.ones([2, 3]),
            "hue": tf.zeros([2]),
            "order": tf.zeros([2], tf.int32),
        }
        jitter = functools.partial(
            views.ColorJitter(0.4).augment_images, transformations=drawn
        )
        spec = tf.TensorSpec([2, 8, 8, 3])
        with hardware.assume(hardware.Hardware(accelerated)):
            graph = tf.function(jitter).get_concrete_function(spec).graph
        products = [x for x in graph.get_operations() if "MatMul" in x.type]
        self.assertEqual(bool(products), not accelerated)

    @parameterized.product(name=NAMES, factor=(0.6, 1.0, 1.4))
    def test_equals_pil(self, name, factor):
        enhance = {
            "brightness": ImageEnhance.Brightness,
            "contrast": ImageEnhance.Contrast,
            "saturation": ImageEnhance.Color,
        }[name]
        image = random_images(1)[0]
        pil = np.asarray(enhance(Image.fromarray(image)).enhance(factor))
        factors = np.ones([1, 3], np.float32)
        factors[0, NAMES.index(name)] = factor
        drawn = {
            "factors": factors,
            "hue": np.zeros(1, np.float32),
            "order": np.zeros(1, np.int32),
        }
        ours = apply(views.ColorJitter(), image[None], drawn)[0]
        # PIL truncates, and rounds the grey image and its mean.
        self.assertLess(np.abs(ours - pil).max(), 1.5)

    def test_hue_keeps_grey_and_turns_red_to_green(self):
        colours = np.array(
            [[[[128.0] * 3, [255, 0, 0], [0, 0, 0], [255, 255, 255]]]]
        )
        drawn = {
            "factors": np.ones([1, 3], np.float32),
            "order": np.zeros(1, np.int32),
        }
        layer = views.ColorJitter(hue=0.5)
        third = np.float32([1 / 3])
        out = apply(layer, colours, {**drawn, "hue": third})[0, 0]
        expected = [[128.0] * 3, [0, 255, 0], [0, 0, 0], [255, 255, 255]]
        np.testing.assert_allclose(out, expected, atol=1e-3)


class RandomGrayscaleTest(LayerTest):
    def test_rate_and_values(self):
        layer = views.RandomGrayscale(p=0.2)
        drawn = draw(layer, 10000)
        self.assert_rate(drawn, 0.2)
        images = random_images(32)
        out = augment(layer, images)
        for image, grey, ours in zip(images, drawn[:32], out, strict=True):
            if not grey:
                np.testing.assert_array_equal(ours, image)
                continue
            pil = np.asarray(Image.fromarray(image).convert("L"))
            self.assertLess(np.abs(ours - pil[..., None]).max(), 0.55)
            np.testing.assert_allclose(
                ours, (image @ LUMA)[..., None].repeat(3, -1), atol=1e-3
            )


class RandomGaussianBlurTest(LayerTest):
    def test_sigma_is_uniform_and_independent_of_the_rate(self):
        drawn = draw(views.RandomGaussianBlur((0.1, 2.0), p=0.5), 10000)
        self.assert_distribution(drawn["sigma"], "uniform", (0.1, 1.9))
        self.assert_rate(drawn["drawn"], 0.5)
        chosen = drawn["sigma"][drawn["drawn"]]
        self.assert_distribution(chosen, "uniform", (0.1, 1.9))

    @parameterized.parameters((40, 48), (16, 16), (5, 9), (1, 3))
    def test_equals_scipy(self, height, width):
        images = random_images(8, height, width)
        sigmas = np.float32([0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.0])
        drawn = np.arange(8) < 7
        layer = views.RandomGaussianBlur((0.1, 2.0))
        out = apply(layer, images, {"sigma": sigmas, "drawn": drawn})
        for image, sigma, ours in zip(
            images[:7], sigmas, out[:7], strict=False
        ):
            expected = scipy.ndimage.gaussian_filter(
                image.astype(np.float64),
                (sigma, sigma, 0),
                mode="nearest",
                truncate=8,
            )
            np.testing.assert_allclose(ours, expected, atol=2e-3)
        np.testing.assert_array_equal(out[7], images[7])

    def test_leaves_flat_images_as_they_are(self):
        """KerasCV's blur darkens the border; this one must not."""
        layer = views.RandomGaussianBlur((2.0, 2.0), p=1.0)
        flat = np.full([2, 12, 12, 3], 100, np.uint8)
        np.testing.assert_allclose(layer(flat), flat, atol=1e-3)


class RandomHorizontalFlipTest(LayerTest):
    def test_rate_and_values(self):
        layer = views.RandomHorizontalFlip(p=0.5)
        drawn = draw(layer, 10000)
        self.assert_rate(drawn, 0.5)
        images = random_images(16)
        out = augment(layer, images)
        expected = np.where(
            drawn[:16, None, None, None], images[:, :, ::-1], images
        )
        np.testing.assert_array_equal(out, expected)


LAYERS = {
    "crop": functools.partial(views.RandomResizedCrop, 24),
    "jitter": functools.partial(views.ColorJitter, 0.4, 0.4, 0.4, 0.1, p=0.8),
    "grey": functools.partial(views.RandomGrayscale, 0.2),
    "blur": views.RandomGaussianBlur,
    "flip": views.RandomHorizontalFlip,
}


class EveryLayerTest(LayerTest):
    """What holds for each layer, alone and among KerasCV's."""

    @parameterized.parameters(*LAYERS)
    def test_passes_labels_and_unknown_keys(self, name):
        inputs = {
            "images": tf.constant(random_images(4)),
            "labels": tf.constant([3, 1, 2, 0]),
            "names": tf.constant(["a", "b", "c", "d"]),
            "seeds": seeds(4),
        }
        out = LAYERS[name]()(inputs)
        self.assertSameElements(out, inputs)
        np.testing.assert_array_equal(out["labels"], inputs["labels"])
        for key in ("names", "seeds"):
            np.testing.assert_array_equal(out[key], inputs[key])

    @parameterized.parameters(*LAYERS)
    @pytest.mark.slow
    def test_single_images_of_a_dict(self, name):
        layer, images, labels = LAYERS[name](), random_images(6), np.arange(6)
        batch = augment(layer, images)
        inputs = {"images": images, "seeds": seeds(6), "labels": labels}
        dataset = tf.data.Dataset.from_tensor_slices(inputs).map(layer)
        singles = next(iter(dataset.batch(6)))
        np.testing.assert_allclose(singles["images"], batch, atol=SAME)
        np.testing.assert_array_equal(singles["labels"], labels)

    @parameterized.parameters(*LAYERS)
    def test_without_seeds_every_call_draws_anew(self, name):
        layer = LAYERS[name]()
        images = np.tile(random_images(1), [64, 1, 1, 1])
        first, second = layer(images).numpy(), layer(images).numpy()
        self.assertFalse(np.array_equal(first, second))
        different = np.unique(first.reshape(64, -1), axis=0)
        self.assertGreater(len(different), 1)

    @parameterized.parameters(*LAYERS)
    @pytest.mark.slow
    def test_seed_of_the_layer(self, name):
        images = random_images(32)
        for seed in (0, 7):
            first, second = (LAYERS[name](seed=seed)(images) for _ in "ab")
            np.testing.assert_array_equal(first, second)
        other = LAYERS[name](seed=8)(images)
        self.assertFalse(np.array_equal(first, other))

        def after_setting_all_seeds():
            keras.utils.set_random_seed(5)
            return LAYERS[name]()(images)

        np.testing.assert_array_equal(
            after_setting_all_seeds(), after_setting_all_seeds()
        )

    @parameterized.parameters(*LAYERS)
    def test_config(self, name):
        layer = LAYERS[name](name="x")
        config = json.loads(
            json.dumps(keras.saving.serialize_keras_object(layer))
        )
        revived = keras.saving.deserialize_keras_object(config)
        self.assertIsInstance(revived, type(layer))
        self.assertEqual(revived.get_config(), layer.get_config())
        images = random_images(8)
        np.testing.assert_array_equal(
            augment(revived, images), augment(layer, images)
        )
        self.assertEmpty(layer.weights)

    def test_seeds_pass_through_kerascv_layers(self):
        """Between ours, a layer of each of KerasCV's two base classes."""
        inputs = {
            "images": tf.constant(random_images(8)),
            "labels": tf.eye(8),
            "seeds": seeds(8),
        }
        x = views.RandomResizedCrop(24)(inputs)
        for layer in (
            keras_cv.layers.RandomFlip("horizontal", rate=1.0),
            keras_cv.layers.RandomGaussianBlur(3, (1.0, 1.0)),
        ):
            before = x["images"]
            x = layer(x)
            self.assertFalse(np.array_equal(x["images"], before))
        np.testing.assert_array_equal(x["seeds"], inputs["seeds"])
        out = views.RandomHorizontalFlip(p=1.0)(x)
        np.testing.assert_array_equal(out["images"], x["images"][:, :, ::-1])

    def test_parallel_map_never_repeats_a_draw(self):
        """Keras's SeedGenerator does, about once in a thousand images."""
        layer = views.ColorJitter(0.4, 0.4, 0.4, 0.4)
        image = random_images(1, 4, 4)[0]
        dataset = tf.data.Dataset.range(1000).map(
            lambda _: layer(image), num_parallel_calls=4
        )
        out = np.stack(list(dataset)).reshape(1000, -1)
        self.assertLen(np.unique(out, axis=0), 1000)


PIPELINES = {
    "moco_v1": views.moco_v1,
    "moco_v2": views.moco_v2,
    "simclr": views.simclr,
    "swav": views.swav,
    "small_patches": views.small_patches,
}


class PipelinesTest(LayerTest):
    @parameterized.parameters(
        ("moco_v1", 224, (0.2, 1.0), 1),
        ("simclr", 224, (0.2, 1.0), 1),
        ("moco_v2", 224, (0.2, 1.0), 2),
        ("swav", 224, (0.14, 1.0), 2),
        ("small_patches", 96, (0.05, 0.14), 2),
    )
    def test_is_the_papers_table(self, name, size, scale, version):
        crop = ("RandomResizedCrop", {"size": size, "scale": scale})
        grey = ("RandomGrayscale", {"p": 0.2})
        flip = ("RandomHorizontalFlip", {"p": 0.5})
        blur = ("RandomGaussianBlur", {"p": 0.5, "sigma": (0.1, 2.0)})
        jitter = dict.fromkeys((*NAMES, "hue"), 0.4) | {"p": 1.0}
        table = [crop, grey, ("ColorJitter", jitter), flip]
        if version == 2:
            jitter = {**jitter, "hue": 0.1, "p": 0.8}
            table = [crop, ("ColorJitter", jitter), grey, blur, flip]
        layers = PIPELINES[name]().layers
        self.assertEqual(
            [x.__class__.__name__ for x in layers], [n for n, _ in table]
        )
        for layer, (_, expected) in zip(layers, table, strict=True):
            self.assertEqual(layer.get_config(), layer.get_config() | expected)

    def test_arguments(self):
        for pipeline in PIPELINES.values():
            layers = pipeline(32, scale=(0.5, 0.9), flip=False).layers
            self.assertEqual(layers[0].size, 32)
            self.assertEqual(layers[0].scale, (0.5, 0.9))
            self.assertNotIsInstance(layers[-1], views.RandomHorizontalFlip)

    def test_in_a_graph_and_in_tf_data(self):
        view, images, keys = views.moco_v2(16), random_images(4), seeds(4)
        expected = view(images, seeds=keys)
        inputs = tf.data.Dataset.from_tensors((images, keys))
        for result in (
            next(iter(inputs.map(seeded(view)))),
            view(images[::-1], seeds=keys[::-1])[::-1],
            view(images[0], seeds=keys[0])[None],
        ):
            wanted = expected[: len(result)]
            np.testing.assert_allclose(result, wanted, atol=SAME)

    @parameterized.parameters("moco_v1", "moco_v2", "small_patches")
    @pytest.mark.slow
    def test_one_view_however_it_is_run(self, name):
        view, images, keys = PIPELINES[name](24), random_images(6), seeds(6)
        see = seeded(view)
        expected = view(images, seeds=keys)
        self.assertEqual(expected.shape, (6, 24, 24, 3))
        self.assertEqual(expected.dtype, tf.float32)
        self.assertGreaterEqual(np.min(expected), 0.0)
        self.assertLessEqual(np.max(expected), 255.0)

        inputs = tf.data.Dataset.from_tensor_slices((images, keys))
        ways = {
            "floats": view(images.astype(np.float32), seeds=keys),
            "tf.function": tf.function(see)(images, keys),
            "XLA": tf.function(see, jit_compile=True)(images, keys),
            "single images": tf.stack(
                [view(x, seeds=s) for x, s in zip(images, keys, strict=True)]
            ),
            "tf.data": next(iter(inputs.batch(6).map(see))),
            "tf.data, single images": next(iter(inputs.map(see).batch(6))),
            "another batch": view(images[::-1], seeds=keys[::-1])[::-1],
        }
        with hardware.assume(hardware.Hardware(accelerated=True)):
            ways["on an accelerator"] = tf.function(see, jit_compile=True)(
                images, keys
            )
        for way, result in ways.items():
            np.testing.assert_allclose(result, expected, atol=SAME, err_msg=way)

    def test_large_batches_in_parts_that_fit_a_cache(self):
        view = views.View(
            [views.RandomResizedCrop(24), views.RandomHorizontalFlip()]
        )
        images, keys = random_images(12), seeds(12)
        expected = tf.function(lambda: view(images, seeds=keys))()
        four = 4 * images[:4].size
        for most, whole, sizes in (
            (four, images, [4]),
            (five := four * 5 // 4, images, [4]),
            (five, images[:11], [11]),  # nothing divides it
            (four // 8, images, [12]),  # not one can be kept
            (100 * four, images, [12]),
        ):
            # Private names: the sizes of the parts show nowhere in the result.
            with (
                mock.patch.object(pipelines, "_CACHE", most),
                mock.patch.object(view, "_see", wraps=view._see) as see,
            ):
                run = tf.function(lambda x, s: view(x, seeds=s))
                found = run(whole, keys[: len(whole)])
                seen = {call.args[0].shape[0] for call in see.call_args_list}
            self.assertEqual(sorted(seen), sizes)
            np.testing.assert_array_equal(found, expected[: len(whole)])

    @pytest.mark.slow
    def test_parts_have_the_bits_of_the_whole(self):
        """A view cache depends on it."""
        view, images, keys = views.moco_v2(24), random_images(12), seeds(12)
        expected = tf.function(lambda: view(images, seeds=keys))()
        # A private name: a cache that only four of these images fit into.
        with mock.patch.object(pipelines, "_CACHE", 4 * images[:4].size):
            found = tf.function(lambda: view(images, seeds=keys))()
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.slow
    def test_single_image_under_xla(self):
        view, image, key = views.moco_v2(24), random_images(1)[0], seeds(1)[0]
        compiled = tf.function(view, jit_compile=True)
        for key in seeds(4):
            np.testing.assert_allclose(
                compiled(image, seeds=key), view(image, seeds=key), atol=SAME
            )

    @parameterized.parameters(*PIPELINES)
    def test_augments_every_image_in_its_own_way(self, name):
        view = PIPELINES[name](40, flip=False)
        image = random_images(1, 40, 40)
        images = np.tile(image, [32, 1, 1, 1])
        out = view(images, seeds=seeds(32)).numpy()
        changed = np.abs(out - images).mean(axis=(1, 2, 3))
        self.assertGreater(changed.min(), 2.0)
        for i in range(1, 32):
            apart = np.abs(out - np.roll(out, i, axis=0)).mean(axis=(1, 2, 3))
            self.assertGreater(apart.min(), 2.0)
        again = view(images, seeds=seeds(32))
        np.testing.assert_array_equal(again, out)
        other = view(images, seeds=seeds(32, step=1)).numpy()
        self.assertGreater(np.abs(other - out).mean(axis=(1, 2, 3)).min(), 2.0)

    def test_crop_ahead_of_the_rest(self):
        """The rest of a view draws what it draws after its own crop."""
        view, images, keys = views.moco_v2(24), random_images(6), seeds(6)
        ((layer, count),) = view.crops
        self.assertIs(layer, view.layers[0])
        (uniforms,) = view.crop_draws(keys)
        self.assertEqual((count, uniforms.shape), (1, (6, 1, 22)))
        boxes = layer.boxes(uniforms[:, 0].numpy(), *np.float32([40, 48]))
        crops = apply(layer, images, boxes)
        expected = view(images, seeds=keys)
        rest = tf.function(functools.partial(view, cropped=True))
        for ours in (
            view(crops, seeds=keys, cropped=True),
            rest(crops, seeds=keys),
            view(crops[:1], seeds=keys[:1], cropped=True),
        ):
            np.testing.assert_allclose(ours, expected[: len(ours)], atol=SAME)
        drawn = [view(crops, cropped=True) for _ in range(2)]
        self.assertFalse(np.array_equal(*drawn))

    def test_views_that_begin_otherwise_have_no_crop(self):
        crop = views.RandomResizedCrop(8)
        for layers in ([], [views.RandomGrayscale(), crop]):
            self.assertEmpty(views.View(layers).crops)
        half = views.multi_crop(views.View([crop]), views.View([]))
        self.assertEmpty(half.crops)

    def test_layers_of_a_view_draw_independently(self):
        flip = views.RandomHorizontalFlip(p=0.5)
        view = views.View([flip, flip])  # drawn alike, they would undo it
        image = random_images(1)
        images = np.tile(image, [400, 1, 1, 1])
        out = view(images, seeds=seeds(400)).numpy()
        self.assert_rate(np.any(out != images, axis=(1, 2, 3)), 0.5)

    def test_layers_of_keras_and_kerascv_in_a_view(self):
        view = views.View(
            [
                *views.moco_v2(24).layers,
                keras_cv.layers.RandomCutout((0.5, 0.5), (0.5, 0.5), seed=1),
                keras.layers.RandomRotation(0.1, seed=1),
                keras.layers.Rescaling(0.5),
            ]
        )
        plain = views.moco_v2(24)
        images, keys = random_images(4), seeds(4)
        out = view(images, seeds=keys)
        self.assertEqual(out.dtype, tf.float32)
        holes = np.all(np.abs(out) < 1e-3, axis=-1).mean(axis=(1, 2))
        self.assertGreater(holes.min(), 0.05)  # 1/16 in a corner
        self.assertLess(np.max(out), 128)
        self.assertFalse(np.array_equal(out, plain(images, seeds=keys)))
        dataset = tf.data.Dataset.from_tensor_slices(images).batch(4).map(view)
        self.assertEqual(next(iter(dataset)).shape, (4, 24, 24, 3))

    @parameterized.parameters("mixed_bfloat16", "mixed_float16", "float16")
    def test_stays_float32_under_any_policy(self, policy):
        images, keys = random_images(4), seeds(4)
        expected = views.moco_v2(24)(images, seeds=keys)
        previous = keras.config.dtype_policy()
        try:
            keras.config.set_dtype_policy(policy)
            view = views.moco_v2(24)
            out = view(images, seeds=keys)
            large, small = views.multi_crop(view, view, 1)(images, seeds=keys)
        finally:
            keras.config.set_dtype_policy(previous)
        self.assertEqual({out.dtype, large.dtype, small.dtype}, {tf.float32})
        np.testing.assert_array_equal(out, expected)

    @pytest.mark.slow
    def test_two_replicas(self):
        strategy = two_replicas()
        with strategy.scope():
            view = views.moco_v2(24)
        images, step = random_images(4), tf.constant(9, tf.int64)

        @tf.function
        def run(seeded):
            def replica():
                context = tf.distribute.get_replica_context()
                first = 2 * context.replica_id_in_sync_group
                keys = random.image_seeds(0, step, 2, offset=first)
                keys = keys if seeded else None
                mine = tf.constant(images)[first : first + 2]
                return view(mine if seeded else images[:2], seeds=keys)

            return strategy.experimental_local_results(strategy.run(replica))

        one = view(images, seeds=random.image_seeds(0, step, 4))
        two = tf.concat(run(True), 0)
        np.testing.assert_allclose(two, one, atol=SAME)
        self.assertFalse(np.array_equal(*run(False)))

    def test_saves_within_a_model(self):
        view = views.View(
            [
                *views.moco_v2(24, scale=(0.3, 0.9)).layers,
                keras_cv.layers.RandomFlip("vertical", rate=1.0),
            ]
        )
        model = keras.Sequential(
            [keras.Input((40, 48, 3), dtype="uint8"), view]
        )
        crops = views.multi_crop(view, views.small_patches(8), num_small=2)
        path = os.path.join(self.create_tempdir(), "views.keras")
        model.save(path)
        loaded = keras.saving.load_model(path).layers[-1]
        copies = [loaded, views.View.from_config(view.get_config())]
        images, keys = random_images(3), seeds(3)
        for copy in copies:
            np.testing.assert_array_equal(
                copy(images, seeds=keys), view(images, seeds=keys)
            )
        config = json.loads(
            json.dumps(keras.saving.serialize_keras_object(crops))
        )
        revived = keras.saving.deserialize_keras_object(config)
        for ours, theirs in zip(
            crops(images, seeds=keys), revived(images, seeds=keys), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


class MultiCropTest(LayerTest):
    def test_shapes_and_order(self):
        """Small views come view by view: all images' first, then second."""
        colours = np.arange(1, 4)[:, None, None, None] * 60
        images = np.broadcast_to(colours, [3, 32, 32, 3]).astype(np.uint8)
        large, small = (
            views.View([views.RandomResizedCrop(size)]) for size in (16, 8)
        )
        large, small = views.multi_crop(large, small, 5)(images)
        self.assertEqual(large.shape, (3, 16, 16, 3))
        self.assertEqual(small.shape, (15, 8, 8, 3))
        np.testing.assert_allclose(large[:, 0, 0, 0], [60, 120, 180], atol=0.1)
        np.testing.assert_allclose(
            small[:, 0, 0, 0], [60, 120, 180] * 5, atol=0.1
        )

    @parameterized.parameters(True, False)
    def test_views_are_independent(self, seeded):
        images = np.tile(random_images(1), [3, 1, 1, 1])
        view = views.moco_v2(16)
        crops = views.multi_crop(view, view)
        keys = seeds(3) if seeded else None
        large, small = crops(images, seeds=keys)
        both = np.concatenate([large, small])
        self.assertLen(both, 3 + 6 * 3)
        for i in range(1, len(both)):
            apart = np.abs(both - np.roll(both, i, axis=0)).mean(axis=(1, 2, 3))
            self.assertGreater(apart.min(), 2.0)
        again = np.concatenate(crops(images, seeds=keys))
        self.assertEqual(np.array_equal(again, both), seeded)

    def test_in_tf_data(self):
        crops = views.multi_crop(views.swav(16), views.small_patches(8), 2)
        images, keys = random_images(2), seeds(2)
        inputs = tf.data.Dataset.from_tensors((images, keys))
        for ours, theirs in zip(
            next(iter(inputs.map(seeded(crops)))),
            crops(images, seeds=keys),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, atol=SAME)

    @pytest.mark.slow
    def test_however_it_is_run(self):
        crops = views.multi_crop(views.swav(24), views.small_patches(12), 2)
        images, keys = random_images(3), seeds(3)
        expected = crops(images, seeds=keys)
        dataset = tf.data.Dataset.from_tensors((images, keys))
        see = seeded(crops)
        for way in (
            tf.function(see)(images, keys),
            tf.function(see, jit_compile=True)(images, keys),
            next(iter(dataset.map(see))),
        ):
            for ours, theirs in zip(way, expected, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=SAME)
                self.assertEqual(ours.shape, theirs.shape)

    @pytest.mark.slow
    def test_crops_ahead_of_the_rest(self):
        crops = views.multi_crop(views.swav(24), views.small_patches(12), 3)
        images, keys = random_images(4), seeds(4)
        self.assertEqual([count for _, count in crops.crops], [1, 3])
        parts = []
        for (layer, count), uniforms in zip(
            crops.crops, crops.crop_draws(keys), strict=True
        ):
            self.assertEqual(uniforms.shape, (4, count, 22))
            resized = [
                apply(layer, images, layer.boxes(x, *np.float32([40, 48])))
                for x in np.moveaxis(uniforms.numpy(), 1, 0)
            ]
            parts.append(np.stack(resized, 1))
        expected = crops(images, seeds=keys)
        rest = tf.function(functools.partial(crops, cropped=True))
        for way in (crops(parts, seeds=keys, cropped=True), rest(parts, keys)):
            for ours, theirs in zip(way, expected, strict=True):
                self.assertEqual(ours.shape, theirs.shape)
                np.testing.assert_allclose(ours, theirs, atol=SAME)


class AugmentTest(LayerTest):
    """Crops instead of images, as `Trainer` takes them."""

    @parameterized.named_parameters(
        ("function", lambda: tf.identity, [(2, 1, 8, 8, 3)], 0),
        ("no_crop", lambda: views.View([]), [(2, 1, 8, 8, 3)], 0),
        ("size", lambda: views.moco_v2(9), [(2, 1, 8, 8, 3)], 0),
        ("second_view", lambda: views.moco_v2(8), [(2, 1, 8, 8, 3)], 1),
        ("pair", lambda: views.moco_v2(8), [(2, 1, 8, 8, 3)] * 2, 0),
        (
            "no_pair",
            lambda: views.multi_crop(views.moco_v2(8), views.moco_v2(8)),
            [(2, 1, 8, 8, 3)],
            0,
        ),
    )
    def test_unfit_crops(self, make, shapes, stream):
        model = Trainer(views=make(), seed=0)
        crops = [tf.zeros(shape, tf.uint8) for shape in shapes]
        with self.assertRaisesRegex(
            ValueError,
            rf"{stream + 1} or more of each image.*\(2, 1, 8, 8, 3\)",
        ):
            model.augment(
                crops if len(crops) > 1 else crops[0],
                tf.constant(0, tf.int64),
                stream,
            )


class ErrorsTest(LayerTest):
    @parameterized.parameters(
        ("size=0", lambda: views.moco_v2(0)),
        ("size=-3", lambda: views.RandomResizedCrop(-3)),
        ("size=2.5", lambda: views.moco_v1(2.5)),
        ("scale=(0.0, 1.0)", lambda: views.moco_v2(8, scale=(0.0, 1.0))),
        ("scale=(0.5, 0.2)", lambda: views.swav(8, scale=(0.5, 0.2))),
        ("scale=(0.5, 1.2)", lambda: views.simclr(8, scale=(0.5, 1.2))),
        ("scale=0.2", lambda: views.RandomResizedCrop(8, scale=0.2)),
        ("ratio=(0, 1)", lambda: views.RandomResizedCrop(8, ratio=(0, 1))),
        ("p=1.1", lambda: views.ColorJitter(p=1.1)),
        ("p=-0.1", lambda: views.RandomGrayscale(p=-0.1)),
        ("p=2", lambda: views.RandomHorizontalFlip(p=2)),
        ("p=nan", lambda: views.RandomGaussianBlur(p=math.nan)),
        ("sigma=(0, 2)", lambda: views.RandomGaussianBlur((0, 2))),
        ("brightness=-1", lambda: views.ColorJitter(brightness=-1)),
        ("hue=0.6", lambda: views.ColorJitter(hue=0.6)),
        ("num_small=0", lambda: views.multi_crop(None, None, 0)),
    )
    def test_arguments(self, received, make):
        with self.assertRaisesRegex(ValueError, re.escape(received)):
            make()

    @parameterized.parameters(((4, 32, 32, 1),), ((32, 32, 4),), ((2, 32, 32),))
    def test_images_without_three_channels(self, shape):
        with self.assertRaisesRegex(ValueError, "RGB.*" + str(shape[1])):
            views.moco_v2(8)(np.zeros(shape, np.uint8))

    def test_multi_crop_of_a_single_image(self):
        crops = views.multi_crop(views.moco_v2(8), views.moco_v2(8))
        with self.assertRaisesRegex(ValueError, r"batch.*\(32, 32, 3\)"):
            crops(np.zeros([32, 32, 3], np.uint8))

    def test_ragged_images(self):
        images = [np.zeros([4, 5, 3]), np.zeros([5, 4, 3])]
        ragged = tf.ragged.stack(
            [tf.RaggedTensor.from_tensor(x) for x in images]
        )
        with self.assertRaisesRegex(ValueError, "one by one"):
            views.RandomGrayscale()(ragged)

    def test_bounding_boxes(self):
        inputs = {
            "images": np.zeros([1, 8, 8, 3], np.float32),
            "segmentation_masks": np.zeros([1, 8, 8, 1], np.float32),
        }
        with self.assertRaisesRegex(ValueError, "segmentation_masks"):
            views.RandomHorizontalFlip()(inputs)


if __name__ == "__main__":
    absltest.main()
