"""Decodes image files to uint8 RGB pixels, and only the pixels needed.

PIL reads the header and is the reference for every pixel. The pixels are those
of torchvision's loader, `convert("RGB")`, with two exceptions: 16-bit grey is
scaled instead of clipped, and EXIF orientation is respected. Transparency is
dropped, not composited. TensorFlow decodes a rectangle of a JPEG to the same
bits, where the rectangle is less than half of the image.

A damaged file may raise any kind of exception.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError, features

from seed_tf.datasets import resizing
from seed_tf.images import shorter_side
from seed_tf.io.extras import extra

_HEIF = "HEIF"
# PIL's names of the formats that are read, and the endings of their files.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}
if features.check("avif"):
    FORMATS["AVIF"] = (".avif",)
if importlib.util.find_spec("pillow_heif"):
    FORMATS[_HEIF] = (".heic", ".heif")
ENDINGS = sum(FORMATS.values(), ())
# PIL warns from here on, and refuses twice as many: 256 MB of RGB.
MAX_PIXELS = 89_478_485
# Pixels of a resized image, 64 MB in PIL. An image of 1 x 20,000 pixels would
# have 1.3 billion: its square is cut out before.
_MOST_RESIZED = 2**24

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
    """An image file whose header is read, and whose pixels are not decoded.

    Args:
        data: bytes, the file.

    Attributes:
        height: int, of the upright image.
        width: int, of the upright image.

    Raises:
        Exception: of many kinds, if the file cannot be decoded.
    """

    def __init__(self, data: bytes) -> None:
        if not data:
            raise ValueError("the file is empty")
        self._data = data
        self._image = _open(data)
        width, height = self._image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"the header announces {width} x {height} pixels, more than "
                f"{MAX_PIXELS:,}"
            )
        # PIL's name of a JPEG with a second picture, as phones write, is MPO.
        self._is_jpeg = self._image.format in ("JPEG", "MPO")
        file = self._image.fp
        if (
            self._is_jpeg
            and file is not None
            and data.rfind(b"\xff\xd9", file.tell()) < 0
        ):
            # A crop may not reach the end, but must fail like other crops.
            raise ValueError("the JPEG is truncated")
        # Each scan of a progressive JPEG passes over all pixels. Ten are usual.
        scans = data.count(b"\xff\xda") if self._is_jpeg else 0
        if scans * width * height > 16 * MAX_PIXELS:
            raise ValueError(
                f"the JPEG has {scans:,} scans of {width} x {height} pixels, "
                f"more than {16 * MAX_PIXELS:,} pixels together"
            )
        # PIL turns a TIFF upright by itself.
        upright = self._image.format == "TIFF"
        self._turns = _TURNS[1 if upright else _orientation(self._image)]
        transposed = self._turns[0]
        self.height, self.width = (
            (width, height) if transposed else (height, width)
        )

    def crops(
        self, groups: Sequence[tuple[np.ndarray, int]]
    ) -> list[np.ndarray]:
        """Cuts out crops, and resizes each to a square with PIL, antialiased.

        Only the smallest rectangle around all crops is decoded. A JPEG is
        decoded at a half, quarter or eighth of its size while each side of
        every crop keeps at least twice the pixels of the result.

        Args:
            groups: list of pairs: boxes int `[n, 4]` (top, left, height and
                width, in pixels of the upright image) and the side S of the
                squares.

        Returns:
            list of uint8 `[n, S, S, 3]`.
        """
        stored = [
            ([self._stored(box, self.height, self.width) for box in boxes], s)
            for boxes, s in groups
        ]
        reduce = 1
        if self._is_jpeg:
            spare = min(
                min(b[2:]) / size for boxes, size in stored for b in boxes
            )
            while reduce < 8 and spare >= 4 * reduce:
                reduce *= 2
        cells = np.array(
            [_cells(b, reduce) for boxes, _ in stored for b in boxes]
        )
        window = [*cells[:, :2].min(0), *cells[:, 2:].max(0)]
        pixels, top, left = self._decode([int(x) for x in window], reduce)

        def crop(box, size):
            y0, x0, y1, x1 = _cells(box, reduce)
            y, x, height, width = (side / reduce for side in box)
            # Cut out first: pixels beyond the crop must not bleed in.
            part = pixels.crop((x0 - left, y0 - top, x1 - left, y1 - top))
            part = part.resize(
                (size, size),
                Image.Resampling.BILINEAR,
                (x - x0, y - y0, x + width - x0, y + height - y0),
            )
            return self._upright(part)

        return [
            np.stack([crop(box, size) for box in boxes])
            for boxes, size in stored
        ]

    def square(self, size: int, shorter: int) -> np.ndarray:
        """Resizes the image, and returns its central square.

        Rounding is that of torchvision's Resize, which rounds sizes down, and
        CenterCrop, which rounds offsets half to even.

        Args:
            size: positive int, S.
            shorter: int, at least S, the resized image's shorter side.

        Returns:
            uint8 `[S, S, 3]`.
        """
        stored_width, stored_height = self._image.size
        pixels, *_ = self._decode([0, 0, stored_height, stored_width])
        least = min(self.height, self.width)
        height, width = (
            side * shorter // least for side in (self.height, self.width)
        )
        if height * width > _MOST_RESIZED:
            image = resizing.square(
                tf.constant(np.asarray(pixels)), size, shorter, self._turns
            )
            return image.numpy()
        box = round((height - size) / 2), round((width - size) / 2), size, size
        top, left, *_ = self._stored(box, height, width)
        if self._turns[0]:
            height, width = width, height
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        return self._upright(pixels.crop((left, top, left + size, top + size)))

    def pixels(self) -> np.ndarray:
        """Returns the whole upright image, uint8 `[H, W, 3]`."""
        return self._upright(self._decode([0, 0, *self._image.size[::-1]])[0])

    def _stored(self, box, height, width):
        """Returns a box of the upright image in the stored image."""
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
        """Decodes the stored image, or a part, `reduce` times smaller, to RGB.

        Args:
            window: top, left, bottom, right of the part to decode, in pixels
                of the smaller image.
            reduce: 1, 2, 4 or 8.

        Returns:
            PIL image, and its top and left.
        """
        y0, x0, y1, x1 = window
        width, height = (-(-side // reduce) for side in self._image.size)
        # PIL decodes the whole image as fast as half of it.
        partly = reduce > 1 or (y1 - y0) * (x1 - x0) < 0.5 * height * width
        if self._is_jpeg and partly and self._image.mode in ("RGB", "L"):
            # With a margin of one pixel, from which colour is interpolated.
            top, left = max(y0 - 1, 0), max(x0 - 1, 0)
            bottom, right = min(y1 + 1, height), min(x1 + 1, width)
            try:
                pixels = tf.io.decode_and_crop_jpeg(
                    self._data,
                    [top, left, bottom - top, right - left],
                    channels=3,
                    ratio=reduce,
                    # PIL's DCT; the default is less exact.
                    dct_method="INTEGER_ACCURATE",
                )
                return Image.fromarray(pixels.numpy()), top, left
            except tf.errors.InvalidArgumentError:
                pass  # PIL decides, and names the damage.
        pixels = _rgb(self._image)
        return pixels.reduce(reduce) if reduce > 1 else pixels, 0, 0


def _cells(box, reduce):
    """Returns (top, left, bottom, right) in pixels `reduce` times larger."""
    y, x, height, width = box
    y1, x1 = -(-(y + height) // reduce), -(-(x + width) // reduce)
    return y // reduce, x // reduce, y1, x1


def _open(data):
    formats = [name for name in FORMATS if name != _HEIF]
    if data[4:10] == b"ftyphe" or data[4:12] in (b"ftypmif1", b"ftypmsf1"):
        _register_heif()
        formats.append(_HEIF)
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise ValueError(
            "not a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC image"
        ) from None


@functools.cache
def _register_heif():
    with extra("heif", "HEIC images"):
        import pillow_heif
    pillow_heif.register_heif_opener()


def _orientation(image):
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # the image may be intact despite damaged EXIF
        orientation = 1
    return orientation if orientation in _TURNS else 1


def _rgb(image):
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(
            "its pixels are 32-bit numbers of unknown range; store 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    # Without this, PIL warns that it drops the transparency of a palette.
    image.info.pop("transparency", None)
    return image.convert("RGB")
