"""What tells during training how good an encoder is becoming."""

import numpy as np

from seed_tf.evaluation.features import embedder
from seed_tf.evaluation.knn import knn, nearest_others, neighbour_agreement


class HeldOut:
    """Unlabelled images kept from training, to see similarities on.

    Args:
        encoder: keras.Model in training.
        images: `[N, S, S, 3]` uint8 array, or `tf.data.Dataset` of batches.
        teacher: keras.Model, frozen, or None.
    """

    def __init__(self, encoder, images, teacher=None):
        if not isinstance(images, np.ndarray):
            images = np.concatenate(list(images.as_numpy_iterator()))
        self._images, self._embed = images, embedder(encoder)
        self._teacher = None
        if teacher is not None:
            self._teacher = embedder(teacher)(images)

    def agreement(self, k=10):
        """`neighbour_agreement` of teacher and encoder, in [0, 1]."""
        student = self._embed(self._images)
        k = min(k, len(student) - 1)
        return neighbour_agreement(self._teacher, student, k=k)

    def neighbours(self, queries=6, k=6):
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


class LabelledKNN:
    """k-NN accuracy of pooled features on labelled images.

    Args:
        encoder: keras.Model in training.
        train, test: `tf.data.Dataset`s of batches of (images, labels).
    """

    def __init__(self, encoder, train, test):
        self._embed, self._train, self._test = embedder(encoder), train, test

    def accuracy(self, k=10):
        """`knn`, in [0, 1]."""
        train = self._embed(self._train)
        k = min(k, len(train[1]))
        return knn(train, self._embed(self._test), k=k)
