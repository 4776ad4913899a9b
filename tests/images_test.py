"""What is refused as images, and what is not."""

import types

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from seed_tf.images import (
    check_channels,
    check_value_range,
    checked,
    image_size_of,
    images_of,
)


class ImagesTest(parameterized.TestCase):
    @parameterized.parameters(
        [(4, 8, 8, 1)], [(4, 8, 8)], [(8, 8, 3)], [(4, 8, 8, 4)]
    )
    def test_refuses_shapes_that_are_no_rgb_batch(self, shape):
        with self.assertRaisesRegex(ValueError, r"\[B, H, W, 3\]"):
            check_channels(np.zeros(shape))

    @parameterized.parameters(
        (0.0, 1.0, "by 255"),
        (-1.0, 1.0, "by 255"),
        (-0.1, 1.1, "by 255"),  # a sharp filter's overshoot
        (-2.1, 2.6, "by 255"),
        (-123.7, 151.1, "inside the Encoder"),  # mean taken off
        (0.0, 4095.0, "by 257"),
        (0.0, np.nan, "NaN"),
        (0.0, np.inf, "infinity"),
        (-np.inf, 255.0, "infinity"),
    )
    def test_refuses_values_that_cannot_be_in_0_to_255(self, low, high, remedy):
        images = np.full((2, 4, 4, 3), low, "float32")
        images[0, 0, 0] = high
        for x in (images, tf.constant(images), images.astype("float64")):
            with self.assertRaisesRegex(ValueError, rf"\[0, 255\].*{remedy}"):
                check_value_range(x)

    @parameterized.parameters(("uint16", 65535), ("int32", -128), ("bool", 1))
    def test_refuses_integers_that_are_not_in_0_to_255(self, dtype, value):
        images = np.zeros((2, 4, 4, 3), dtype)
        images[0, 0, 0] = value
        with self.assertRaisesRegex(ValueError, rf"Received: {dtype} values"):
            check_value_range(images)

    def test_size_of_a_model(self):
        encoder = types.SimpleNamespace(image_size=96)
        self.assertEqual(image_size_of(encoder), 96)
        self.assertEqual(image_size_of(encoder, 32), 32)
        self.assertEqual(image_size_of(object(), 32), 32)
        fixed = types.SimpleNamespace(input_shape=(None, 48, 48, 3))
        for model in (fixed, types.SimpleNamespace(backbone=fixed)):
            self.assertEqual(image_size_of(model), 48)
        with self.assertRaisesRegex(ValueError, "set `encoder.image_size`"):
            image_size_of(object())
        with self.assertRaisesRegex(ValueError, "Received: image_size=0"):
            image_size_of(encoder, 0)

    def test_lets_images_pass(self):
        images = np.zeros((2, 4, 4, 3))
        check_channels(images)
        for x in (
            images,  # black
            images + 200.0,
            images.astype("uint8") + np.uint8(1),  # any uint8
            images.astype("uint16") + np.uint16(1),
            images + np.linspace(0, 1.9, 3),  # dark
            images.astype("float16") + np.float16(255),
            np.where(np.arange(3) == 1, 255.0, -2.0 + images),  # overshoot
            images[:0],
        ):
            check_value_range(x)

    def test_images_of_every_form_of_a_batch(self):
        x, y = np.zeros((2, 4, 4, 3)), np.zeros(2)
        for batch in (
            x,
            (x,),
            [x],
            ([x],),
            (x, y),
            {"image": x, "label": y},
            ({"images": x}, y),
        ):
            self.assertIs(images_of(batch), x)
        cached = {"images": x, "keys": y}
        self.assertIs(images_of((cached, y)), cached)
        with self.assertRaisesRegex(ValueError, "Received: a dict of 'pixels'"):
            images_of({"pixels": x})
        ragged = tf.ragged.stack([x[0], x[0, :2]])
        objects = np.array([x[0], x[0, :2]], dtype=object)
        for batch in (ragged, objects):
            with self.assertRaisesRegex(ValueError, "several sizes.*Resize"):
                images_of(batch)

    def test_a_check_of_a_generator_loses_no_batch(self):
        images = np.arange(6, dtype="float32").reshape(6, 1, 1, 1, 1) * 40
        batches = images + np.zeros((1, 2, 4, 4, 3), "float32")
        kept = checked((batch,) for batch in batches)
        for got, batch in zip(kept, batches, strict=True):
            np.testing.assert_array_equal(got[0], batch)

    def test_a_data_set_of_uint8_is_not_read(self):
        def fail():
            raise AssertionError("read")

        spec = tf.TensorSpec([2, 4, 4, 3], tf.uint8)
        data = tf.data.Dataset.from_generator(fail, output_signature=spec)
        self.assertIs(checked(data), data)

    def test_a_list_of_images_is_no_batch(self):
        with self.assertRaisesRegex(ValueError, r"list of 3.*np\.stack"):
            checked([np.zeros((4, 4, 3))] * 3)


if __name__ == "__main__":
    absltest.main()
