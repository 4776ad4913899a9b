"""Losses that train the student's embedding of a view.

SEED's loss is attention. With `p` the teacher's and `q` the student's softmax
over the points `d` (the image's own teacher embedding and the queue),

    loss = -sum_j p_j log q_j = logsumexp_j(z_s.d_j / t_s) - z_s.m_t / t_s
    d loss / d z_s = (m_s - m_t) / t_s
    m_t = sum_j p_j d_j,  m_s = sum_j q_j d_j

so the value, its gradient and both entropies follow from two softmax
attentions whose keys and values are the queue. One online softmax over blocks
of the queue computes all of them in `O(batch * dim)` memory. The textbook form
keeps several `[batch, queue]` tensors.

Every objective of `seed_tf.SEED` is a function

    objective(student, teacher, queue, *, student_temperature,
              teacher_temperature) -> loss [B], or (loss [B], metrics)

of L2-normalised embeddings `student [B, D]`, `teacher [B, D]` and
`queue [K, D]`, with a gradient to `student` only. `metrics` maps names to
`[B]` tensors, which `SEED` logs.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from seed_tf.embeddings import l2_normalise

__all__ = [
    "binary_contrastive",
    "info_nce",
    "kmeans_clustering",
    "l2",
    "online_clustering",
    "similarity_distillation",
]


def _attention(queries, own, queue, block_size, include_own=True):
    """Softmax attention of `queries` over {own point, queue}, streamed.

    Args:
        queries: `[R, D]` float32, already divided by their temperatures.
        own: `[R, D]` float32, one further point for each row.
        queue: `[K, D]` float32, keys and values.
        block_size: int, rows of the queue in a block, or None for as many as
            make 2 million logits, which stay in a processor's cache.
        include_own: bool, whether `own` is one of the points, or only the
            origin of `surprise`.

    Returns:
        surprise: `[R]`, the logarithm of the softmax's denominator less the
            logit of the own point: with `include_own` the own point's -log
            probability. This origin avoids the difference of two large
            numbers when the softmax is nearly one-hot.
        mass: `[R, 1]`, the probability of the own point.
        rest: `[R, 1]`, the probability of the queue, `1 - mass`.
        part: `[R, D]`, the queue's part of the softmax-weighted mean, which is
            `mass * own + part`.
        largest: `[R]`, the largest logit over the queue.
    """
    size, dim = queue.shape
    if block_size is None:
        block_size = max(256, 2**21 // (queries.shape[0] or 1024))
    block_size = min(block_size, size)
    own_logit = ops.sum(queries * own, axis=1, keepdims=True)

    def fold(block, carry):
        peak, total, weighted, largest = carry
        logits = ops.matmul(queries, ops.transpose(block))
        largest = ops.maximum(largest, ops.max(logits, axis=1, keepdims=True))
        new_peak = ops.maximum(peak, largest)
        weights = ops.exp(logits - new_peak)
        decay = ops.exp(peak - new_peak)
        total = total * decay + ops.sum(weights, axis=1, keepdims=True)
        weighted = weighted * decay + ops.matmul(weights, block)
        return new_peak, total, weighted, largest

    def step(i, *carry):
        block = ops.slice(queue, (i * block_size, 0), (block_size, dim))
        return i + 1, *fold(block, carry)

    # The lowest float, not -inf: exp(-inf - -inf) is NaN.
    lowest = ops.full_like(own_logit, -3.4e38)
    zero = ops.zeros_like(own_logit)
    peak = own_logit if include_own else lowest
    carry = peak, zero, ops.zeros_like(own), lowest
    blocks, remainder = divmod(size, block_size)
    if blocks == 1:
        carry = fold(queue[:block_size], carry)
    else:
        # Not ops.fori_loop, which computes the products of ten blocks ahead
        # and keeps them all in memory.
        _, *carry = tf.while_loop(
            lambda i, *_: i < blocks, step, (0, *carry), parallel_iterations=1
        )
    if remainder:
        carry = fold(queue[size - remainder :], carry)
    peak, total, weighted, largest = carry

    if include_own:
        mass = ops.exp(own_logit - peak)
        log_all = ops.log1p(total + ops.expm1(own_logit - peak))
    else:
        mass, log_all = zero, ops.log(total)
    everything = mass + total
    return (
        (peak - own_logit + log_all)[:, 0],
        mass / everything,
        total / everything,
        weighted / everything,
        largest[:, 0],
    )


def _with_gradient(value, inputs, gradient):
    """Returns `value [B]`, with `gradient` as its gradient by `inputs`."""
    value, gradient = ops.stop_gradient(value), ops.stop_gradient(gradient)
    # The added difference is exactly zero; only its derivative counts.
    moved = inputs - ops.stop_gradient(inputs)
    return value + ops.sum(gradient * moved, axis=1)


def _prepare(student, teacher, queue, **temperatures):
    """Checks the inputs; returns them in float32.

    Only `student` carries a gradient.
    """
    for name, temperature in temperatures.items():
        check_temperature(name, temperature)
    student = ops.cast(student, "float32")
    teacher = ops.stop_gradient(ops.cast(teacher, "float32"))
    queue = ops.stop_gradient(ops.cast(queue, "float32"))
    shapes = student.shape, teacher.shape, queue.shape
    same_batch = None in (shapes[0][0], shapes[1][0]) or (
        shapes[0][0] == shapes[1][0]
    )
    if (
        any(len(shape) != 2 for shape in shapes)
        or len({shape[1] for shape in shapes}) != 1
        or not same_batch
    ):
        raise ValueError(
            "Expected student [B, D], teacher [B, D] and queue [K, D] of one "
            f"width D. Received: student {tuple(shapes[0])}, teacher "
            f"{tuple(shapes[1])}, queue {tuple(shapes[2])}."
        )
    return student, teacher, queue


def check_temperature(name: str, value: float | tf.Tensor) -> None:
    """Raises ValueError unless the temperature is a positive number.

    A tensor passes: its value is unknown while a graph is built.
    """
    if isinstance(value, (int, float)) and not 0 < value < float("inf"):
        raise ValueError(
            f"`{name}` must be a positive number; the paper uses 0.2 for the "
            f"student and 0.01 for the teacher. Received: {name}={value}."
        )


@keras.saving.register_keras_serializable(package="seed_tf")
def similarity_distillation(
    student: tf.Tensor,
    teacher: tf.Tensor,
    queue: tf.Tensor,
    *,
    student_temperature: float | tf.Tensor = 0.2,
    teacher_temperature: float | tf.Tensor = 0.01,
    include_teacher: bool = True,
    block_size: int | None = None,
    return_metrics: bool = False,
) -> tf.Tensor | tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """SEED's loss: cross-entropy of two similarity distributions.

    Inputs of every dtype are cast to float32. The memory does not depend on K.

    Args:
        student: `[B, D]` L2-normalised embeddings; the only input that
            receives a gradient.
        teacher: `[B, D]` L2-normalised embeddings of the same views.
        queue: `[K, D]` L2-normalised teacher embeddings of earlier images.
        student_temperature: positive float.
        teacher_temperature: positive float. Towards 0 the target becomes
            one-hot at the image itself, and the loss becomes `info_nce`.
        include_teacher: bool, whether the image's own teacher embedding is one
            of the points, as in the paper.
        block_size: positive int, rows of the queue that are compared with the
            batch at a time. None chooses it by the size of the batch.
        return_metrics: bool, whether to return health metrics as well.

    Returns:
        The loss `[B]` float32. With `return_metrics` a pair of the loss and a
        dict of `[B]` tensors: "gap", the KL divergence from the target to the
        student; "teacher_neighbours" and "student_neighbours", the effective
        number of points, exp(entropy), of each distribution; with
        `include_teacher` "self_mass", the target's probability of the image
        itself.

    Raises:
        ValueError: if widths or batch sizes differ, or a temperature is not
            positive.

    Source: Fang et al., ICLR 2021, section 3.2.

    Example:

    >>> z = keras.utils.normalize(np.random.randn(8, 16).astype("float32"))
    >>> queue = keras.utils.normalize(np.random.randn(32, 16))
    >>> seed_tf.losses.similarity_distillation(z, z, queue).shape
    TensorShape([8])
    """
    student, teacher, queue = _prepare(
        student,
        teacher,
        queue,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )
    queries = ops.concatenate(
        [
            ops.stop_gradient(student) / student_temperature,
            teacher / teacher_temperature,
        ]
    )
    own = ops.concatenate([teacher, teacher])
    surprise, mass, rest, part, _ = _attention(
        queries, own, queue, block_size, include_teacher
    )
    batch = ops.shape(student)[0]
    q_s, q_t = queries[:batch], queries[batch:]
    mass_s, mass_t = mass[:batch], mass[batch:]
    rest_s, rest_t = rest[:batch], rest[batch:]
    part_s, part_t = part[:batch], part[batch:]

    shift_t = part_t - rest_t * teacher  # the target's mean, less own point
    loss = surprise[:batch] - ops.sum(q_s * shift_t, axis=1)
    # mass_s - mass_t, computed from mass or rest, whichever has more digits.
    own_difference = ops.where(
        rest_s + rest_t < 1, rest_t - rest_s, mass_s - mass_t
    )
    mean_difference = part_s - part_t + own_difference * teacher
    gradient = mean_difference / student_temperature
    loss = _with_gradient(loss, student, gradient)
    if not return_metrics:
        return loss
    entropy_t = surprise[batch:] - ops.sum(q_t * shift_t, axis=1)
    shift_s = part_s - rest_s * teacher
    entropy_s = surprise[:batch] - ops.sum(q_s * shift_s, axis=1)
    metrics = {
        "gap": loss - entropy_t,
        "teacher_neighbours": ops.exp(entropy_t),
        "student_neighbours": ops.exp(entropy_s),
    }
    if include_teacher:
        metrics["self_mass"] = mass_t[:, 0]
    return loss, {k: ops.stop_gradient(v) for k, v in metrics.items()}


def info_nce(
    query: tf.Tensor,
    key: tf.Tensor,
    queue: tf.Tensor,
    *,
    temperature: float | tf.Tensor = 0.2,
    block_size: int | None = None,
    return_metrics: bool = False,
) -> tf.Tensor | tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """InfoNCE of a query against its key and a queue of negatives.

    Args:
        query: `[B, D]` L2-normalised embeddings; the only input that receives
            a gradient.
        key: `[B, D]` L2-normalised embeddings of the other view.
        queue: `[K, D]` L2-normalised keys of earlier images.
        temperature: positive float.
        block_size: as in `similarity_distillation`.
        return_metrics: bool, whether to return a dict as well, with "accuracy"
            `[B]` float32: 1 where the own key is nearer than every point of
            the queue, and 0 elsewhere.

    Returns:
        The loss `[B]` float32. With `return_metrics` a pair of the loss and
        the dict.

    Raises:
        ValueError: if widths or batch sizes differ, or the temperature is not
            positive.

    Source: He et al., "Momentum Contrast", CVPR 2020, equation 1.
    """
    query, key, queue = _prepare(query, key, queue, temperature=temperature)
    scaled = ops.stop_gradient(query) / temperature
    surprise, _, rest, part, largest = _attention(
        scaled, key, queue, block_size
    )
    gradient = (part - rest * key) / temperature
    loss = _with_gradient(surprise, query, gradient)
    if not return_metrics:
        return loss
    nearest = ops.sum(scaled * key, axis=1) > largest
    return loss, {"accuracy": ops.cast(nearest, "float32")}


# The alternatives that the paper compares SEED with.


@keras.saving.register_keras_serializable(package="seed_tf")
def l2(
    student: tf.Tensor,
    teacher: tf.Tensor,
    queue: tf.Tensor,
    *,
    student_temperature: float | tf.Tensor = 0.2,
    teacher_temperature: float | tf.Tensor = 0.01,
) -> tf.Tensor:
    """Squared distance to the teacher's embedding, without the queue.

    Arguments and errors are those of `similarity_distillation`. Returns `[B]`
    float32 in [0, 4], which is `2 - 2 cos`.
    """
    student, teacher, _ = _prepare(student, teacher, queue)
    return ops.sum(ops.square(student - teacher), axis=1)


@keras.saving.register_keras_serializable(package="seed_tf")
def binary_contrastive(
    student: tf.Tensor,
    teacher: tf.Tensor,
    queue: tf.Tensor,
    *,
    student_temperature: float | tf.Tensor = 0.2,
    teacher_temperature: float | tf.Tensor = 0.01,
) -> tf.Tensor:
    """Binary cross-entropy: does a point come from the image or the queue?

    Noise-contrastive estimation with K noise samples: the log-odds that a
    point is the image's own are `z_s.d / t_s - log K`, and the loss is the sum
    of K+1 logistic losses. It keeps one `[B, K]` tensor. Arguments and errors
    are those of `similarity_distillation`. Returns `[B]` float32.

    Source: the contrastive objective of Tian et al., "Contrastive
    Representation Distillation", ICLR 2020, section 3.1, with a uniform noise
    distribution.
    """
    student, teacher, queue = _prepare(
        student, teacher, queue, student_temperature=student_temperature
    )
    prior = ops.log(ops.cast(queue.shape[0], "float32"))
    own = ops.sum(student * teacher, axis=1) / student_temperature - prior
    others = ops.matmul(student, ops.transpose(queue)) / student_temperature
    return ops.softplus(-own) + ops.sum(ops.softplus(others - prior), axis=1)


@keras.saving.register_keras_serializable(package="seed_tf")
def kmeans_clustering(
    student: tf.Tensor,
    teacher: tf.Tensor,
    queue: tf.Tensor,
    *,
    student_temperature: float | tf.Tensor = 0.2,
    teacher_temperature: float | tf.Tensor = 0.01,
    num_clusters: int = 256,
    iterations: int = 2,
) -> tf.Tensor:
    """Cross-entropy with the nearest cluster of the teacher's embedding.

    The clusters are spherical k-means centroids of the queue. They start from
    its first rows, at most `num_clusters`, and move by `iterations` Lloyd
    steps. Other arguments and errors are those of `similarity_distillation`.
    Returns `[B]` float32.

    Source: the paper's k-means ablation, in a form that needs no pass over the
    data, because the centroids follow the queue.
    """
    student, teacher, queue = _prepare(
        student, teacher, queue, student_temperature=student_temperature
    )
    centroids = queue[: min(num_clusters, queue.shape[0])]
    for _ in range(iterations):
        nearest = ops.argmax(
            ops.matmul(queue, ops.transpose(centroids)), axis=1
        )
        sums = ops.segment_sum(queue, nearest, num_segments=centroids.shape[0])
        # An empty cluster keeps its centroid.
        empty = ops.all(sums == 0, axis=1, keepdims=True)
        centroids = ops.where(empty, centroids, l2_normalise(sums))
    target = ops.argmax(ops.matmul(teacher, ops.transpose(centroids)), axis=1)
    logits = ops.matmul(student, ops.transpose(centroids)) / student_temperature
    return keras.losses.sparse_categorical_crossentropy(
        target, logits, from_logits=True
    )


@keras.saving.register_keras_serializable(package="seed_tf")
def online_clustering(
    student: tf.Tensor,
    teacher: tf.Tensor,
    queue: tf.Tensor,
    *,
    student_temperature: float | tf.Tensor = 0.2,
    teacher_temperature: float | tf.Tensor = 0.01,
    num_prototypes: int = 256,
    iterations: int = 3,
    sharpness: float = 0.05,
) -> tf.Tensor:
    """Cross-entropy with balanced soft cluster codes of the teacher's batch.

    The first rows of the queue, at most `num_prototypes`, are the prototypes.
    The teacher's similarities to them, divided by `sharpness`, are balanced
    over the batch by `iterations` rounds of Sinkhorn-Knopp. Other arguments and
    errors are those of `similarity_distillation`. Returns `[B]` float32.

    Source: the codes of Caron et al., "SwAV", NeurIPS 2020, section 3.1, with
    prototypes from the queue instead of learned prototypes.
    """
    student, teacher, queue = _prepare(
        student, teacher, queue, student_temperature=student_temperature
    )
    prototypes = ops.transpose(queue[: min(num_prototypes, queue.shape[0])])
    log_codes = ops.matmul(teacher, prototypes) / sharpness
    for _ in range(iterations):
        log_codes -= ops.logsumexp(log_codes, axis=0, keepdims=True)
        log_codes -= ops.logsumexp(log_codes, axis=1, keepdims=True)
    logits = ops.matmul(student, prototypes) / student_temperature
    return keras.losses.categorical_crossentropy(
        ops.exp(log_codes), logits, from_logits=True
    )
