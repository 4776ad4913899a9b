"""The walk over folders, with what systems leave behind in them."""

import collections
import os

from absl.testing import absltest, parameterized

from seed_tf import datasets
from seed_tf.datasets import walking
from seed_tf.datasets.folders import ImageFolder


class WalkingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = self.create_tempdir().full_path

    def write(self, *names):
        for name in names:
            path = os.path.join(self.root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb"):
                pass

    def walked(self, *args):
        return [
            os.path.relpath(path, self.root)
            for path in datasets.image_files(self.root, *args)
        ]

    def test_all_endings(self):
        names = ["a.jpg", "b.JPEG", "c.jpe", "d.JFIF", "e.png", "f.webp"]
        names += ["g.gif", "h.bmp", "i.tif", "j.TIFF"]
        self.write(*names)
        self.assertEqual(self.walked(), names)

    def test_leaves_out_what_systems_leave_behind(self):
        folders = ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"]
        folders += [".ipynb_checkpoints", "__MACOSX", ".Trashes", "@Recycle"]
        folders += ["System Volume Information", "#snapshot", "__pycache__"]
        self.write("cat/1.png", "cat/._1.png", "cat/Thumbs.db", ".DS_Store")
        self.write("cat/desktop.ini")
        for name in folders:
            self.write(f"{name}/1.png", f"cat/{name}/2.png")
        left_out = collections.Counter()
        self.assertEqual(self.walked(left_out), ["cat/1.png"])
        self.assertEqual(left_out, {})
        self.assertEqual(ImageFolder(self.root, "train")[0][1], 0)

    def test_a_folder_of_such_a_name_can_be_asked_for(self):
        self.write("lost+found/1.png")
        self.root = os.path.join(self.root, "lost+found")
        self.assertEqual(self.walked(), ["1.png"])

    def test_counts_the_other_files(self):
        self.write("a.png", "b.txt", "c/d.TXT", "c/raw.cr2", "c/README", "e.p")
        expected = {".txt": 2, ".cr2": 1, "": 1, ".p": 1}
        left_out = collections.Counter()
        self.assertEqual(self.walked(left_out), ["a.png"])
        self.assertEqual(left_out, expected)
        self.assertEqual(ImageFolder(self.root, "train").left_out, expected)
        self.assertEqual(
            walking.listed(left_out),
            "2 .txt, 1 without ending, 1 .cr2, 1 .p",
        )

    def test_many_endings_are_summed(self):
        counts = {f".{i}": 20 - i for i in range(10)}
        self.assertEndsWith(
            walking.listed(counts), ", 13 .7, 23 of other endings"
        )

    def test_no_images(self):
        self.write("a.txt", "b.heic.part")
        with self.assertRaisesRegex(
            ValueError, r"\.tiff.*Received: 1 \.part, 1 \.txt\.$"
        ):
            ImageFolder(self.root, "train")
        error = walking.no_images("photos", {".heic": 3})
        self.assertIn("pip install 'seed_tf[heif]'", str(error))


if __name__ == "__main__":
    absltest.main()
