"""Randomness as a pure function of keys, one key per image.

TensorFlow's stateless operators take one seed for a whole tensor: the draws of
an image would depend on its place in the batch and on the size of the batch.
Here every image has a key of its own, and with it the same random numbers in
every batch, replica and order. Eagerly, in `tf.function`, in `tf.data` and
under XLA the bits are the same.

All keys of a run derive from its seed by three functions. `image_seeds` gives
the keys of the images of a step. `view_keys` gives from them the keys of
views; training, decoding and view caches agree because all of them call it.
`purpose_key` gives a key for anything but images, such as the order of an
epoch.

The generator is Threefry-2x32 with 20 rounds: Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import tensorflow as tf

__all__ = [
    "fold_in",
    "image_seeds",
    "purpose_key",
    "takes_seeds",
    "threefry",
    "uniform",
    "view_keys",
]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_DRAW, _FOLD = 0, 1  # second counter word: keeps draws and new keys apart


def image_seeds(
    seed: int,
    step: int | tf.Tensor,
    batch_size: int | tf.Tensor,
    offset: int | tf.Tensor = 0,
) -> tf.Tensor:
    """Returns one key per image of a training step.

    A key depends only on the run, the step and the position of the image in
    the global batch. So N replicas draw the same as one device, and a resumed
    run draws the same as an uninterrupted one.

    Args:
        seed: int, the run's seed, taken modulo 2**64.
        step: int64 scalar, of any sign.
        batch_size: int or int32 scalar, images in this (replica's) batch.
        offset: int or int32 scalar, position of the replica's first image in
            the global batch: replica index times the replica's batch size.

    Returns:
        uint32 `[batch_size, 2]`.

    Example:

    >>> seeds = image_seeds(seed=0, step=7, batch_size=4)
    >>> second_half = image_seeds(seed=0, step=7, batch_size=2, offset=2)
    >>> bool(tf.reduce_all(seeds[2:] == second_half))
    True
    """
    run = tf.constant([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], tf.uint32)
    # A bitcast, because the cast of a negative step is not defined.
    step = tf.bitcast(tf.cast(step, tf.int64), tf.uint32)
    key = threefry(run, step[0], step[1])
    return fold_in(key, tf.range(batch_size) + offset)


def view_keys(image_keys: tf.Tensor, stream: int | tf.Tensor = 0) -> tf.Tensor:
    """Returns the keys of views, which views take as `seeds`.

    Args:
        image_keys: uint32 `[..., 2]`, from `image_seeds` or a view cache.
        stream: int or integer tensor that broadcasts with `[...]`, the number
            of the view: 0, and for MoCo's second view of an image 1.

    Returns:
        uint32 `[..., 2]`.
    """
    return fold_in(image_keys, stream)


def takes_seeds(views: Callable) -> bool:
    """Whether views, a layer or function, are functions of `seeds`."""
    call = getattr(views, "call", views)
    return "seeds" in inspect.signature(call).parameters


def purpose_key(seed: int, step: int | tf.Tensor, purpose: int) -> tf.Tensor:
    """Returns a key for something other than the images of a step.

    Args:
        seed: int, as in `image_seeds`.
        step: int64 scalar, a step or an epoch.
        purpose: int, a large constant, different for every use.

    Returns:
        uint32 `[2]`.
    """
    return fold_in(image_seeds(seed, step, 1)[0], purpose)


def fold_in(seeds: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    """Returns new keys, one for each pair of a key and a number.

    Args:
        seeds: uint32 `[..., 2]`, keys.
        data: int or integer tensor, modulo 2**32, of a shape that broadcasts
            with `[...]`: a scalar gives every key a new one, `[n, 1]` gives
            `n` for each of `[B, 2]`.

    Returns:
        uint32 `[..., 2]`. The new keys are independent of one another and of
        the numbers that `uniform` draws from the old keys.
    """
    return threefry(seeds, tf.cast(data, tf.uint32), _u32(_FOLD))


def uniform(seeds: tf.Tensor, n: int) -> tf.Tensor:
    """Returns `n` uniform numbers for each key.

    Args:
        seeds: uint32 `[..., 2]`, keys.
        n: int. A larger `n` appends numbers and keeps the earlier ones.

    Returns:
        float32 `[..., n]` in [0, 1), multiples of 2**-24.
    """
    blocks = (n + 1) // 2
    counter = tf.cast(tf.range(blocks), tf.uint32)
    bits = threefry(seeds[..., None, :], counter, _u32(_DRAW))
    shape = tf.concat([tf.shape(seeds)[:-1], [2 * blocks]], 0)
    bits = tf.reshape(bits, shape)[..., :n]
    # A float32 holds 24 bits exactly. The shift also makes them fit the signed
    # type, which every device can convert.
    bits = tf.cast(tf.bitwise.right_shift(bits, _u32(8)), tf.int32)
    return tf.cast(bits, tf.float32) * 2.0**-24


def threefry(
    key: tf.Tensor, counter0: tf.Tensor, counter1: tf.Tensor
) -> tf.Tensor:
    """Returns Threefry-2x32-20 of counters, a bijection for each key.

    Args:
        key: uint32 `[..., 2]`.
        counter0: uint32 tensor, the counter's first word.
        counter1: uint32 tensor, the counter's second word. Both broadcast
            with `[...]`.

    Returns:
        uint32 `[..., 2]`, random bits.
    """
    key = tf.cast(key, tf.uint32)
    words = _rounds(key[..., 0], key[..., 1], counter0, counter1)
    return tf.stack(words, axis=-1)


# Traced once: a hundred operations would add 20 ms to the start of a program
# at every place that draws numbers.
@tf.function(
    input_signature=[tf.TensorSpec(None, tf.uint32)] * 4, autograph=False
)
def _rounds(k0, k1, counter0, counter1):
    keys = (k0, k1, k0 ^ k1 ^ _u32(_PARITY))
    x0, x1 = counter0 + k0, counter1 + k1
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            x0 += x1
            x1 = _rotate_left(x1, rotation) ^ x0
        x0 += keys[(i + 1) % 3]
        x1 += keys[(i + 2) % 3] + _u32(i + 1)
    return x0, x1


def _rotate_left(x, bits):
    return tf.bitwise.left_shift(x, _u32(bits)) | tf.bitwise.right_shift(
        x, _u32(32 - bits)
    )


def _u32(value):
    return tf.constant(value, tf.uint32)
