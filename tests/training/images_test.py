"""The images of a run: their identity, and going on after they changed."""

import os
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from seed_tf.config import DistillConfig
from seed_tf.training.images import RunImages


class RunImagesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.write(*range(40))

    def write(self, *values):
        """Writes grey images whose values are also their names."""
        for value in values:
            image = Image.new("RGB", (8, 8), (value,) * 3)
            image.save(os.path.join(self.folder, f"{value:03}.png"))

    def images(self, begun=None, **settings):
        config = DistillConfig(
            data_dir=self.folder,
            image_size=8,
            batch_size=8,
            epochs=3,
            **{"held_out": 12, **settings},
        )
        return RunImages(
            config,
            lambda images: images,
            begun=begun and begun.identity,
            held_out_names=begun.held_out_names if begun else (),
        )

    def values(self, batches):
        return [int(x) for batch in batches for x in np.mean(batch, (1, 2, 3))]

    def test_identity(self):
        begun = self.images()
        self.assertEqual(begun.steps_per_epoch, 3)
        self.assertEqual(begun.identity["images"], 40)
        self.assertEqual(
            sorted(begun.held_out_names),
            [f"{x:03}.png" for x in sorted(self.values(begun.unseen()))],
        )
        again = self.images(begun)
        self.assertEqual(again.identity, begun.identity)
        self.assertEqual(again.held_out_names, begun.held_out_names)

    @parameterized.parameters(
        ("added", "40 then, 41 now. Start"),
        ("removed", "40 then, 39 now. Start"),
        ("renamed", "40 then, 40 now, of other names or sizes. Start"),
        ("resized", "40 then, 40 now, of other names or sizes. Start"),
    )
    def test_other_images_are_refused(self, change, message):
        begun = self.images()
        path = os.path.join(self.folder, "000.png")
        if change == "added":
            self.write(50)
        elif change == "removed":
            os.remove(path)
        elif change == "renamed":
            os.rename(path, os.path.join(self.folder, "x.png"))
        else:
            Image.new("RGB", (500, 500)).save(path)
        with self.assertRaisesRegex(
            ValueError,
            f"{message} anew with `overwrite=True`, .*`output`, .*"
            "`data_changed='continue'`",
        ):
            self.images(begun)

    def test_continue_keeps_the_schedule_and_the_held_out_images_out(self):
        begun = self.images()
        held_out = self.values(begun.unseen())
        os.remove(os.path.join(self.folder, begun.held_out_names[0]))
        self.write(*range(100, 130))
        here = self.images(begun, data_changed="continue")
        self.assertEqual(here.steps_per_epoch, 3)
        self.assertCountEqual(self.values(here.unseen()), held_out[1:])
        batches = list(here.training(4))
        self.assertGreaterEqual(len(batches), 3 * 3 - 4)
        seen = {x for step in range(2) for x in self.values(batches)}
        self.assertEmpty(seen & set(held_out))
        self.assertTrue(seen & set(range(100, 130)))
        # Then the run goes on as any other, with the first held-out images.
        again = self.images(here)
        self.assertEqual(again.identity, here.identity)
        self.assertCountEqual(self.values(again.unseen()), held_out[1:])
        whole = self.values(here.training())
        self.assertEqual(self.values(again.training()), whole)
        rest = self.values(again.training(4))
        self.assertEqual(rest, whole[4 * 8 :])

    def test_only_a_folder_can_continue(self):
        digits = mock.Mock(identity={"images": 3, "steps_per_epoch": 1})
        digits.held_out_names = []
        with self.assertRaisesRegex(ValueError, "needs a folder of images"):
            self.images(digits, dataset="digits", data_changed="continue")


if __name__ == "__main__":
    absltest.main()
