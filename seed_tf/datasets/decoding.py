"""Image files to uint8 RGB pixels, no more of them than are needed.

PIL reads the header and is the reference for every pixel: what comes out is
what torchvision's loader, `convert("RGB")`, would give, but that 16-bit grey is
scaled instead of clipped, and EXIF orientation is respected. Transparency is
dropped, not composited. Of a JPEG only the rectangle that is asked for is
decoded, by TensorFlow, to the same bits, unless that is half of it or more.

Anything may be raised for a damaged file: decoders do.
"""

import io
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from seed_tf.images import shorter_side

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
# PIL's own limit, half of the one at which it refuses: 256 MB of RGB.
MAX_PIXELS = 89_478_485

_ORIENTATION = 0x0112
# EXIF orientation: whether the stored image must be transposed, and then
# mirrored top to bottom, and left to right, to stand upright.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def centre_crops(paths: Iterable[str], image_size: int = 224) -> np.ndarray:
    """Reads image files as evaluation sees them.

    The shorter side is resized as 256 is to 224, and the central square is cut
    out.

    Args:
        paths: Image files, at least one.
        image_size: Side S of the squares, in pixels.

    Returns:
        uint8 `[N, S, S, 3]`, RGB in [0, 255].

    Raises:
        ValueError: if a file cannot be read.
    """
    squares = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                image = EncodedImage(file.read())
            squares.append(image.square(image_size, shorter_side(image_size)))
        except Exception as error:  # decoders raise anything for damaged data
            raise ValueError(
                f"{str(path)!r} cannot be read: {error}"
            ) from error
    return np.stack(squares)


class EncodedImage:
    """An image file of which the header has been read, and nothing decoded.

    Args:
        data: bytes, the file.

    Attributes:
        height: int, of the upright image.
        width: int, of the upright image.

    Raises:
        Exception: of many kinds, if this is no image that can be decoded.
    """

    def __init__(self, data):
        if not data:
            raise ValueError("the file is empty")
        self._data = data
        try:
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(
                "not a JPEG, PNG, WebP, BMP or GIF image"
            ) from None
        width, height = self._image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"the header announces {width} x {height} pixels, more than "
                f"{MAX_PIXELS:,}"
            )
        # A phone's JPEG with a second picture behind the first is an MPO.
        self._is_jpeg = self._image.format in ("JPEG", "MPO")
        if self._is_jpeg and data.rfind(b"\xff\xd9", self._image.fp.tell()) < 0:
            # A crop may not reach the end, and must not depend on it.
            raise ValueError("the JPEG is truncated")
        self._turns = _TURNS[_orientation(self._image)]
        transposed = self._turns[0]
        self.height, self.width = (
            (width, height) if transposed else (height, width)
        )

    def crops(self, groups):
        """Crops, each resized to a square as PIL resizes it, antialiased.

        Only the smallest rectangle that holds all crops is decoded; of a JPEG
        at a half, quarter or eighth of its size where every crop still has at
        least twice the pixels along each side that are asked for.

        Args:
            groups: list of pairs: boxes int `[n, 4]` (top, left, height and
                width, in pixels of the upright image) and the side S of the
                squares.

        Returns:
            list of uint8 `[n, S, S, 3]`.
        """
        groups = [
            ([self._stored(box, self.height, self.width) for box in boxes], s)
            for boxes, s in groups
        ]
        reduce = 1
        if self._is_jpeg:
            spare = min(
                min(b[2:]) / size for boxes, size in groups for b in boxes
            )
            while reduce < 8 and spare >= 4 * reduce:
                reduce *= 2
        cells = np.array(
            [_cells(b, reduce) for boxes, _ in groups for b in boxes]
        )
        window = [*cells[:, :2].min(0), *cells[:, 2:].max(0)]
        pixels, top, left = self._decode([int(x) for x in window], reduce)

        def crop(box, size):
            y0, x0, y1, x1 = _cells(box, reduce)
            y, x, height, width = (side / reduce for side in box)
            # Cut out first: what lies beyond must not bleed in.
            part = pixels.crop((x0 - left, y0 - top, x1 - left, y1 - top))
            part = part.resize(
                (size, size),
                Image.Resampling.BILINEAR,
                (x - x0, y - y0, x + width - x0, y + height - y0),
            )
            return self._upright(part)

        return [
            np.stack([crop(box, size) for box in boxes])
            for boxes, size in groups
        ]

    def square(self, size, shorter):
        """The central square, after resizing until the shorter side fits.

        Sizes and offsets are rounded as torchvision's Resize and CenterCrop
        round them: down, and half to even.

        Args:
            size: positive int, S.
            shorter: int, at least S, what the shorter side is resized to.

        Returns:
            uint8 `[S, S, 3]`.
        """
        least = min(self.height, self.width)
        height, width = (
            side * shorter // least for side in (self.height, self.width)
        )
        box = round((height - size) / 2), round((width - size) / 2), size, size
        top, left, *_ = self._stored(box, height, width)
        if self._turns[0]:
            height, width = width, height
        stored_width, stored_height = self._image.size
        pixels, *_ = self._decode([0, 0, stored_height, stored_width])
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        return self._upright(pixels.crop((left, top, left + size, top + size)))

    def _stored(self, box, height, width):
        """Where a box of the upright image lies in the image as stored."""
        transposed, top_down, left_right = self._turns
        y, x, h, w = map(int, box)
        y = height - y - h if top_down else y
        x = width - x - w if left_right else x
        return (x, y, w, h) if transposed else (y, x, h, w)

    def _upright(self, image):
        transposed, top_down, left_right = self._turns
        pixels = np.asarray(image)
        pixels = pixels.transpose(1, 0, 2) if transposed else pixels
        return pixels[:: -1 if top_down else 1, :: -1 if left_right else 1]

    def _decode(self, window, reduce=1):
        """The stored image, `reduce` times smaller, or a part of it, in RGB.

        Args:
            window: top, left, bottom, right of what is needed, in pixels of
                the smaller image.
            reduce: 1, 2, 4 or 8.

        Returns:
            PIL image, and its top and left.
        """
        y0, x0, y1, x1 = window
        width, height = (-(-side // reduce) for side in self._image.size)
        # For half of an image and more, PIL is as fast with all of it.
        partly = reduce > 1 or (y1 - y0) * (x1 - x0) < 0.5 * height * width
        if self._is_jpeg and partly and self._image.mode in ("RGB", "L"):
            # A pixel more all around: colour is interpolated from it.
            top, left = max(y0 - 1, 0), max(x0 - 1, 0)
            bottom, right = min(y1 + 1, height), min(x1 + 1, width)
            try:
                pixels = tf.io.decode_and_crop_jpeg(
                    self._data,
                    [top, left, bottom - top, right - left],
                    channels=3,
                    ratio=reduce,
                    # The default is another, less exact, DCT than PIL's.
                    dct_method="INTEGER_ACCURATE",
                )
                return Image.fromarray(pixels.numpy()), top, left
            except tf.errors.InvalidArgumentError:
                pass  # PIL decides, and says what is wrong.
        pixels = _rgb(self._image)
        return pixels.reduce(reduce) if reduce > 1 else pixels, 0, 0


def _cells(box, reduce):
    """(top, left, bottom, right) of a box in pixels `reduce` times larger."""
    y, x, height, width = box
    y1, x1 = -(-(y + height) // reduce), -(-(x + width) // reduce)
    return y // reduce, x // reduce, y1, x1


def _orientation(image):
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF does not make a bad image
        orientation = 1
    return orientation if orientation in _TURNS else 1


def _rgb(image):
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    # PIL warns that it drops it from a palette.
    image.info.pop("transparency", None)
    return image.convert("RGB")
