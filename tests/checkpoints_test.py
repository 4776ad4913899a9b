"""Loading trained encoders: what comes back, and what is refused."""

import os

import keras
import numpy as np
from absl.testing import absltest

import seed_tf


def tiny_encoder():
    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)]
    )
    return seed_tf.Encoder(backbone, embedding_dim=8)


class LoadTeacherTest(absltest.TestCase):
    def test_a_file_and_a_run_folder(self):
        folder = self.create_tempdir().full_path
        encoder = tiny_encoder()
        path = os.path.join(folder, "student.keras")
        encoder.save(path)
        images = np.random.default_rng(0).integers(
            0, 256, (2, 8, 8, 3), dtype=np.uint8
        )
        for name in (path, folder):
            loaded = seed_tf.checkpoints.load_teacher(name)
            self.assertIsInstance(loaded, seed_tf.Encoder)
            np.testing.assert_allclose(
                loaded(images), encoder(images), rtol=1e-6
            )

    def test_nothing_there(self):
        folder = self.create_tempdir().full_path
        for name in (folder, os.path.join(folder, "missing.keras")):
            with self.assertRaisesRegex(ValueError, "student.keras.*Received"):
                seed_tf.checkpoints.load_teacher(name)

    def test_a_damaged_file(self):
        path = os.path.join(self.create_tempdir(), "teacher.keras")
        tiny_encoder().save(path)
        with open(path, "rb+") as f:
            f.truncate(os.path.getsize(path) // 2)
        with self.assertRaisesRegex(ValueError, "teacher.keras.*cannot be"):
            seed_tf.checkpoints.load_teacher(path)

    def test_an_unknown_source(self):
        with self.assertRaisesRegex(ValueError, "source='dino'"):
            seed_tf.checkpoints.load_teacher("x.keras", source="dino")


if __name__ == "__main__":
    absltest.main()
