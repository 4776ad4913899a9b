"""What is refused as images, and what is not."""

import types

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from seed_tf.images import check_channels, check_value_range, image_size_of


class ImagesTest(parameterized.TestCase):
    @parameterized.parameters(
        [(4, 8, 8, 1)], [(4, 8, 8)], [(8, 8, 3)], [(4, 8, 8, 4)]
    )
    def test_refuses_shapes_that_are_no_rgb_batch(self, shape):
        with self.assertRaisesRegex(ValueError, r"\[B, H, W, 3\]"):
            check_channels(np.zeros(shape))

    @parameterized.parameters(
        (0.0, 1.0), (-2.1, 2.6), (0.0, np.nan), (0.0, np.inf), (-np.inf, 255.0)
    )
    def test_refuses_values_that_cannot_be_in_0_to_255(self, low, high):
        images = np.full((2, 4, 4, 3), low, "float32")
        images[0, 0, 0] = high
        for x in (images, tf.constant(images), images.astype("float64")):
            with self.assertRaisesRegex(ValueError, r"\[0, 255\].*by 255"):
                check_value_range(x)

    def test_size_of_a_model(self):
        encoder = types.SimpleNamespace(image_size=96)
        self.assertEqual(image_size_of(encoder), 96)
        self.assertEqual(image_size_of(encoder, 32), 32)
        self.assertEqual(image_size_of(object(), 32), 32)
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
            np.where(np.arange(3) == 1, 255.0, -2.0 + images),  # overshoot
            images[:0],
        ):
            check_value_range(x)


if __name__ == "__main__":
    absltest.main()
