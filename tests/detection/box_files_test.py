"""One's own images with boxes, in COCO's and Pascal VOC's formats."""

import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from seed_tf.detection import boxes, load_box_files

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
    "<xmin>21</xmin><ymin>11</ymin><xmax>60</xmax><ymax>40</ymax></bndbox>"
    "</object>"
)


def write_images(folder, count=3):
    """Image i is 40 x 80 pixels of brightness 100 i."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((40, 80, 3), 100 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def coco(change=None):
    """Image i has i objects, the second a crowd."""
    content = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 40, "width": 80}
            for i in range(3)
        ],
        "annotations": [
            {
                **{"image_id": i, "category_id": (7, 3)[j], "iscrowd": j},
                "bbox": [20, 10, 40, 30],
            }
            for i in range(3)
            for j in range(i)
        ],
    }
    if change:
        change(content)
    return json.dumps(content)


class BoxFilesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path)

    def check(self, splits=("train",)):
        (data, *_), names = load_box_files(
            str(self.root), splits, image_size=64, max_boxes=3
        )
        self.assertEqual(names, ["cat", "dog"])
        found = list(data.as_numpy_iterator())
        self.assertLen(found, 3)
        for i, (image, objects) in enumerate(found):
            # 40 x 80 pixels became 32 x 64.
            np.testing.assert_array_equal(image[:32], 100 * i)
            np.testing.assert_array_equal(image[32:], 0)
            expected = [[16, 8, 48, 32]] * i + [[-1] * 4] * (3 - i)
            np.testing.assert_allclose(objects["boxes"], expected, atol=1e-5)
            expected = ([1, 0][:i] + [-1] * 3)[:3]
            self.assertEqual(objects["classes"].tolist(), expected)
            self.assertEqual(objects["crowd"].tolist(), [0, i == 2, 0])

    @parameterized.parameters(
        "train.json",
        "train/_annotations.coco.json",
        "annotations/instances_train.json",
    )
    def test_coco(self, name):
        write_images(self.root / "train")
        (self.root / name).parent.mkdir(exist_ok=True)
        (self.root / name).write_text(coco())
        self.check()

    @parameterized.parameters(True, False)
    def test_voc(self, as_published):
        folder = self.root / ("Annotations" if as_published else "train")
        write_images(self.root / ("JPEGImages" if as_published else "train"))
        folder.mkdir(exist_ok=True)
        for i in range(3):
            objects = "".join(
                OBJECT.format(name=("dog", "cat")[j], difficult=j)
                for j in range(i)
            )
            (folder / f"{i}.xml").write_text(
                f"<annotation><filename>{i}.png</filename>{objects}</annotation>"
            )
        if as_published:
            lists = self.root / "ImageSets/Main"
            lists.mkdir(parents=True)
            (lists / "train.txt").write_text("0\n1\n2\n")
        self.check()

    @parameterized.parameters(
        (lambda c: c.pop("categories"), "train.json' is no list.*categories"),
        (lambda c: c["annotations"][0].update(category_id=1), "KeyError 1"),
        (lambda c: c["images"][0].update(file_name="x.png"), "missing: 'x"),
        (lambda c: c["images"][0].update(file_name="../x.png"), "outside"),
        (lambda c: c["categories"][1].update(name="dog"), "two categories"),
        (
            lambda c: c["images"][1].update(width=40),
            "1.png' has 80 x 40 .*40 x",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[0.1, 0.1, 0.4, 0.4]),
            r"from \(0\.1",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[20, 10, 400, 30]),
            "inside",
        ),
        (lambda c: c["annotations"][0].update(bbox=[20, 10, 0, 30]), "inside"),
    )
    def test_a_wrong_file_is_named(self, change, message):
        write_images(self.root / "train")
        (self.root / "train.json").write_text(coco(change))
        with self.assertRaisesRegex(ValueError, message):
            (data,), names = load_box_files(
                str(self.root), ["train"], image_size=64
            )
            with boxes.checked(data, len(names)) as samples:
                list(samples)

    @parameterized.parameters(
        ("<annotation>", "0.xml' cannot be read: no element|0.xml' cannot"),
        ("<annotation><object/></annotation>", "Pascal VOC"),
        (
            '<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>',
            "document type is not allowed",
        ),
    )
    def test_a_wrong_xml_is_named(self, text, message):
        write_images(self.root / "train", 1)
        (self.root / "train/0.xml").write_text(text)
        with self.assertRaisesRegex(ValueError, message):
            load_box_files(str(self.root), ["train"])

    def test_without_boxes(self):
        write_images(self.root / "train")
        with self.assertRaisesRegex(ValueError, "split 'test'.*neither"):
            load_box_files(str(self.root), ["test"])


if __name__ == "__main__":
    absltest.main()
