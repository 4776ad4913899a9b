"""What version 0.1 wrote can be read, and trained on with."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.runs import state

import seed_tf
from seed_tf import search
from seed_tf.io.files import read_json_lines

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = pathlib.Path(__file__).resolve().parent / "data/version_0_1"
PHOTOS_TIME = 1_700_000_000  # seconds; the index knows files by it
# Runs a launcher as the old runs were: "resnet18" is a tiny network.
DRIVER = """
import functools, runpy, sys
from seed_tf.encoders.backbones import BACKBONES
from seed_tf.encoders.resnet import resnet
BACKBONES["resnet18"] = functools.partial(resnet, depths=(1,), width=6)
module = f"experiments.{sys.argv.pop(1)}"
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def launch(folder, arguments):
    """Runs a launcher in that folder; raises AssertionError if it fails."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments],
        cwd=folder,
        # Other devices round more coarsely.
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if process.returncode:
        raise AssertionError(process.stdout[-4000:])


class CompatibilityTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(tf.device("CPU"))
        folder = self.create_tempdir().full_path
        self.folder = pathlib.Path(folder) / "data"
        shutil.copytree(DATA, self.folder)
        for path in self.folder.glob("photos/**/*.jpg"):
            os.utime(path, (PHOTOS_TIME, PHOTOS_TIME))

    def json(self, *names):
        return json.loads(self.folder.joinpath(*names).read_text())

    def test_encoder(self):
        encoder = keras.models.load_model(self.folder / "encoder.keras")
        self.assertIsInstance(encoder, seed_tf.Encoder)
        expected = np.load(self.folder / "encoder_outputs.npz")
        images = expected["images"]
        np.testing.assert_allclose(
            encoder(images), expected["embeddings"], atol=1e-5
        )
        np.testing.assert_allclose(
            encoder.features(images), expected["features"], atol=1e-5
        )

    def test_a_whole_model_trains_on(self):
        model = keras.models.load_model(self.folder / "seed.keras")
        self.assertIsInstance(model, seed_tf.SEED)
        expected = np.load(self.folder / "seed_state.npz")
        images = expected["images"]
        np.testing.assert_allclose(
            model(images), expected["outputs"], atol=1e-5
        )
        queue = model.queue
        self.assertEqual(int(model.step), expected["step"])
        self.assertEqual(int(queue.cursor), expected["cursor"])
        np.testing.assert_array_equal(
            queue.embeddings.numpy(), expected["queue"]
        )
        # Epochs of one step each.
        history = model.fit(
            images, batch_size=8, epochs=2, shuffle=False, verbose=0
        ).history
        np.testing.assert_allclose(
            history["loss"], expected["losses"], rtol=1e-4
        )
        np.testing.assert_allclose(
            model(images), expected["outputs_afterwards"], atol=1e-4
        )
        np.testing.assert_allclose(
            queue.embeddings.numpy(), expected["queue_afterwards"], atol=1e-4
        )

    @parameterized.parameters("run", "pretrain_run")
    @pytest.mark.slow
    def test_a_killed_run_goes_on(self, name):
        run = self.folder / name
        before = read_json_lines(run / "metrics.jsonl")
        launch(self.folder, self.json("command.json")[name])
        lines = read_json_lines(run / "metrics.jsonl")
        # The times of the first epoch show that it was not trained again.
        self.assertEqual(lines[: len(before)], before)
        self.assertEqual([line["step"] for line in lines], [9, 18, 27, 36])
        self.assertEqual(self.json(name, "summary.json")["ended"], "finished")
        # The best evaluation is the last.
        student = seed_tf.checkpoints.load_teacher(str(run))
        found = {f"student/{w.path}": w.numpy() for w in student.weights}
        suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
        found |= {k.removesuffix(suffix): v for k, v in state(run).items()}
        expected = np.load(self.folder / f"{name}_final.npz")
        for key in expected:
            np.testing.assert_allclose(
                found[key], expected[key], rtol=1e-4, atol=1e-4, err_msg=key
            )

    @parameterized.parameters("run", "pretrain_run")
    def test_the_encoder_of_a_killed_run(self, name):
        encoder = seed_tf.checkpoints.load_teacher(str(self.folder / name))
        self.assertIsInstance(encoder, seed_tf.Encoder)
        backbone = keras.models.load_model(
            self.folder / name / "backbone.keras"
        )
        weights = encoder.backbone.get_weights()
        for a, b in zip(backbone.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_view_cache(self):
        teacher = seed_tf.checkpoints.load_teacher(
            str(self.folder / "teacher.keras")
        )
        cache = seed_tf.view_cache.ViewCache(str(self.folder / "view_cache"))
        cache.check_teacher(teacher)
        arguments = self.json("view_cache_batch.json")["load"]
        arguments["data_dir"] = str(self.folder / arguments["data_dir"])
        batches = seed_tf.datasets.load(
            **arguments, views=seed_tf.views.moco_v2(16), view_cache=cache
        )
        batch = next(iter(batches))
        expected = np.load(self.folder / "view_cache_batch.npz")
        self.assertCountEqual(batch, expected)
        for name in expected:
            np.testing.assert_array_equal(
                batch[name], expected[name], err_msg=name
            )

    def test_index(self):
        index, encoder, photos = (
            str(self.folder / name)
            for name in ("index", "encoder.keras", "photos")
        )
        note = self.json("index_query.json")
        found = search.ImageSearch(search.Index(index), encoder)
        query = (self.folder / note["query"]).read_bytes()
        scores, rows = found.search(query, len(note["names"]))
        names = [found.index.paths[row] for row in rows]
        self.assertEqual(names, note["names"])
        np.testing.assert_allclose(scores, note["scores"], atol=1e-5)
        # Brought up to date, it knows all photos, and stays as it is.
        embeddings = self.folder / "index" / "embeddings.npy"
        os.utime(embeddings, (1, 1))
        updated = search.build(
            index, photos, encoder, log=lambda line: None, **note["build"]
        )
        self.assertLen(updated, 12)
        self.assertEqual(embeddings.stat().st_mtime, 1)
        self.assertTrue(os.path.samefile(updated.file(0), f"{photos}/0.jpg"))


if __name__ == "__main__":
    absltest.main()
