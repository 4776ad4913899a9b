"""Callbacks that measure an encoder while it trains."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from seed_tf import resampling
from seed_tf.evaluation.features import embedder
from seed_tf.evaluation.knn import knn, nearest_others, neighbour_agreement
from seed_tf.io.pipelines import steady


class HeldOut:
    """Unlabelled images kept from training, to see similarities on.

    Args:
        encoder: keras.Model in training.
        images: `[N, S, S, 3]` uint8 array, or `tf.data.Dataset` of batches.
        teacher: keras.Model, frozen, or None.
        image_size: positive int, pixels of a side to which images for the
            encoder are resized, or None for S.
        teacher_image_size: the same for the teacher.
    """

    def __init__(
        self,
        encoder: keras.Model,
        images: np.ndarray | tf.data.Dataset,
        teacher: keras.Model | None = None,
        *,
        image_size: int | None = None,
        teacher_image_size: int | None = None,
    ):
        if not isinstance(images, np.ndarray):
            images = np.concatenate(list(steady(images).as_numpy_iterator()))
        self._embed = embedder(encoder)
        self._images = _resized(images, image_size)
        self._teacher = None
        if teacher is not None:
            seen = _resized(images, teacher_image_size)
            self._teacher = embedder(teacher)(seen)

    def agreement(self, k: int = 10) -> float:
        """`neighbour_agreement` of teacher and encoder, in [0, 1]."""
        student = self._embed(self._images)
        k = min(k, len(student) - 1)
        return neighbour_agreement(self._teacher, student, k=k)

    def neighbours(self, queries: int = 6, k: int = 6) -> tuple:
        """Neighbours of a few images, as `figures.neighbours` takes them.

        Returns:
            Images `[queries, S, S, 3]` uint8; dict of "teacher" and "encoder"
            to pairs of all images and indices `[queries, k]` into them.
        """
        features = {"teacher": self._teacher, "encoder": None}
        features["encoder"] = self._embed(self._images)
        count = len(self._images)
        chosen = np.random.default_rng(0).permutation(count)[:queries]
        k = min(k, count - 1)
        return self._images[chosen], {
            name: (self._images, nearest_others(vectors, k)[chosen])
            for name, vectors in features.items()
            if vectors is not None
        }


def _resized(images, size):
    """Returns uint8 images `[N, size, size, 3]`."""
    if size is None or images.shape[1:3] == (size, size):
        return images
    batches = (images[i : i + 64] for i in range(0, len(images), 64))
    resized = [
        resampling.resize(tf.cast(batch, tf.float32), size) for batch in batches
    ]
    return np.round(np.concatenate(resized)).astype(np.uint8)


class LabelledKNN:
    """k-NN accuracy of pooled features on labelled images.

    Args:
        encoder: keras.Model in training.
        train, test: `tf.data.Dataset`s of batches of (images, labels).
    """

    def __init__(
        self,
        encoder: keras.Model,
        train: tf.data.Dataset,
        test: tf.data.Dataset,
    ):
        self._embed, self._train, self._test = embedder(encoder), train, test

    def accuracy(self, k: int = 10) -> float:
        """`knn`, in [0, 1]."""
        train = self._embed(self._train)
        k = min(k, len(train[1]))
        return knn(train, self._embed(self._test), k=k)


class _Measure(keras.callbacks.Callback):
    """Adds a measurement to the logs at the end of epochs.

    Callbacks that read the value, such as `keras.callbacks.ModelCheckpoint`,
    come after this one in `fit(callbacks=[...])`.

    Args:
        name: Key in the logs.
        k: Number of neighbours.
        every: Epochs from one measurement to the next. The last epoch is
            always measured.
        encoder: The keras.Model to measure. Defaults to the student of a
            `SEED`, the encoder of a `MoCo`, and the model itself otherwise.
    """

    def __init__(
        self,
        name: str,
        *,
        k: int = 10,
        every: int = 1,
        encoder: keras.Model | None = None,
    ):
        super().__init__()
        if min(k, every) < 1:
            raise ValueError(
                "`k` and `every` must be positive. "
                f"Received: k={k}, every={every}."
            )
        self._name, self._k, self._every = name, k, every
        self._encoder = encoder
        self._measure: Any = None

    def on_train_begin(self, logs=None):
        encoder = self._encoder
        if encoder is None:
            encoder = getattr(self.model, "student", None)
        if encoder is None:
            encoder = getattr(self.model, "encoder", self.model)
        self._measure = self._measure_of(encoder)

    def on_epoch_end(self, epoch, logs=None):
        done = epoch + 1
        last = done == self.params.get("epochs")
        if logs is not None and (last or done % self._every == 0):
            logs[self._name] = self._measure(self._k)

    def _measure_of(self, encoder):
        """The function of k that measures an encoder."""
        raise NotImplementedError


class NeighbourAgreement(_Measure):
    """Adds `neighbour_agreement` with a teacher to the logs of epochs.

    The value is the share, in [0, 1], of the k nearest neighbours of an image
    that encoder and teacher have in common. No labels are needed.

    Args:
        images: `[N, S, S, 3]` uint8 array, or `tf.data.Dataset` of batches of
            such images. They are held in memory and should not be trained on.
        teacher: Frozen keras.Model.
        k: Number of neighbours.
        every: Epochs from one measurement to the next. The last epoch is
            always measured.
        encoder: The keras.Model to measure. Defaults to the student of a
            `SEED`, the encoder of a `MoCo`, and the model itself otherwise.
        name: Key in the logs.
    """

    def __init__(
        self,
        images: np.ndarray | tf.data.Dataset,
        teacher: keras.Model,
        *,
        k: int = 10,
        every: int = 1,
        encoder: keras.Model | None = None,
        name: str = "agreement",
    ):
        super().__init__(name, k=k, every=every, encoder=encoder)
        self._images, self._teacher = images, teacher

    def _measure_of(self, encoder):
        return HeldOut(encoder, self._images, self._teacher).agreement


class KNN(_Measure):
    """Adds the k-NN accuracy on labelled images to the logs of epochs.

    Args:
        train: `tf.data.Dataset` of batches of (images, labels), whose labels
            vote.
        test: The same, the images to classify.
        k: Number of neighbours.
        every: Epochs from one measurement to the next. The last epoch is
            always measured.
        encoder: The keras.Model to measure. Defaults to the student of a
            `SEED`, the encoder of a `MoCo`, and the model itself otherwise.
        name: Key in the logs.
    """

    def __init__(
        self,
        train: tf.data.Dataset,
        test: tf.data.Dataset,
        *,
        k: int = 10,
        every: int = 1,
        encoder: keras.Model | None = None,
        name: str = "knn",
    ):
        super().__init__(name, k=k, every=every, encoder=encoder)
        self._train, self._test = train, test

    def _measure_of(self, encoder):
        return LabelledKNN(encoder, self._train, self._test).accuracy
