"""SEED: self-supervised distillation for visual representation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops

from seed_tf import losses, replicas, resampling
from seed_tf.acceleration.plan import Plan
from seed_tf.arguments import integer
from seed_tf.embedding_queue import EmbeddingQueue
from seed_tf.embeddings import cosine, l2_normalise, spread
from seed_tf.images import images_of
from seed_tf.trainer import (
    Trainer,
    check_encoder,
    check_trainable,
    noise_image,
    remember_image_size,
)


@keras.saving.register_keras_serializable(package="seed_tf")
class SEED(Trainer):
    """Trains a student to see the similarities that a frozen teacher sees.

    Student and teacher see one augmented view of each image. The student
    learns to reproduce the teacher's softmax over similarities between the
    view and a queue of the teacher's earlier embeddings. No labels are used.
    The model called on images gives the student's embeddings, so that
    `predict`, `summary` and exporters mean the student.

    All arguments are keyword-only: `keras.distillation.Distiller` takes the
    teacher first, and with equal widths a swap would train the teacher.

    With `seed_tf.views.multi_crop` the small views are distilled as well, each
    towards the teacher's embedding of the same small view. They have a queue
    of their own (`small_queue`), which takes one small view of each image. The
    two losses count equally.

    Batches of `datasets.load(..., view_cache=...)` hold the teacher's
    embeddings of their views, and the teacher is not called.

    Args:
        student: keras.Model, images `[B, H, W, 3]` float32 in [0, 255] ->
            embeddings `[B, D]`. Trained.
        teacher: keras.Model of the same kind and the same D. Frozen
            (`trainable = False`) and always run in inference mode.
        views: layer or callable, uint8 `[B, H, W, 3]` -> float32
            `[B, s, s, 3]` in [0, 255], e.g. `seed_tf.views.moco_v2(224)`.
        queue_size: positive int, K.
        student_temperature: positive float.
        teacher_temperature: positive float.
        objective: function of `seed_tf.losses`' signature, or None for
            `losses.similarity_distillation`.
        same_view: bool, whether student and teacher see one view of an image,
            as in the paper, or each its own; not for multi-crop.
        student_image_size: positive int, pixels of a side to which the
            student's view is resized, or None for the view's own size. It
            serves a small student of a teacher of larger images: views are
            made at the teacher's size. Not for multi-crop.
        teacher_image_size: the same for the teacher's view.
        teacher_precision: "float32", "bfloat16", or None for what
            `acceleration.precision.default_teacher_precision` says: the
            precision of the teacher's copy that gives the targets.
        acceleration: "auto" for training steps made for this machine, a
            `seed_tf.acceleration.Plan`, or None for plain Keras. It changes
            results by rounding only and is in force in training steps only:
            a float32 student may train in bfloat16, and stays float32.
            `str(model.acceleration)` says what it replaces.
        seed: int. Views and dropout are functions of it and the step.

    Logged at every step: "loss", the cross-entropy; "gap", the loss less the
    target's entropy, which is the KL divergence and goes to 0;
    "teacher_neighbours", "student_neighbours", "self_mass" (see
    `losses.similarity_distillation`); "cosine" between teacher and student;
    "spread" of the student's embeddings, 0 when they collapse; "queue_filled";
    "gradient_norm".

    Raises:
        TypeError: if an argument is positional.
        ValueError: if student or teacher do not give finite `[B, D]`
            embeddings, the widths differ, the student is frozen, or an
            argument is out of range.

    Source: Fang et al., ICLR 2021, arXiv 2101.04731, section 3.

    Example:

    >>> seed = seed_tf.SEED(student=student, teacher=teacher,
    ...                     views=seed_tf.views.moco_v2(32), queue_size=4096)
    >>> seed.compile(seed_tf.training.SGD(0.03))
    >>> history = seed.fit(images, epochs=2, verbose=0)
    """

    trained_parts = ("student", "queue", "small_queue")

    def __new__(cls, *args, **kwargs):
        if args:
            raise TypeError(
                f"{cls.__name__} takes keyword arguments only: "
                f"{cls.__name__}(student=..., teacher=..., views=...). "
                "keras.distillation.Distiller takes teacher and student in the "
                f"other order. Received: {len(args)} positional arguments."
            )
        return super().__new__(cls, **kwargs)

    def __init__(
        self,
        *,
        student: keras.Model,
        teacher: keras.Model,
        views: Callable,
        queue_size: int = 65536,
        student_temperature: float = 0.2,
        teacher_temperature: float = 0.01,
        objective: Callable | None = None,
        same_view: bool = True,
        student_image_size: int | None = None,
        teacher_image_size: int | None = None,
        teacher_precision: str | None = None,
        acceleration: Plan | str | None = "auto",
        seed: int = 0,
        name: str = "seed",
    ):
        losses.check_temperature("student_temperature", student_temperature)
        losses.check_temperature("teacher_temperature", teacher_temperature)
        if teacher_precision not in ("float32", "bfloat16", None):
            raise ValueError(
                '`teacher_precision` must be "float32", "bfloat16" or None. '
                f"Received: teacher_precision={teacher_precision!r}."
            )
        super().__init__(
            views=views, seed=seed, acceleration=acceleration, name=name
        )
        noise = noise_image(student, teacher)
        samples = self.augment(noise, self.step.value)
        self.student, self.teacher = student, teacher
        self.student_image_size = student_image_size
        self.teacher_image_size = teacher_image_size
        of_student = self.seen_by(student, samples)
        dim = check_encoder(student, "student", of_student)
        teacher_dim = check_encoder(
            teacher, "teacher", self.seen_by(teacher, samples)
        )
        if dim != teacher_dim:
            raise ValueError(
                "Student and teacher must give embeddings of one width. "
                f"Received: student {dim}, teacher {teacher_dim}. Build the "
                f"student with Encoder(..., embedding_dim={teacher_dim})."
            )
        if len(samples) > 1 and not (
            same_view and student_image_size is teacher_image_size is None
        ):
            raise ValueError(
                "`same_view=False`, `student_image_size` and "
                "`teacher_image_size` are for views of one size, not "
                "multi_crop."
            )
        if student is teacher:
            raise ValueError("`student` and `teacher` are the same model.")
        remember_image_size(student, views, of_student)
        self.teacher.trainable = False
        check_trainable(student, "student")
        self.teacher_precision = teacher_precision
        self.acceleration.add(student)
        self.embed_by_teacher = self.acceleration.fold(
            teacher, teacher_precision, teacher_temperature
        )
        self.queue_size = integer("queue_size", queue_size)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.objective = objective
        self.same_view = same_view
        self.queue = EmbeddingQueue(
            queue_size, dim, seed=self.seed, name="queue"
        )
        self.small_queue = None
        if len(samples) > 1:
            self.small_queue = EmbeddingQueue(
                queue_size, dim, seed=self.seed + 1, name="small_queue"
            )
        points = ops.convert_to_tensor(self.queue.embeddings)
        _, measured = self._objective(points[:1], points[:1], points)
        self.track(
            *("loss", *measured, "cosine", "spread"),
            *("queue_filled", "gradient_norm"),
        )
        self.built = True

    # What `help` and `inspect` show: a class's `__new__` comes first there.
    __new__.__signature__ = inspect.signature(__init__)  # type: ignore[attr-defined]

    def call(self, images, training=False):
        # Float32 as in training: not every keras.Model takes uint8.
        images = ops.cast(images_of(images), "float32")
        return self.student(images, training=training)

    def train_step(self, data):
        images = images_of(data)
        self.reset_dropout_seeds(self.student)
        forward_and_back = self.xla(self._forward_and_back)
        targets, loss, health, gradients = forward_and_back(images)
        gradient_norm = self.minimise(
            gradients, self.student.trainable_variables
        )
        replicas.average_statistics(self.student)
        for queue, target in zip(self._queues, targets, strict=True):
            queue.enqueue(replicas.gather(target))
        self.step.assign_add(1)
        return self.log(
            loss=loss,
            **health,
            queue_filled=self.queue.filled,
            gradient_norm=gradient_norm,
        )

    def _forward_and_back(self, images):
        """A replica's own part: targets to enqueue, loss, gradients."""
        views, targets = self._views_and_targets(images, self.step.value)
        with tf.GradientTape() as tape:
            loss, health = self._distil(views, targets, training=True)
            scaled_loss = self.scale(loss)
        gradients = tape.gradient(scaled_loss, self.student.trainable_variables)
        batch = ops.shape(views[0])[0]
        targets = [target[:batch] for target in targets]
        return targets, loss, health, gradients

    def test_step(self, data):
        """The held-out loss: the same views each time, queue untouched."""
        images = images_of(data)
        step = ops.cast(-1, "int64")
        loss, health = self._distil(*self._views_and_targets(images, step))
        return self.log(loss=loss, **health)

    def _views_and_targets(self, images, step):
        views = seen = self.augment(images, step)
        if isinstance(images, dict):
            targets = self._cached_targets(images["embeddings"])
        else:
            if not self.same_view:
                seen = self.augment(images, step, stream=1)
            targets = self._targets(self.seen_by(self.teacher, seen))
        return self.seen_by(self.student, views), targets

    def seen_by(
        self, network: keras.Model, views: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Returns views at the size that student or teacher sees."""
        student = network is self.student
        size = self.student_image_size if student else self.teacher_image_size
        if size is None:
            return views
        return [resampling.resize(view, size) for view in views]

    def _targets(self, views):
        """The teacher's embeddings of each size of view, without gradient."""
        return [l2_normalise(self.embed_by_teacher(view)) for view in views]

    def _cached_targets(self, embeddings):
        """Targets from stored embeddings `[B, n, D]`, large view first."""
        if not self.same_view:
            raise ValueError(
                "`same_view=False` gives the teacher a view of its own, and a "
                "view cache holds the teacher's embeddings of the student's "
                "views. Train with `same_view=True`, or without the cache."
            )
        dim = self.queue.dim
        if embeddings.shape[2] != dim or (embeddings.shape[1] > 1) != (
            self.small_queue is not None
        ):
            raise ValueError(
                f"Expected embeddings [B, n, {dim}], n more than 1 for "
                "multi-crop views only. Received: "
                f"shape {tuple(embeddings.shape)}. The view cache was made by "
                "another teacher or with other views."
            )
        rows = l2_normalise(ops.cast(embeddings, "float32"))
        targets = [rows[:, 0]]
        if self.small_queue is not None:
            # As in `MultiCrop`: first one small view of every image.
            small = ops.transpose(rows[:, 1:], (1, 0, 2))
            targets.append(ops.reshape(small, (-1, dim)))
        return targets

    def _distil(self, views, targets, training=False):
        """The paper's loss, summed over the sizes of views."""
        loss, embeddings, metrics = 0.0, [], {}
        for view, target, queue in zip(
            views, targets, self._queues, strict=True
        ):
            z = self.embed(self.student, view, training=training)
            value, measured = self._objective(z, target, queue.embeddings)
            loss += ops.mean(value)
            embeddings.append(z)
            metrics = metrics or measured  # health of the full-size view
        health = {name: ops.mean(value) for name, value in metrics.items()}
        health["cosine"] = cosine(embeddings[0], targets[0])
        health["spread"] = spread(embeddings[0])
        return loss, health

    def _objective(self, student, teacher, queue):
        objective = self.objective or functools.partial(
            losses.similarity_distillation, return_metrics=True
        )
        value = objective(
            student,
            teacher,
            ops.convert_to_tensor(queue),
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
        )
        return value if isinstance(value, tuple) else (value, {})

    @property
    def _queues(self):
        return [q for q in (self.queue, self.small_queue) if q is not None]

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "student": serialize(self.student),
            "teacher": serialize(self.teacher),
            "queue_size": self.queue_size,
            "student_temperature": self.student_temperature,
            "teacher_temperature": self.teacher_temperature,
            "objective": serialize(self.objective),
            "same_view": self.same_view,
            "student_image_size": self.student_image_size,
            "teacher_image_size": self.teacher_image_size,
            "teacher_precision": self.teacher_precision,
        }
