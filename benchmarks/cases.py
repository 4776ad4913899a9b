"""The training steps that benchmarks time, and our side of them."""

from typing import NamedTuple

import numpy as np

from benchmarks import timing


class Case(NamedTuple):
    """A step: backbones by registry name, pixels of a view, images, K."""

    student: str
    size: int
    batch: int
    teacher: str = "resnet50"
    queue_size: int = 65536


CASES = {
    "a": Case("mobilenet_v3_large", 224, 16),
    "b": Case("resnet18", 224, 16),
    "c": Case("resnet18", 32, 256),
    "d": Case("efficientnet_b0", 224, 16),
}


def random_images(case, batches=8):
    """uint8 `[batches, B, size, size, 3]`."""
    shape = batches, case.batch, case.size, case.size, 3
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def model(case, precision="auto", views=None, hardware=None, **options):
    """A compiled `seed_tf.SEED` of networks with random weights.

    Args:
        case: `Case`.
        precision: str, in which the student trains, as `Plan.student_policy`.
        views: as SEED takes them; by default `as_they_are`.
        hardware: `Hardware`, by default this machine's.
        **options: further ones of SEED.
    """
    import seed_tf  # before TensorFlow: it turns oneDNN on

    # isort: split
    import keras

    from seed_tf.acceleration import Plan
    from seed_tf.acceleration import hardware as machine

    if hardware or precision != "auto":
        plan = Plan(hardware or machine.current(), precision)
        options["acceleration"] = plan
    keras.utils.set_random_seed(0)
    seed = seed_tf.SEED(
        teacher=seed_tf.Encoder(case.teacher),
        student=seed_tf.Encoder(case.student),
        views=views or as_they_are,
        queue_size=case.queue_size,
        **options,
    )
    seed.compile(seed_tf.training.SGD(0.03))
    return seed


def as_they_are(images, seeds):
    """Views that pass images on."""
    import tensorflow as tf

    del seeds
    return tf.cast(images, tf.float32)


def with_embeddings(images, dim=128):
    """Batches as a view cache gives them, with random embeddings."""
    rng = np.random.default_rng(0)
    shape = images.shape[:2]
    return {
        "images": images,
        "keys": rng.integers(0, 2**32, (*shape, 2), np.uint32),
        "embeddings": rng.normal(size=(*shape, 1, dim)).astype(np.float16),
    }


def fit_in_turns(seed, batches):
    """`seed.fit` without end, in turns.

    Args:
        seed: a compiled `seed_tf.SEED`.
        batches: uint8 `[N, B, H, W, 3]`, batches that are cycled through, or
            a dict `with_embeddings`.
    """
    import keras
    import tensorflow as tf

    turns = timing.Turns()
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda *_, **__: turns.before_step(),
        on_train_batch_end=lambda *_, **__: turns.after_step(),
    )
    data = tf.data.Dataset.from_tensor_slices(batches).repeat()
    seed.fit(data, steps_per_epoch=2**31, callbacks=[callback], verbose=0)


def whole_fits(seed, batches, epochs=3):
    """Whole calls of `seed.fit` in turns, each of some short epochs.

    Args:
        seed: a compiled `seed_tf.SEED`.
        batches: as of `fit_in_turns`.
        epochs: int. An epoch has as many steps as were asked for.
    """
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(batches).repeat()

    def run(steps):
        seed.fit(data, epochs=epochs, steps_per_epoch=steps, verbose=0)
        return epochs * steps

    timing.Turns().repeat_whole(run)


def steps_alone(seed, batches):
    """The compiled step in turns, on tensors, without Keras's loop.

    Args:
        seed: a compiled `seed_tf.SEED`.
        batches: uint8 `[N, B, H, W, 3]`, of which the first is used.
    """
    import tensorflow as tf

    seed.optimizer.build(seed.trainable_variables)
    step, images = tf.function(seed.train_step), tf.constant(batches[0])
    timing.Turns().repeat(lambda: step(images)["loss"].numpy())
