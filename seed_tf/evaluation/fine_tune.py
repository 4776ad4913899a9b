"""Fine-tuning: trains a new classifier together with the whole encoder."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from seed_tf import random
from seed_tf.encoders import Encoder
from seed_tf.encoders.classifier import Classifier
from seed_tf.evaluation.labels import accuracies, check_classes, check_labelled
from seed_tf.evaluation.linear_probe import DivergenceError
from seed_tf.images import check_channels, check_value_range
from seed_tf.io.pipelines import BATCHES_AHEAD, steady
from seed_tf.keras_internals import all_layers
from seed_tf.optimizers.schedule import warmup_cosine
from seed_tf.optimizers.sgd import SGD


@dataclasses.dataclass(frozen=True)
class FineTuneResult:
    """A fine-tuned classifier, and how good it is.

    Attributes:
        accuracy: float in [0, 1], top-1 on the test set.
        mean_per_class: float in [0, 1], mean of the classes' own accuracies.
        loss: float, mean cross-entropy of the last training epoch, in nats.
        model: keras.Model, images `[B, H, W, 3]` to logits `[B, num_classes]`.
    """

    accuracy: float
    mean_per_class: float
    loss: float
    model: keras.Model


def training_view(image_size: int) -> Callable:
    """The protocol's augmentation: a crop of area 0.08-1, and a flip."""
    from seed_tf import views  # imports KerasCV, which takes seconds

    return views.View(
        [
            views.RandomResizedCrop(image_size, scale=(0.08, 1.0)),
            views.RandomHorizontalFlip(),
        ]
    )


def fine_tune(
    encoder: keras.Model,
    train: Any,
    test: Any,
    *,
    view: Callable[..., tf.Tensor] | None = None,
    num_classes: int | None = None,
    learning_rate: float = 0.05,
    epochs: int = 30,
    batch_size: int = 256,
    steps_per_epoch: int | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
    log: Callable[[str], None] = logging.info,
) -> FineTuneResult:
    """Trains a copy of an encoder, with a new classifier, on labelled images.

    All weights learn, BatchNorm in training mode; the projection head is left
    out. SGD minimises the softmax cross-entropy, its rate a cosine to zero.

    Args:
        encoder: `Encoder`, or any keras.Model of images that gives `[B, C]`
            and can be serialised. It is not changed.
        train: pair of images `[N, H, W, 3]`, RGB in [0, 255], and labels `[N]`
            integers; or a `tf.data.Dataset` of such batches, of known
            cardinality: those of one epoch, or with `steps_per_epoch` of all,
            as `seed_tf.datasets.load(labels=True, epochs=...)` gives them.
        test: the same, of one epoch; images of the size to be seen.
        view: augmentation of training images, called with `seeds`. For
            arrays it defaults to a random crop of area 0.08-1, of the size of
            the test images, and a flip; for datasets to none.
        num_classes: int; for arrays read off the labels if None.
        learning_rate: float, per 256 images; scaled linearly.
        epochs: int.
        batch_size: int. A dataset has its own.
        steps_per_epoch: int or None, see `train`.
        momentum: float.
        weight_decay: float, coupled (see `seed_tf.training.SGD`).
        seed: int, of classifier, order and views.
        log: function of one str, called with lines of progress.

    Returns:
        A `FineTuneResult`.

    Raises:
        ValueError: if the data do not fit, or the encoder cannot be copied.
        DivergenceError: a ValueError, if the loss is not finite.

    Source: Chen et al., "A Simple Framework for Contrastive Learning", ICML
    2020, appendix B.5: rate 0.05 per 256 images, momentum 0.9, no warm-up, no
    weight decay, crops and flips; 60 epochs with 1 % of the labels, 30 with
    10 %. Theirs is Nesterov's momentum and a batch of 4,096.

    Example:

    >>> labels = np.arange(64) % 2
    >>> result = fine_tune(
    ...     student, (images, labels), (images, labels), epochs=1, batch_size=32
    ... )
    >>> result.model(images).shape
    TensorShape([64, 2])
    """
    if epochs < 1:
        raise ValueError(
            f"`epochs` must be a positive integer. Received: epochs={epochs}."
        )
    arrays = not isinstance(train, tf.data.Dataset)
    if arrays and not isinstance(test, tf.data.Dataset):
        labels = [
            check_labelled(name, data, num_classes)[1]
            for name, data in (("train", train), ("test", test))
        ]
        check_classes(labels[0], labels[1])
        num_classes = num_classes or 1 + int(max(map(np.max, labels)))
    if num_classes is None:
        raise ValueError(
            "`num_classes` must be given where data are a tf.data.Dataset. "
            "Received: num_classes=None."
        )
    if arrays:
        if view is None:
            size = test[0].shape[1] if isinstance(test, tuple) else 224
            view = training_view(size)
        steps_per_epoch = max(1, len(train[1]) // batch_size)
        images, labels = train
        train = _shuffled(
            images, labels, batch_size, steps_per_epoch, epochs, seed
        )
    elif steps_per_epoch is None:
        steps_per_epoch = len(train)
        train = train.repeat(epochs)
    if not isinstance(test, tf.data.Dataset):
        test = tf.data.Dataset.from_tensor_slices(test).batch(batch_size)
    train, test = steady(train), steady(test)
    for data in (train, test):
        images = next(iter(data))[0]
        check_channels(images)
        check_value_range(images)
        batch_size = len(images) if data is train else batch_size
    if view is not None:
        train = train.enumerate().map(
            functools.partial(_augment, view, seed), BATCHES_AHEAD
        )
    model = Classifier(_copy(encoder), num_classes, seed)
    model(next(iter(test))[0][:1])
    model.compile(
        SGD(
            warmup_cosine(
                batch_size=batch_size,
                steps_per_epoch=steps_per_epoch,
                epochs=epochs,
                warmup_epochs=0,
                rate_per_256=learning_rate,
            ),
            momentum,
            weight_decay,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    history = model.fit(
        train.prefetch(BATCHES_AHEAD),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        shuffle=False,  # done, and Keras warns of its own default
        verbose=0,
        callbacks=[_Watch(epochs, learning_rate, log)],
    )
    accuracy, mean_per_class = _accuracies(model, test)
    loss = history.history["loss"][-1]
    return FineTuneResult(accuracy, mean_per_class, loss, model)


class _Watch(keras.callbacks.Callback):
    """Logs the loss of every epoch; stops if the loss is not finite."""

    def __init__(self, epochs, learning_rate, log):
        super().__init__()
        self._epochs, self._rate, self._log = epochs, learning_rate, log
        self._start = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        loss, done = logs["loss"], epoch + 1
        if not math.isfinite(loss):
            raise DivergenceError(
                f"Fine-tuning diverged: loss {loss} in epoch {done}. Lower "
                f"the learning rate. Received: learning_rate={self._rate}."
            )
        left = (time.monotonic() - self._start) / done * (self._epochs - done)
        self._log(
            f"fine-tuning: epoch {done}/{self._epochs}, loss {loss:.3f}, "
            f"{left / 60:.1f} min left"
        )


def _copy(encoder):
    """Returns a trainable copy of an encoder, without its head."""
    if isinstance(encoder, Encoder):
        config = encoder.get_config() | {
            "embedding_dim": encoder.feature_dim,
            "head": None,
            "hidden_dim": None,
            "head_batch_norm": False,
        }
        copy = Encoder.from_config(config)
        copy.backbone.set_weights(encoder.backbone.get_weights())
    else:
        try:
            config = keras.saving.serialize_keras_object(encoder)
            copy = keras.saving.deserialize_keras_object(config)
            if not copy.built:
                copy.build(encoder.input_shape)
            copy.set_weights(encoder.get_weights())
        except (
            AttributeError,
            NotImplementedError,
            TypeError,
            ValueError,
        ) as e:
            raise ValueError(
                "`encoder` must be a keras.Model that can be saved, to be "
                f"copied. Received: {type(encoder).__name__}: {e}"
            ) from e
    # Set each layer: a Sequential of frozen layers would keep them frozen.
    for layer in all_layers(copy):
        layer.trainable = True
    return copy


def _shuffled(images, labels, batch_size, steps_per_epoch, epochs, seed):
    """Batches of all epochs, in orders that are functions of seed and epoch."""
    with tf.device("CPU"):  # where tf.data gathers
        images = tf.convert_to_tensor(images)
        labels = tf.convert_to_tensor(labels)
    size = len(labels)

    def batch(step):
        epoch, first = step // steps_per_epoch, step % steps_per_epoch
        places = first * batch_size + tf.range(
            min(batch_size, size), dtype=tf.int64
        )
        key = tf.stack([tf.cast(seed, tf.int64), epoch])
        index = tf.random.experimental.index_shuffle(places, key, size - 1)
        return tf.gather(images, index), tf.gather(labels, index)

    return tf.data.Dataset.range(epochs * steps_per_epoch).map(batch)


def _augment(view, seed, step, batch):
    images, labels = batch
    seeds = random.image_seeds(seed, step, tf.shape(images)[0])
    return view(images, seeds=seeds), labels


def _accuracies(model, test):
    images = test.element_spec[0]
    spec = tf.TensorSpec([None, *images.shape[1:]], images.dtype)
    predict = tf.function(
        lambda images: tf.argmax(model(images, training=False), 1)
    ).get_concrete_function(spec)
    predicted, truth = zip(*((predict(x), y) for x, y in test), strict=True)
    return accuracies(np.concatenate(predicted), np.concatenate(truth))
