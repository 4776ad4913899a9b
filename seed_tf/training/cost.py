"""What a step costs, told from the shapes of its tensors before it is run."""

import math
from typing import NamedTuple

import tensorflow as tf

from seed_tf import losses
from seed_tf.acceleration import Acceleration
from seed_tf.embedding_queue import EmbeddingQueue
from seed_tf.trainer import noise_image

# The streamed losses hold this much whatever the queue: logits of a block,
# their exponentials, and the products of both.
_LOSS_BYTES = 4 * 2**21 * 4
# Operations run side by side, with buffers of their own: a ResNet-18 distilled
# on a CPU took 1.45 times the bytes that its batch was estimated to add.
_MARGIN = 1.5


class Cost(NamedTuple):
    """Of one pass.

    Attributes:
        flops: int, floating-point operations of convolutions and matrix
            products, two for each multiplication with its addition.
        bytes: int, the most that all tensors of the pass take at one time,
            weights and the input left out.
    """

    flops: int
    bytes: int


class StepCost(NamedTuple):
    """Of a training step, on each of the devices that share it.

    Attributes:
        flops: dict of parts to floating-point operations.
        bytes: dict of parts to bytes of memory. TensorFlow itself, the
            reading of images and an accelerator's workspaces come on top.
    """

    flops: dict
    bytes: dict


def forward(network, shape):
    """Cost of a network's inference.

    Args:
        network: keras.Model of images.
        shape: ints (B, H, W, 3).

    Returns:
        `Cost`.

    Example:

    >>> cost = seed_tf.training.cost.forward(student, (1, 32, 32, 3))
    >>> cost.flops == 2 * (30 * 30 * 4 * 27 + 4 * 4 + 4 * 128)
    True
    """
    weights, others = (
        network.trainable_variables,
        network.non_trainable_variables,
    )

    def run(weights, others, images):
        call = network.stateless_call(weights, others, images, training=False)
        return call[0]

    return _trace(run, weights, others, _floats(shape))


def forward_and_back(network, shapes, acceleration=None):
    """Cost of a network's training pass: its output and all gradients.

    Args:
        network: keras.Model of images.
        shapes: list of shapes (B, H, W, 3), one for each size of view.
        acceleration: `Acceleration` of the model that trains the network, by
            default none.

    Returns:
        `Cost`.
    """
    acceleration = acceleration or Acceleration(None)
    weights, others = (
        network.trainable_variables,
        network.non_trainable_variables,
    )

    def run(weights, others, *views):
        with acceleration.applied(network), tf.GradientTape() as tape:
            tape.watch(weights)
            outputs = [
                network.stateless_call(weights, others, view, training=True)[0]
                for view in views
            ]
            total = tf.add_n([tf.reduce_sum(output) for output in outputs])
        # A loss needs the outputs, this sum of them does not.
        return outputs, tape.gradient(total, weights)

    return _trace(run, weights, others, *map(_floats, shapes))


def of_step(model, *, encoder, batch_size, targets_cached=False):
    """Cost of a step of a compiled `SEED` or `MoCo`.

    Args:
        model: the model.
        encoder: keras.Model, the part of it that is trained.
        batch_size: int, images per step on one device.
        targets_cached: bool, whether embeddings come from a view cache.

    Returns:
        `StepCost`.
    """
    other = getattr(model, "teacher", None) or model.momentum_encoder
    samples = model.augment(noise_image(), model.step.value)
    shapes = [(batch_size * len(v), *v.shape[1:]) for v in samples]
    queues = [q for q in model.state.values() if isinstance(q, EmbeddingQueue)]
    trained = forward_and_back(encoder, shapes, model.acceleration)
    targets = [Cost(0, 0)]
    if not targets_cached:
        targets = [forward(other, shape) for shape in shapes]
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


def images_that_fit(step, batch_size, free):
    """How many images of a batch there is memory for.

    Args:
        step: `StepCost` of the whole batch.
        batch_size: int.
        free: int, bytes, or None if not known.

    Returns:
        `batch_size`, or the largest smaller power of two from 16 (two images
        for each of MoCo's shuffled groups) that fits, or 0.
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
    """Cost of the objective and its gradient, for one size of view."""
    size, dim = queue.size, queue.dim
    objective = getattr(model, "objective", None)
    if objective in (None, losses.similarity_distillation):
        # Logits and weighted means; of student and teacher in SEED's.
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
    """Counts what a function does with arguments of these shapes.

    Variables come as arguments: those of a strategy can be read only inside
    of its replicas.
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
    """Names of the operations that tensors depend on; others are not run."""
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


def _taps(shape):
    """Products in one output of a convolution of a filter's shape."""
    height, width, inputs, _ = shape
    return height * width * inputs


def _taps_of_depthwise(shape):
    return shape[0] * shape[1]


# Each value that a convolution computes, or whose gradient it spreads, takes
# one multiplication and addition per element of the filter.
_FLOPS = {
    "MatMul": _matrix_product,
    "Conv2D": lambda op: 2 * _size(op.outputs[0]) * _taps(op.inputs[1].shape),
    "Conv2DBackpropInput": lambda op: (
        2 * _size(op.inputs[2]) * _taps(op.inputs[1].shape)
    ),
    "Conv2DBackpropFilter": lambda op: (
        2 * _size(op.inputs[2]) * _taps(op.outputs[0].shape)
    ),
    "DepthwiseConv2dNative": lambda op: (
        2 * _size(op.outputs[0]) * _taps_of_depthwise(op.inputs[1].shape)
    ),
    "DepthwiseConv2dNativeBackpropInput": lambda op: (
        2 * _size(op.inputs[2]) * _taps_of_depthwise(op.inputs[1].shape)
    ),
    "DepthwiseConv2dNativeBackpropFilter": lambda op: (
        2 * _size(op.inputs[2]) * _taps_of_depthwise(op.outputs[0].shape)
    ),
}

_NO_MEMORY = {"Placeholder", "Const", "ReadVariableOp"}
_VIEWS = {"Identity", "Reshape", "StopGradient", "Squeeze", "ExpandDims"}


def _peak_bytes(operations, outputs):
    """The most bytes alive at once if operations run in their given order."""
    owners = {}  # of the memory that a tensor is a view of

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
    """Of a tensor or variable; none if its shape is not known."""
    count = tf.TensorShape(tensor.shape).num_elements() or 0
    return count * tf.as_dtype(tensor.dtype).size
