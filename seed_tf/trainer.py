"""The base of SEED and MoCo: seeded views, safe steps, running means."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from keras import ops

from seed_tf import keras_internals, onednn, random, replicas
from seed_tf.acceleration import hardware
from seed_tf.acceleration.plan import Acceleration, Plan
from seed_tf.embeddings import l2_normalise
from seed_tf.encoders.encoder import Encoder
from seed_tf.images import ImageModel, check_channels, only_size

NOT_FINITE = (
    "Checkpoints saved before are intact. Lower the learning rate, warm up "
    "longer, or train in float32 or mixed_bfloat16."
)


_DATASETS = (tf.data.Dataset, tf.distribute.DistributedDataset)


class Trainer(keras_internals.BuiltBeforeFit, ImageModel):
    """A network that learns to follow a second one, which gets no gradient.

    Subclasses write `train_step`, from the parts that this class has. All
    randomness of a step (views, dropout) is a function of `(seed, step,
    position of the image in the global batch)`, so that a resumed run repeats
    an uninterrupted one and N replicas repeat one device.

    Args:
        views: the augmentation, see `seed_tf.SEED`.
        seed: int.
        acceleration: see `seed_tf.SEED`.

    Attributes:
        acceleration: `Acceleration`. `str(model.acceleration)` lists the
            parts that training steps compute faster.
        trained_parts: names of the attributes whose weights training changes.
    """

    trained_parts: tuple[str, ...] = ()
    train_function: Callable | None
    test_function: Callable | None

    def __init__(
        self,
        *,
        views: Callable,
        seed: int = 0,
        acceleration: Plan | str | None = "auto",
        name: str | None = None,
    ):
        # The functions of seed_tf.views make views, they are none.
        if (
            not callable(views)
            or inspect.isclass(views)
            or getattr(views, "__module__", "").startswith("seed_tf.views.")
            and inspect.isfunction(views)
        ):
            raise ValueError(
                "`views` must be a layer or a function of images, such as "
                f"seed_tf.views.moco_v2(224). Received: views={views!r}."
            )
        # Images stay float32: rounding before normalisation changes them.
        super().__init__(name=name, autocast=False)
        self.acceleration = Acceleration(acceleration)
        self.views = views
        self.seed = operator.index(seed)
        self.step = self.add_weight(
            name="step",
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self._views_take_seeds = random.takes_seeds(views)
        self._means = {}

    # -- parts of a step ---------------------------------------------------

    def augment(
        self, images: Any, step: tf.Tensor, stream: int = 0
    ) -> list[tf.Tensor]:
        """Returns views of a batch, a list with one tensor per image size.

        Args:
            images: `[B, H, W, 3]` uint8 or float in [0, 255]; or crops
                `[B, n, s, s, 3]` from `datasets.load(views=...)`, for
                multi-crop a pair of them; or a batch of a view cache, a dict
                of either and of the views' keys.
            step: scalar int64. Randomness derives from `seed` and `step`.
            stream: int. Each stream gives different views of the same images.
                Of n crops, it selects one.

        Returns:
            `[n * B, s, s, 3]` float32 tensors, the first view of every image
            first; n is 1 but for multi-crop's small views.
        """
        keys = None
        if isinstance(images, dict):
            images, keys = images["images"], images["keys"]
            if not self._views_take_seeds:
                raise ValueError(
                    "A view cache needs views that are made from `seeds`, such "
                    f"as those of seed_tf.views. Received: {self.views!r}."
                )
        parts, options = tf.nest.flatten(images), {}
        if len(parts[0].shape) == 5:
            crops = getattr(self.views, "crops", [])
            expected = [(layer.size, layer.size, 3) for layer, _ in crops]
            sizes = [tuple(x.shape[2:]) for x in parts]
            # None if Keras traced the step for another number of crops before.
            of_each = parts[0].shape[1]
            if sizes != expected or (of_each and stream >= of_each):
                raise ValueError(
                    "Expected the crops that the views begin with, from "
                    "datasets.load(..., views=views), with num_views=2 for "
                    f"MoCo: {stream + 1} or more of each image, of {expected}. "
                    f"Received: {[tuple(x.shape) for x in parts]}."
                )
            options["cropped"] = True
            images = parts if len(parts) > 1 else images[:, stream]
        else:
            check_channels(images)
        if self._views_take_seeds:
            if keys is None:
                batch = ops.shape(parts[0])[0]
                replica = tf.distribute.get_replica_context()
                index = replica.replica_id_in_sync_group if replica else 0
                keys = random.image_seeds(self.seed, step, batch, index * batch)
            options["seeds"] = random.view_keys(keys, stream)
        with self.acceleration.for_views():
            views = self.views(images, **options)
        views = views if isinstance(views, (list, tuple)) else [views]
        return [ops.cast(view, "float32") for view in views]

    def embed(
        self, network: keras.Model, view: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """Returns L2-normalised float32 embeddings `[B, D]` of a view."""
        if not training:
            return l2_normalise(network(view, training=False))
        with self.acceleration.applied(network):
            return l2_normalise(network(view, training=True))

    def seen_by(
        self, network: keras.Model, views: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Returns views at the size that a network sees: as they are."""
        return views

    def reset_dropout_seeds(self, *networks: keras.Model) -> None:
        """Makes dropout of this step a function of (seed, step, replica)."""
        replica = tf.distribute.get_replica_context()
        index = ops.cast(replica.replica_id_in_sync_group, "int64")
        # A layer that is called often in one step counts on from here.
        position = self.step.value * 2**20 + index * 2**10
        for network in networks:
            states = (
                v
                for v in network.variables
                if v.path.endswith("seed_generator_state")
            )
            for i, state in enumerate(states):
                state.assign(
                    ops.cast(ops.stack([self.seed + i, position]), state.dtype)
                )

    def scale(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns this replica's share of the loss, scaled for float16.

        Keras sums the gradients of the replicas and leaves the division by
        their number to custom steps.
        """
        count = tf.distribute.get_strategy().num_replicas_in_sync
        return self.optimizer.scale_loss(loss / count)

    def xla(self, function: Callable) -> Callable:
        """Returns the function, compiled if `compile(jit_compile=True)` was.

        It serves the part of a step that each of several replicas computes
        alone: XLA does not compile collectives. On one device Keras compiles
        the whole step, and TPUs always do.
        """
        strategy = tf.distribute.get_strategy()
        if (
            self.jit_compile
            and strategy.num_replicas_in_sync > 1
            and not isinstance(strategy, tf.distribute.TPUStrategy)
        ):
            return tf.function(function, jit_compile=True, autograph=False)
        return function

    def minimise(self, gradients: list, variables: list) -> tf.Tensor:
        """Applies gradients of a loss from `scale`; returns their norm.

        With several replicas, it is the norm of this replica's own gradient.
        """
        norm = tf.linalg.global_norm(gradients) / self.scale(1.0)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = replicas.overflow_of_all(gradients, norm)
        self.optimizer.apply(gradients, variables)
        # Float16's loss scaling skips steps that overflow: no norm to report.
        return tf.where(tf.math.is_finite(norm), norm, 0.0)

    def log(self, **values: tf.Tensor) -> dict[str, tf.Tensor]:
        """Updates the running mean of each value; returns all means.

        With several replicas, they are means over all replicas.
        """
        for name, value in replicas.average(values).items():
            self._means[name].update_state(value)
        return {name: self._means[name].result() for name in values}

    @property
    def state(self) -> dict:
        """The parts that a run must save, for `tf.train.Checkpoint`.

        A teacher never changes, and is left out.
        """
        parts = {name: getattr(self, name) for name in self.trained_parts}
        return {
            **{name: part for name, part in parts.items() if part is not None},
            "optimizer": self.optimizer,
            "step": self.step.value,
        }

    # -- called by Keras ---------------------------------------------------

    def track(self, *names: str) -> None:
        """Creates the running means that `log` updates."""
        self._means = {name: replicas.Mean(name=name) for name in names}

    @property
    def metrics(self):
        return list(self._means.values())

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        **kwargs,
    ):
        """`keras.Model.fit` that refuses unfit images and stops at a NaN loss.

        Args:
            x: a `tf.data.Dataset` of batches, or an array, of images
                `[B, H, W, 3]`, uint8 or float in [0, 255]; labels beside the
                images are ignored. All batches must have one size: drop the
                remainder. B is the global batch, and the number of replicas
                must divide it. On several hosts, what
                `seed_tf.training.devices.distribute` gives.

        Raises:
            ValueError: if the images cannot be what the views expect, or
                replicas cannot share the batches.
            FloatingPointError: at the first step whose loss is not finite.
        """
        if self.loss is not None:
            raise ValueError(
                f"{type(self).__name__}.compile takes an optimizer and no "
                f"`loss`: the objective is the model's own. "
                f"Received: loss={self.loss!r}."
            )
        if self.distribute_strategy.num_replicas_in_sync > 1:
            replicas.check(self, x, kwargs.get("steps_per_epoch"))
        # Keras warns that its own default is without effect on a dataset.
        kwargs.setdefault("shuffle", not isinstance(x, _DATASETS))
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = [StopAtNaN(), *tf.nest.flatten(callbacks or [])]
        with self.acceleration.updated():
            return super().fit(
                x, y, batch_size, epochs, verbose, callbacks, **kwargs
            )

    def evaluate(self, *args, **kwargs):
        with self.acceleration.updated():
            return super().evaluate(*args, **kwargs)

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            self.acceleration.update()
            if not hardware.current().accelerated:
                onednn.warn_if_off()
            logging.info("%s: acceleration: %s.", self.name, self.acceleration)
        # Keras builds the optimizer's variables in the first trace of the step,
        # and TensorFlow then traces it all a second time.
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        if self.distribute_strategy.num_replicas_in_sync == 1:
            super().make_train_function(force)
        elif self.train_function is None or force:
            self.train_function = replicas.on_all(self, self.train_step)

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            self.acceleration.update()
        if self.distribute_strategy.num_replicas_in_sync == 1:
            super().make_test_function(force)
        elif self.test_function is None or force:
            self.test_function = replicas.on_all(self, self.test_step)

    def export(self, *args, **kwargs):
        """Exports the trained encoder, see `keras.Model.export`."""
        encoder = getattr(self, self.trained_parts[0])
        return encoder.export(*args, **kwargs)

    def get_config(self):
        return {
            "name": self.name,
            "views": keras.saving.serialize_keras_object(self.views),
            "seed": self.seed,
            "acceleration": keras.saving.serialize_keras_object(
                self.acceleration.requested
            ),
        }

    @classmethod
    def from_config(cls, config):
        import seed_tf.views  # noqa: F401  Keras then finds them by name

        # Models saved before a plan chose the precision go on in float32.
        config = {"acceleration": Plan(student_policy="float32")} | config
        revived = {
            key: keras.saving.deserialize_keras_object(value)
            if isinstance(value, dict)
            else value
            for key, value in config.items()
        }
        return cls(**revived)


class StopAtNaN(keras.callbacks.Callback):
    """Raises FloatingPointError at the first step with a loss not finite.

    It runs before callbacks that save: earlier checkpoints stay intact.
    """

    async_safe = True

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            step = int(self.model.step.numpy())
            raise FloatingPointError(
                f"The loss became {loss} at step {step}. {NOT_FINITE}"
            )


def check_encoder(
    encoder: keras.Model, role: str, views: Sequence[tf.Tensor]
) -> int:
    """Runs an encoder once on views of noise; returns its embedding width.

    It builds an encoder that is not yet built, and finds faults before any
    training.

    Args:
        encoder: keras.Model, or any Keras layer.
        role: str, for messages: "student", "teacher", "encoder".
        views: list of `[1, s, s, 3]` float32 tensors, e.g. of `noise_image`.

    Raises:
        ValueError: if the encoder does not take images of this size, or does
            not give finite embeddings `[B, D]`.
    """
    if not isinstance(encoder, keras.layers.Layer):
        raise ValueError(
            f"`{role}` must be a keras.Model, e.g. seed_tf.Encoder(...). "
            f"Received: {role}={encoder!r} of type {type(encoder).__name__}."
        )
    for view in views:
        try:
            embeddings = encoder(view, training=False)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            height, width = view.shape[1:3]
            only = only_size(encoder)
            takes = f", and takes {only[0]} x {only[1]} only" if only else ""
            raise ValueError(
                f"`{role}` fails on views of {height} x {width} pixels{takes}. "
                "Choose views of a size that student and teacher take, e.g. "
                f"seed_tf.views.moco_v2({only[0] if only else 224})."
            ) from error
        shape: tuple = getattr(embeddings, "shape", ())
        if len(shape) != 2:
            raise ValueError(
                f"`{role}` must give embeddings [B, D]; wrap a backbone in "
                "seed_tf.Encoder to pool and project its features. "
                f"Received: output {shape} for input {tuple(view.shape)}."
            )
        if not np.all(np.isfinite(ops.convert_to_numpy(embeddings))):
            raise ValueError(
                f"`{role}` gives embeddings that are not finite (NaN or "
                "infinity) for a noise image: its weights are damaged, or its "
                "float16 range is exceeded. Load it again, or in float32."
            )
    return int(shape[-1])


def check_trainable(model: keras.Model, role: str) -> None:
    """Raises ValueError if all weights of a model to be trained are frozen.

    Args:
        model: keras.Model.
        role: str, for the message: "student" or "encoder".
    """
    if not model.trainable_variables:
        raise ValueError(
            f"`{role}` has no weight to train. Received: {model.name!r} with "
            f"{len(model.variables)} frozen variables. Copies and saved files "
            f"of a frozen model are frozen too. Set `{role}.trainable = True`, "
            "and give student and teacher no layers in common."
        )


def remember_image_size(
    encoder: keras.Model, views: Callable, samples: list[tf.Tensor]
) -> None:
    """Sets an `Encoder`'s `image_size` to the size of the (large) views.

    Other models, and the size if views do not set it, stay unchanged.

    Args:
        encoder: keras.Model that is trained.
        views: the augmentation, see `seed_tf.SEED`.
        samples: its views of `noise_image`.
    """
    known = only_size(encoder) or hasattr(views, "crops")
    resized = samples[0].shape[1:3] != noise_image().shape[1:3]
    if isinstance(encoder, Encoder) and (known or resized):
        encoder.image_size = int(samples[0].shape[1])


def noise_image(*models: keras.Model) -> np.ndarray:
    """Returns a batch of one image of noise, uint8 `[1, H, W, 3]`.

    Args:
        *models: models that will see the image. Views need not resize it:
            H and W are the size of the first model that takes one size only,
            else 64.
    """
    sizes = (*map(only_size, models), (64, 64))
    height, width = next(filter(None, sizes))
    return np.random.default_rng(0).integers(
        0, 256, (1, height, width, 3), dtype=np.uint8
    )
