"""Randomness as a pure function of keys, one key per image.

TensorFlow's stateless operators take one seed for a whole tensor, so that the
draws of an image would depend on its place in the batch and on the batch's
size. Here every image has a key of its own, and with it the same random
numbers in whatever batch, replica or order it is seen. Eagerly, in
`tf.function`, in `tf.data` and under XLA the bits are the same.

The generator is Threefry-2x32 with 20 rounds: Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011.
"""

import tensorflow as tf

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_DRAW, _FOLD = 0, 1  # second counter word: keeps draws and new keys apart


def image_seeds(seed, step, batch_size, offset=0):
    """Returns one key per image of a training step.

    A key depends on the run, the step and the image's position in the global
    batch, and on nothing else: N replicas draw what one device would, and a
    resumed run what an uninterrupted one would.

    Args:
        seed: int, the run's seed, taken modulo 2**64.
        step: int64 scalar, of any sign.
        batch_size: int or int32 scalar, images in this (replica's) batch.
        offset: int or int32 scalar, position of the first of them in the
            global batch: replica index times the replica's batch size.

    Returns:
        uint32 `[batch_size, 2]`.

    Example:

    >>> seeds = image_seeds(seed=0, step=7, batch_size=4)
    >>> second_half = image_seeds(seed=0, step=7, batch_size=2, offset=2)
    >>> bool(tf.reduce_all(seeds[2:] == second_half))
    True
    """
    run = tf.constant([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], tf.uint32)
    # A bitcast, since what a cast of a negative step gives is not defined.
    step = tf.bitcast(tf.cast(step, tf.int64), tf.uint32)
    key = threefry(run, step[0], step[1])
    return fold_in(key, tf.range(batch_size) + offset)


def fold_in(seeds, data):
    """Returns new keys, one for each pair of a key and a number.

    Args:
        seeds: uint32 `[..., 2]`, keys.
        data: int or integer tensor, modulo 2**32, of a shape that broadcasts
            with `[...]`: a scalar gives every key a new one, `[n, 1]` gives
            `n` for each of `[B, 2]`.

    Returns:
        uint32 `[..., 2]`, independent of one another and of `uniform`'s draws
        from the old keys.
    """
    return threefry(seeds, tf.cast(data, tf.uint32), _u32(_FOLD))


def uniform(seeds, n):
    """Returns `n` uniform numbers for each key.

    Args:
        seeds: uint32 `[..., 2]`, keys.
        n: int, how many. More of them start with the same ones.

    Returns:
        float32 `[..., n]` in [0, 1), multiples of 2**-24.
    """
    blocks = (n + 1) // 2
    counter = tf.cast(tf.range(blocks), tf.uint32)
    bits = threefry(seeds[..., None, :], counter, _u32(_DRAW))
    shape = tf.concat([tf.shape(seeds)[:-1], [2 * blocks]], 0)
    bits = tf.reshape(bits, shape)[..., :n]
    # 24 bits are what a float32 holds exactly; the shift also makes them fit
    # the signed type, whose conversion every device has.
    bits = tf.cast(tf.bitwise.right_shift(bits, _u32(8)), tf.int32)
    return tf.cast(bits, tf.float32) * 2.0**-24


def threefry(key, counter0, counter1):
    """Threefry-2x32-20, for each key a bijection of counters.

    Args:
        key: uint32 `[..., 2]`.
        counter0: uint32 tensor, the counter's first word.
        counter1: uint32 tensor, its second; both broadcast with `[...]`.

    Returns:
        uint32 `[..., 2]`, random bits.
    """
    key = tf.cast(key, tf.uint32)
    words = _rounds(key[..., 0], key[..., 1], counter0, counter1)
    return tf.stack(words, axis=-1)


# Traced once: its operations by the hundred would take a start 20 ms wherever
# something is drawn.
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
