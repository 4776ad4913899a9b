"""MoCo v2: the paper's baseline, and the way to train one's own teacher."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops

from seed_tf import losses, random, replicas
from seed_tf.acceleration.plan import Plan
from seed_tf.arguments import integer
from seed_tf.embedding_queue import EmbeddingQueue
from seed_tf.embeddings import cosine, spread
from seed_tf.grouped_batch_norm import in_groups
from seed_tf.images import images_of
from seed_tf.keras_internals import all_layers
from seed_tf.trainer import (
    Trainer,
    check_encoder,
    check_trainable,
    noise_image,
    remember_image_size,
)


@keras.saving.register_keras_serializable(package="seed_tf")
class MoCo(Trainer):
    """Momentum contrast: an encoder learns to distinguish images.

    Every image has two views. The encoder's embedding of the first must match
    the momentum encoder's embedding of the second among a queue of earlier
    embeddings. The model called on images gives the encoder's embeddings.

    A key that BatchNorm normalises with its own batch carries a trace of the
    batch. The encoder can find the key by this trace, without looking at the
    image (He et al., section 3.3, "Shuffling BN"). So keys are computed in
    batches shuffled across replicas or, on one device, in shuffled groups that
    play the replicas' part (`GroupedBatchNormalization`). Synchronised
    BatchNorm would undo the shuffling: it stays on in the encoder and is
    switched off in the momentum encoder.

    Args:
        encoder: keras.Model, images `[B, H, W, 3]` float32 in [0, 255] ->
            embeddings `[B, D]`. Trained.
        views: layer or callable, uint8 `[B, H, W, 3]` -> float32
            `[B, s, s, 3]` in [0, 255], e.g. `seed_tf.views.moco_v2(224)`.
        queue_size: positive int.
        temperature: positive float.
        momentum: float in [0, 1), by which the momentum encoder keeps its
            weights at each step.
        shuffle_groups: positive int, parts of a batch whose keys are
            normalised apart, on one device; 8, as the paper trained on 8
            GPUs. It must divide the batch. With several replicas, each
            replica is a group.
        acceleration: see `seed_tf.SEED`.
        seed: int. Views, dropout and shuffling are functions of it and the
            step.

    Logged at every step: "loss"; "accuracy", the share of images whose key is
    nearer than the whole queue; "cosine" of query and key; "spread" of the
    queries, 0 when they collapse; "queue_filled"; "gradient_norm".

    Raises:
        ValueError: if the encoder does not give finite `[B, D]` embeddings,
            is frozen, or an argument is out of range.

    Source: He et al., CVPR 2020; Chen et al., arXiv 2003.04297 (v2).
    """

    trained_parts = ("encoder", "momentum_encoder", "queue")

    def __init__(
        self,
        encoder: keras.Model,
        *,
        views: Callable,
        queue_size: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
        shuffle_groups: int = 8,
        acceleration: Plan | str | None = "auto",
        seed: int = 0,
        name: str = "moco",
    ):
        losses.check_temperature("temperature", temperature)
        if not 0 <= momentum < 1:
            raise ValueError(
                "`momentum` must be in [0, 1); the paper uses 0.999. "
                f"Received: momentum={momentum}."
            )
        shuffle_groups = integer("shuffle_groups", shuffle_groups)
        super().__init__(
            views=views, seed=seed, acceleration=acceleration, name=name
        )
        samples = self.augment(noise_image(encoder), self.step.value)
        if len(samples) != 1:
            raise ValueError("MoCo takes views of one size, not multi_crop.")
        dim = check_encoder(encoder, "encoder", samples)
        check_trainable(encoder, "encoder")
        count = self.distribute_strategy.num_replicas_in_sync
        remember_image_size(encoder, views, samples)
        self.encoder = encoder
        self.momentum_encoder = _momentum_encoder(
            encoder, shuffle_groups if count == 1 else 1
        )
        check_encoder(self.momentum_encoder, "encoder", samples)
        self.momentum_encoder.set_weights(encoder.get_weights())
        self.acceleration.add(self.encoder)
        self.acceleration.add(self.momentum_encoder)
        self.queue_size = integer("queue_size", queue_size)
        self.temperature = temperature
        self.momentum = momentum
        self.shuffle_groups = shuffle_groups
        self.queue = EmbeddingQueue(
            queue_size, dim, seed=self.seed, name="queue"
        )
        self.track(
            *("loss", "accuracy", "cosine", "spread"),
            *("queue_filled", "gradient_norm"),
        )
        self.built = True

    def call(self, images, training=False):
        # Float32 as in training: not every keras.Model takes uint8.
        images = ops.cast(images_of(images), "float32")
        return self.encoder(images, training=training)

    def train_step(self, data):
        images = images_of(data)
        if images.shape[0] is None:
            raise ValueError(
                "MoCo shuffles its batches and needs to know their size: call "
                "`dataset.batch(..., drop_remainder=True)`. "
                f"Received: batches of shape {tuple(images.shape)}."
            )
        self.reset_dropout_seeds(self.encoder, self.momentum_encoder)
        key_view = self.xla(self._key_view)
        key = self._keys(key_view(images))
        forward_and_back = self.xla(self._forward_and_back)
        query, loss, accuracy, gradients = forward_and_back(images, key)
        gradient_norm = self.minimise(
            gradients, self.encoder.trainable_variables
        )
        replicas.average_statistics(self.encoder)
        self._update_momentum_encoder()
        self.queue.enqueue(replicas.gather(key))
        self.step.assign_add(1)
        return self.log(
            loss=loss,
            accuracy=accuracy,
            cosine=cosine(query, key),
            spread=spread(query),
            queue_filled=self.queue.filled,
            gradient_norm=gradient_norm,
        )

    def _forward_and_back(self, images, key):
        """A replica's own part: queries, loss, gradients."""
        (view,) = self.augment(images, self.step.value, stream=0)
        with tf.GradientTape() as tape:
            query = self.embed(self.encoder, view, training=True)
            loss, accuracy = self._contrast(query, key)
            scaled_loss = self.scale(loss)
        gradients = tape.gradient(scaled_loss, self.encoder.trainable_variables)
        return query, loss, accuracy, gradients

    def test_step(self, data):
        """The held-out loss: the same views each time, queue untouched."""
        images = images_of(data)
        step = ops.cast(-1, "int64")
        (query_view,) = self.augment(images, step, stream=0)
        (key_view,) = self.augment(images, step, stream=1)
        query = self.embed(self.encoder, query_view)
        key = self.embed(self.momentum_encoder, key_view)
        loss, accuracy = self._contrast(query, key)
        return self.log(
            loss=loss,
            accuracy=accuracy,
            cosine=cosine(query, key),
            spread=spread(query),
        )

    def _contrast(self, query, key):
        loss, metrics = losses.info_nce(
            query,
            key,
            ops.convert_to_tensor(self.queue.embeddings),
            temperature=self.temperature,
            return_metrics=True,
        )
        return ops.mean(loss), ops.mean(metrics["accuracy"])

    def _update_momentum_encoder(self):
        """Moves the momentum encoder's weights towards the encoder's.

        Running statistics of BatchNorm are copied, as training takes those of
        the batch.
        """
        trained = {id(v) for v in self.encoder.trainable_variables}
        for ours, theirs in zip(
            self.momentum_encoder.weights, self.encoder.weights, strict=True
        ):
            keep = self.momentum if id(theirs) in trained else 0.0
            ours.assign(theirs + keep * (ours - theirs))

    def _key_view(self, images):
        (view,) = self.augment(images, self.step.value, stream=1)
        return view

    def _keys(self, view):
        """The momentum encoder's embeddings `[B, D]`, without gradient."""
        everyone = replicas.gather(view)
        batch, total = view.shape[0], everyone.shape[0]
        # One order for all replicas: it depends on the step alone.
        draws = random.uniform(
            random.image_seeds(self.seed, self.step.value, total), 1
        )
        order = tf.argsort(draws[:, 0])
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group

        def mine(order):  # of static size, for XLA
            return tf.slice(order, [replica * batch], [batch])

        view = tf.gather(everyone, mine(order))
        keys = replicas.gather(self.xla(self._forward)(view))
        keys = tf.gather(keys, mine(tf.argsort(order)))
        return ops.stop_gradient(keys)

    def _forward(self, view):
        groups, batch = self.shuffle_groups, view.shape[0]
        alone = self.distribute_strategy.num_replicas_in_sync == 1
        if alone and (batch % groups or batch < 2 * groups):
            raise ValueError(
                f"A batch must divide into {groups} groups of two images or "
                "more. Choose another `batch_size` or `shuffle_groups`. "
                f"Received: a batch of {batch}."
            )
        return self.embed(self.momentum_encoder, view, training=True)

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "queue_size": self.queue_size,
            "temperature": self.temperature,
            "momentum": self.momentum,
            "shuffle_groups": self.shuffle_groups,
        }


def _momentum_encoder(encoder, groups):
    """Returns a copy of an encoder whose weights no optimizer trains.

    The values of its weights are new ones.

    Args:
        encoder: keras.Model.
        groups: int, parts of a batch that BatchNorm normalises apart.
    """
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(encoder)
    )
    # Not `copy.trainable = False`: a frozen BatchNorm ignores training=True.
    for variable in copy.weights:
        variable.trainable = False
    for layer in all_layers(copy):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = False
            layer.momentum = 1.0  # its running statistics are the encoder's
            if groups > 1:
                in_groups(layer, groups)
    return copy
