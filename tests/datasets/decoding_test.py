"""Central squares of images of any shape, against PIL."""

import io
import resource

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from PIL import Image

from seed_tf.datasets.decoding import EncodedImage
from seed_tf.export.decoding import decode

THIN = (1, 20_000), (20_000, 1), (1, 65_000), (65_000, 1)


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def picture(height, width):
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def square(image, size, shorter):
    """The whole image is resized, and its centre cut out."""
    width, height = (side * shorter // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def thin(height, width):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class SquareTest(parameterized.TestCase):
    @parameterized.product(
        sides=(
            *((375, 500), (500, 375), (333, 334), (64, 64), (31, 200), (9, 8)),
            *((1, 1), (300, 77), (5, 160), (161, 5), (1023, 640)),
        ),
        sizes=((64, 73), (50, 50)),
    )
    def test_ordinary_images_are_pils_to_the_bit(self, sides, sizes):
        image = picture(*sides)
        ours = EncodedImage(encoded(image)).square(*sizes)
        np.testing.assert_array_equal(square(image, *sizes), ours)

    @parameterized.parameters(*THIN)
    def test_thin_images_take_little_memory(self, height, width):
        """Resized as a whole, the first has 1.3 billion pixels."""
        image = thin(height, width)
        data = encoded(image)
        before = peak_mb()
        ours = EncodedImage(data).square(224, 256)
        self.assertLess(peak_mb() - before, 150)
        # Of the centre the same, as all that is far away has no weight.
        top, left = max(height // 2 - 6, 0), max(width // 2 - 6, 0)
        middle = image.crop((left, top, min(left + 12, width), top + 12))
        middle = middle.crop((0, 0, min(12, width), min(12, height)))
        expected = square(middle, 224, 256).astype(int)
        self.assertLessEqual(np.abs(expected - ours).max(), 1)

    @pytest.mark.slow
    def test_a_server_takes_as_little(self):
        files = [encoded(thin(*sides)) for sides in THIN]
        expected = [EncodedImage(file).square(224, 256) for file in files]
        before = peak_mb()
        served, problems = decode(np.array(files), 224, 256)
        self.assertLess(peak_mb() - before, 300)
        self.assertEqual(set(problems.numpy()), {b""})
        np.testing.assert_array_equal(served, expected)


if __name__ == "__main__":
    absltest.main()
