"""A training run of the launchers: one folder with all it leaves."""

import json
import os

import keras

from seed_tf.training.callbacks import MetricsLog, Progress


class SaveEncoder(keras.callbacks.Callback):
    """Saves an encoder after every epoch, whole or not at all.

    Args:
        encoder: keras.Model.
        path: a `.keras` file; replaced only by a finished one.
    """

    def __init__(self, encoder, path):
        super().__init__()
        self._encoder, self._path = encoder, path

    def on_epoch_end(self, epoch, logs=None):
        unfinished = self._path.removesuffix(".keras") + ".unfinished.keras"
        self._encoder.save(unfinished)
        os.replace(unfinished, self._path)


def train(model, dataset, *, encoder, epochs, batch_size, output, config):
    """Fits a compiled model and leaves its record in a folder.

    Writes `config.json` before the first step, one line per epoch to
    `metrics.jsonl`, and after every epoch `student.keras`, the trained
    encoder. Prints progress with images/s and the time left.

    Args:
        model: a compiled `SEED` or `MoCo`.
        dataset: `tf.data.Dataset` of known length of batches of images.
        encoder: keras.Model, the part of `model` to save.
        epochs: int.
        batch_size: int.
        output: folder, made if missing.
        config: dict that describes the run, written as JSON.

    Returns:
        The path of `student.keras`.

    Raises:
        FloatingPointError: when the loss stops being finite.
        OSError: if the folder cannot be written, before any training.
    """
    os.makedirs(output, exist_ok=True)
    with open(os.path.join(output, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
    path = os.path.join(output, "student.keras")
    steps = int(dataset.cardinality())
    model.fit(
        dataset,
        epochs=epochs,
        verbose=0,
        callbacks=[
            Progress(steps * epochs, batch_size),
            MetricsLog(os.path.join(output, "metrics.jsonl")),
            SaveEncoder(encoder, path),
        ],
    )
    return path
