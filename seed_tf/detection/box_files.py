"""Reads one's own images with boxes: COCO's JSON, Pascal VOC's XML."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Sequence
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
import tensorflow as tf

from seed_tf.datasets.decoding import ENDINGS, EncodedImage
from seed_tf.detection.boxes import check_size, padded
from seed_tf.io.files import read_json
from seed_tf.io.pipelines import ALL_CORES, steady

_LARGEST_XML = 2**20  # bytes
_FIELDS = ("xmin", "ymin", "xmax", "ymax")


@dataclasses.dataclass
class _Annotated:
    """An image file and its objects.

    Attributes:
        path: of the image.
        source: file that describes the objects.
        size: (width, height) in pixels that `source` states, or None.
        boxes: (x1, y1, x2, y2) in pixels.
        names: names of the classes.
        crowd: whether each object is a crowd or difficult.
    """

    path: str
    source: str
    size: tuple[int, int] | None
    boxes: list[Sequence[float]] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    crowd: list[bool] = dataclasses.field(default_factory=list)

    def add(self, box: Sequence[float], name: str, crowd: bool) -> None:
        self.boxes.append(box)
        self.names.append(name)
        self.crowd.append(crowd)


def load_box_files(
    data_dir: str,
    splits: Sequence[str],
    *,
    image_size: int = 512,
    max_boxes: int = 100,
) -> tuple[list[tf.data.Dataset], list[str]]:
    """Reads folders of images with boxes.

    Each split has its boxes either in one file in COCO's format,
    `<split>.json`, `<split>/_annotations.coco.json` or
    `annotations/instances_<split>.json`, or in Pascal VOC's XML, one file an
    image: `<split>/*.xml`, or `Annotations/*.xml` with the names of the images
    in `ImageSets/Main/<split>.txt`. The images lie in `<split>/`, `images/`,
    `JPEGImages/` or beside the XML.

    Args:
        data_dir: str, folder.
        splits: names of the splits.
        image_size: positive int, S, a multiple of 32.
        max_boxes: positive int, M, of one image.

    Returns:
        A data set for each split, see `seed_tf.detection` and `load_boxes`,
        and the names of all classes, sorted.

    Raises:
        ValueError: if a split, an image or a box is missing, or a file is
            damaged. The message names the file.
    """
    check_size(image_size)
    found = [_read(data_dir, split) for split in splits]
    names = sorted({n for images in found for one in images for n in one.names})
    for images in found:
        for one in images:
            if len(one.boxes) > max_boxes:
                raise ValueError(
                    f"{one.path!r} has {len(one.boxes)} boxes. Expected at "
                    f"most max_boxes={max_boxes}."
                )
    numbers = {name: i for i, name in enumerate(names)}
    return [
        _data(images, numbers, image_size, max_boxes) for images in found
    ], names


def _data(images, numbers, image_size, max_boxes):
    def read(number):
        one = images[number]
        try:
            with open(one.path, "rb") as file:
                image = EncodedImage(file.read())
            pixels = image.pixels()
        except Exception as error:  # decoders raise anything for damaged data
            raise ValueError(f"Image file {one.path!r}: {error}") from error
        height, width = pixels.shape[:2]
        if one.size not in (None, (width, height)):
            raise ValueError(
                f"Image file {one.path!r} has {width} x {height} pixels, "
                f"upright by EXIF. {one.source!r} states {one.size[0]} x "
                f"{one.size[1]}."
            )
        boxes = np.reshape(one.boxes, [-1, 4]).astype("float32")
        for box, crowd in zip(boxes, one.crowd, strict=True):
            x1, y1, x2, y2 = box
            inside = min(x1, y1) >= -1 and x2 <= width + 1 and y2 <= height + 1
            if not (crowd or (inside and max(1, x1) < x2 and max(1, y1) < y2)):
                raise ValueError(
                    f"Image file {one.path!r} has {width} x {height} pixels. "
                    f"{one.source!r} states a box from ({x1:g}, {y1:g}) to "
                    f"({x2:g}, {y2:g}). Expected pixels inside the image."
                )
        x1, y1, x2, y2 = boxes.T
        return (
            pixels,
            np.stack([y1 / height, x1 / width, y2 / height, x2 / width], 1),
            np.array([numbers[name] for name in one.names], "float32"),
            np.array(one.crowd, bool),
        )

    def example(number):
        image, boxes, classes, crowd = tf.numpy_function(
            read,
            [number],
            [tf.uint8, tf.float32, tf.float32, tf.bool],
            stateful=False,
        )
        image.set_shape([None, None, 3])
        boxes.set_shape([None, 4])
        classes.set_shape([None])
        crowd.set_shape([None])
        return padded(image, boxes, classes, crowd, image_size, max_boxes)

    data = steady(tf.data.Dataset.range(len(images)))
    return data.map(example, ALL_CORES)


def _read(data_dir, split):
    """Returns the images of a split."""
    folder = os.path.join(data_dir, split)
    for name in (
        f"{split}.json",
        os.path.join(split, "_annotations.coco.json"),
        os.path.join("annotations", f"instances_{split}.json"),
    ):
        path = os.path.join(data_dir, name)
        if os.path.exists(path):
            return _coco(path, [folder, os.path.join(data_dir, "images")])
    listed = os.path.join(data_dir, "ImageSets", "Main", f"{split}.txt")
    if os.path.exists(listed):
        with open(listed, encoding="utf-8") as file:
            names = [line.split()[0] for line in file if line.strip()]
        files = [
            os.path.join(data_dir, "Annotations", f"{n}.xml") for n in names
        ]
    else:
        files = []
        if os.path.isdir(folder):
            files = [
                os.path.join(folder, n)
                for n in sorted(os.listdir(folder))
                if n.lower().endswith(".xml")
            ]
    if not files:
        raise ValueError(
            f"Expected boxes of the split {split!r} in {data_dir!r}: "
            f"{split}.json in COCO's format, or {split}/*.xml in Pascal VOC's. "
            "Received: neither."
        )
    return [_voc(path, data_dir, folder) for path in files]


def _coco(path, folders):
    content = read_json(path)
    try:
        names = {c["id"]: str(c["name"]) for c in content["categories"]}
        listed = {x["id"]: x for x in content["images"]}
        files = {key: x["file_name"] for key, x in listed.items()}
        sizes = {
            key: (x["width"], x["height"]) if "width" in x else None
            for key, x in listed.items()
        }
        objects = []
        for each in content["annotations"]:
            x, y, width, height = map(float, each["bbox"])
            box = x, y, x + width, y + height
            crowd = bool(each.get("iscrowd"))
            name = names[each["category_id"]]
            objects.append((files[each["image_id"]], box, name, crowd))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path!r} is no list of objects in COCO's format: "
            f"{type(error).__name__} {error}."
        ) from error
    twice = [n for n, k in collections.Counter(names.values()).items() if k > 1]
    if twice:
        raise ValueError(f"{path!r} has two categories named {twice[0]!r}.")
    images = {
        file: _Annotated(_find(file, folders, path), path, sizes[key])
        for key, file in files.items()
    }
    for file, box, name, crowd in objects:
        images[file].add(box, name, crowd)
    return [images[file] for file in sorted(images)]


def _voc(path, data_dir, folder):
    root = _parse(path)
    stem = os.path.splitext(os.path.basename(path))[0]
    name = os.path.basename((root.findtext("filename") or stem).strip())
    folders = [
        *(os.path.dirname(path), folder),
        *(os.path.join(data_dir, n) for n in ("JPEGImages", "images")),
    ]
    one = _Annotated(_find(name, folders, path, stem), path, None)
    try:
        size = root.find("size")
        if size is not None:
            width, height = (int(size.findtext(k)) for k in ("width", "height"))
            # Tools that do not know the size write 0.
            one.size = (width, height) if width and height else None
        for each in root.iter("object"):
            box = each.find("bndbox")
            x1, y1, x2, y2 = (float(box.findtext(k)) for k in _FIELDS)
            difficult = (each.findtext("difficult") or "0").strip() == "1"
            # VOC counts pixels from 1, and includes the last.
            box = x1 - 1, y1 - 1, x2, y2
            one.add(box, each.findtext("name").strip(), difficult)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path!r} is no annotation in Pascal VOC's format: {error}."
        ) from error
    return one


def _find(name, folders, source, stem=None):
    """Returns the path of an image, which lies in one of `folders`."""
    names = [name]
    if stem is not None:  # tools write a name without or with another ending
        names += [stem + ending for ending in ENDINGS]
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        raise ValueError(f"{source!r} names an image outside: {name!r}.")
    for folder in folders:
        for each in names:
            path = os.path.join(folder, each)
            if os.path.isfile(path):
                return path
    raise ValueError(
        f"{source!r} names an image that is missing: {name!r}. Searched: "
        f"{', '.join(map(repr, folders))}."
    )


def _parse(path):
    """Parses an XML file without document type, and so without entities."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_):
        raise ValueError("a document type is not allowed")

    parser.StartDoctypeDeclHandler = refuse
    try:
        if os.path.getsize(path) > _LARGEST_XML:
            raise ValueError(f"more than {_LARGEST_XML:,} bytes")
        with open(path, "rb") as file:
            parser.Parse(file.read(), True)
    except (expat.ExpatError, ValueError, OSError) as error:
        raise ValueError(f"{path!r} cannot be read: {error}.") from error
    return builder.close()
