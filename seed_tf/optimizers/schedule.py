"""The paper's learning rate over a run."""

from __future__ import annotations

import keras


def warmup_cosine(
    *,
    batch_size: int,
    steps_per_epoch: int,
    epochs: float,
    warmup_epochs: float = 5,
    rate_per_256: float = 0.03,
) -> keras.optimizers.schedules.CosineDecay:
    """Returns a linear warm-up from 0, then half a cosine to 0, per step.

    Args:
        batch_size: int, the global batch; the peak rate is
            `rate_per_256 * batch_size / 256` (linear scaling).
        steps_per_epoch: int.
        epochs: int or float, of the whole run, warm-up included.
        warmup_epochs: int or float, less than `epochs`. The authors' code
            warms up from the base rate, once per epoch; this schedule warms up
            from 0, at every step.
        rate_per_256: float, the paper's 0.03.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`.

    Raises:
        ValueError: if a number is not positive, or the warm-up is as long as
            the run.

    Example:

    >>> rate = warmup_cosine(batch_size=512, steps_per_epoch=10, epochs=20)
    >>> [round(float(rate(step)), 3) for step in (0, 25, 50, 125, 200)]
    [0.0, 0.03, 0.06, 0.03, 0.0]
    """
    for name, value in (
        ("batch_size", batch_size),
        ("steps_per_epoch", steps_per_epoch),
        ("epochs", epochs),
        ("rate_per_256", rate_per_256),
    ):
        if value <= 0:
            raise ValueError(f"`{name}` must be positive. Received: {value}.")
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(
            "`warmup_epochs` must be less than `epochs`. Received: "
            f"warmup_epochs={warmup_epochs}, epochs={epochs}."
        )
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    peak = rate_per_256 * batch_size / 256
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else peak,
        decay_steps=round(epochs * steps_per_epoch) - warmup_steps,
        warmup_target=peak if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
