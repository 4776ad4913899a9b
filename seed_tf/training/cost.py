"""Counts operations and memory of a step from the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from seed_tf import losses
from seed_tf.acceleration import Acceleration
from seed_tf.embedding_queue import EmbeddingQueue
from seed_tf.trainer import Trainer, noise_image

# Memory of the streamed losses for any queue: logits of a block, their
# exponentials, and products of both.
_LOSS_BYTES = 4 * 2**21 * 4
# Parallel operations take more memory than `_peak_bytes` counts: distilling a
# ResNet-18 on a CPU took 1.45 times the bytes.
_MARGIN = 1.5


class Cost(NamedTuple):
    """Cost of one pass.

    Attributes:
        flops: floating-point operations of convolutions and matrix products;
            a multiplication and its addition count as two.
        bytes: peak memory of all tensors but weights and input.
    """

    flops: int
    bytes: int


class StepCost(NamedTuple):
    """Cost of a training step on each device.

    Attributes:
        flops: floating-point operations by part of the step.
        bytes: bytes of memory by part of the step. TensorFlow, the reading of
            images and an accelerator's workspaces need more memory.
    """

    flops: dict[str, int]
    bytes: dict[str, int]


def forward(network: keras.Model, shape: Sequence[int]) -> Cost:
    """Counts the cost of a network's inference.

    Args:
        network: network of images.
        shape: (B, H, W, 3).

    Example:

    >>> cost = seed_tf.training.cost.forward(student, (1, 32, 32, 3))
    >>> cost.flops == 2 * (30 * 30 * 4 * 27 + 4 * 4 + 4 * 128)
    True
    """
    weights = network.trainable_variables
    others = network.non_trainable_variables

    def run(weights, others, images):
        call = network.stateless_call(weights, others, images, training=False)
        return call[0]

    return _trace(run, weights, others, _floats(shape))


def forward_and_back(
    network: keras.Model,
    shapes: Sequence[Sequence[int]],
    acceleration: Acceleration | None = None,
) -> Cost:
    """Counts the cost of a network's training pass: output and gradients.

    Args:
        network: network of images.
        shapes: shapes (B, H, W, 3), one for each size of view.
        acceleration: acceleration of the model that trains the network.
    """
    acceleration = acceleration or Acceleration(None)
    weights = network.trainable_variables
    others = network.non_trainable_variables

    def run(weights, others, *views):
        with acceleration.applied(network), tf.GradientTape() as tape:
            tape.watch(weights)
            outputs = [
                network.stateless_call(weights, others, view, training=True)[0]
                for view in views
            ]
            total = tf.add_n([tf.reduce_sum(output) for output in outputs])
        # The outputs stay in memory: a loss needs them.
        return outputs, tape.gradient(total, weights)

    return _trace(run, weights, others, *map(_floats, shapes))


def of_step(
    model: Trainer,
    *,
    encoder: keras.Model,
    batch_size: int,
    targets_cached: bool = False,
) -> StepCost:
    """Counts the cost of a training step.

    Args:
        model: a compiled `SEED` or `MoCo`.
        encoder: the trained part of the model.
        batch_size: images per step on one device.
        targets_cached: whether targets come from a view cache.
    """
    other = getattr(model, "teacher", None) or model.momentum_encoder
    noise = noise_image(encoder, other)
    samples = model.augment(noise, model.step.value)

    def shapes_for(network):
        seen = model.seen_by(network, samples)
        return [(batch_size * len(v), *v.shape[1:]) for v in seen]

    shapes, others = shapes_for(encoder), shapes_for(other)
    queues = [q for q in model.state.values() if isinstance(q, EmbeddingQueue)]
    trained = forward_and_back(encoder, shapes, model.acceleration)
    targets = [Cost(0, 0)]
    if not targets_cached:
        targets = [forward(other, shape) for shape in others]
    compared = [
        _loss(model, shape[0], queue)
        for shape, queue in zip(shapes, queues, strict=True)
    ]
    copies = model.acceleration.variables
    weights = [*encoder.variables, *other.variables, *copies]
    activations = max(trained.bytes, *(target.bytes for target in targets))
    views = sum(4 * math.prod(shape) for shape in shapes)
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    return StepCost(
        flops={
            "targets": sum(target.flops for target in targets),
            "trained encoder and gradients": trained.flops,
            "loss": sum(loss.flops for loss in compared),
        },
        bytes={
            "weights": sum(map(_bytes, weights)),
            "optimizer": sum(_bytes(v) for v in model.optimizer.variables),
            "queue": sum(_bytes(q.embeddings) for q in queues),
            "activations and gradients": activations + views,
            "working space of the loss": max(loss.bytes for loss in compared),
        },
    )


def images_that_fit(step: StepCost, batch_size: int, free: int | None) -> int:
    """Chooses how many images of a batch fit into memory.

    Args:
        step: cost of the whole batch.
        batch_size: images of the batch.
        free: bytes of free memory, or None if unknown.

    Returns:
        `batch_size` if it fits or `free` is None; else the largest smaller
        power of two that fits, at least 16 (two images for each of MoCo's
        shuffled groups); else 0.
    """
    growing = _MARGIN * step.bytes["activations and gradients"]
    fixed = sum(step.bytes.values()) - step.bytes["activations and gradients"]
    sizes = [batch_size]
    sizes += [2**i for i in reversed(range(4, batch_size.bit_length()))]
    for size in sizes:
        needed = fixed + growing * size / batch_size
        if size <= batch_size and (free is None or needed <= free):
            return size
    return 0


def _loss(model, batch, queue):
    """Counts the cost of loss and gradient for one size of view."""
    size, dim = queue.size, queue.dim
    objective = getattr(model, "objective", None)
    if objective in (None, losses.similarity_distillation):
        # Logits and weighted means, in SEED for student and teacher.
        passes = 2 if hasattr(model, "teacher") else 1
        return Cost(passes * 4 * batch * size * dim, _LOSS_BYTES)

    def run(student, teacher, points):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = objective(
                student,
                teacher,
                points,
                student_temperature=0.2,
                teacher_temperature=0.01,
            )
        return value, tape.gradient(value, student)

    return _trace(run, *map(_floats, [(batch, dim), (batch, dim), (size, dim)]))


def _floats(shape):
    return tf.TensorSpec(shape, tf.float32)


def _trace(function, *arguments):
    """Counts the cost of a function, from the shapes of its arguments.

    Pass variables as arguments: outside of replicas, a strategy's variables
    cannot be read.
    """
    specs = tf.nest.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), arguments
    )
    graph = tf.function(function).get_concrete_function(*specs).graph
    needed = _ancestors(graph.outputs)
    operations = [op for op in graph.get_operations() if op.name in needed]
    flops = sum(_FLOPS[op.type](op) for op in operations if op.type in _FLOPS)
    return Cost(flops, _peak_bytes(operations, graph.outputs))


def _ancestors(tensors):
    """Returns the names of the operations that tensors depend on."""
    names, found = set(), [tensor.op for tensor in tensors]
    while found:
        op = found.pop()
        if op.name not in names:
            names.add(op.name)
            found += [tensor.op for tensor in op.inputs]
    return names


def _size(tensor):
    return tensor.shape.num_elements()


def _matrix_product(op):
    inner = op.inputs[0].shape[0 if op.get_attr("transpose_a") else 1]
    return 2 * _size(op.outputs[0]) * inner


def _convolution(values, kernel, rank):
    """Counts a multiplication and an addition per value and filter element."""
    return 2 * _size(values) * math.prod(kernel.shape[:rank])


_DEPTHWISE = "DepthwiseConv2dNative"
_FLOPS = {  # the values are outputs or their gradients
    "MatMul": _matrix_product,
    "Conv2D": lambda op: _convolution(op.outputs[0], op.inputs[1], 3),
    "Conv2DBackpropInput": lambda op: _convolution(
        op.inputs[2], op.inputs[1], 3
    ),
    "Conv2DBackpropFilter": lambda op: _convolution(
        op.inputs[2], op.outputs[0], 3
    ),
    _DEPTHWISE: lambda op: _convolution(op.outputs[0], op.inputs[1], 2),
    f"{_DEPTHWISE}BackpropInput": lambda op: _convolution(
        op.inputs[2], op.inputs[1], 2
    ),
    f"{_DEPTHWISE}BackpropFilter": lambda op: _convolution(
        op.inputs[2], op.outputs[0], 2
    ),
}

_NO_MEMORY = {"Placeholder", "Const", "ReadVariableOp"}
_VIEWS = {"Identity", "Reshape", "StopGradient", "Squeeze", "ExpandDims"}


def _peak_bytes(operations, outputs):
    """Returns the peak bytes of operations that run in the given order."""
    owners = {}  # the tensor that owns the memory of a view

    def owner(tensor):
        return owners.get(tensor.ref(), tensor.ref())

    last_use = {}
    for i, op in enumerate(operations):
        if op.type in _VIEWS:
            owners[op.outputs[0].ref()] = owner(op.inputs[0])
        for tensor in op.inputs:
            last_use[owner(tensor)] = i
    for tensor in outputs:
        last_use[owner(tensor)] = len(operations)
    alive = peak = 0
    freed_after = {}
    for i, op in enumerate(operations):
        if op.type not in _NO_MEMORY | _VIEWS:
            for tensor in op.outputs:
                used = last_use.get(tensor.ref())
                if used is None:
                    continue
                alive += _bytes(tensor)
                freed_after[used] = freed_after.get(used, 0) + _bytes(tensor)
        peak = max(peak, alive)
        alive -= freed_after.get(i, 0)
    return peak


def _bytes(tensor):
    """Returns the bytes of a tensor or variable; 0 for an unknown shape."""
    count = tf.TensorShape(tensor.shape).num_elements() or 0
    return count * tf.as_dtype(tensor.dtype).size
