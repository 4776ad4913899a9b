"""Stochastic gradient descent by PyTorch's rule, which the paper used."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="seed_tf")
class SGD(keras.optimizers.Optimizer):
    """SGD with momentum and coupled weight decay, PyTorch's rule:

        g <- g + weight_decay * w;  v <- momentum * v + g;  w <- w - lr * v

    for every trainable weight, BatchNorm and biases included.

    `keras.optimizers.SGD` differs in two ways. Its `weight_decay` is
    decoupled: it does not pass through the momentum, and so is ten times
    weaker at momentum 0.9. And its velocity includes the learning rates of
    earlier steps, so that the two rules part as soon as a schedule moves.

    Args:
        learning_rate: float, or a Keras learning rate schedule.
        momentum: float in [0, 1).
        weight_decay: float, 0 or more.

    Raises:
        ValueError: if momentum or weight decay is out of range.

    Source: the rule in torch.optim.SGD's documentation; momentum and weight
    decay of Fang et al., ICLR 2021.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        name: str = "sgd",
        **kwargs,
    ):
        if not 0 <= momentum < 1:
            raise ValueError(
                f"`momentum` must be in [0, 1). Received: momentum={momentum}."
            )
        if weight_decay < 0:
            raise ValueError(
                "`weight_decay` must not be negative. "
                f"Received: weight_decay={weight_decay}."
            )
        # `weight_decay` is not passed on: the base class would apply it as
        # well, decoupled.
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = weight_decay

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.velocities = self.add_optimizer_variables(
                variables, "velocity"
            )

    def update_step(self, gradient, variable, learning_rate):
        velocity = self.velocities[self._get_variable_index(variable)].value
        gradient = ops.cast(gradient, variable.dtype)
        gradient += self.coupled_weight_decay * variable
        # One kernel for the whole rule gives the same bits every time. Three
        # terms added by `+` become one AddN, whose order of additions depends
        # on which buffer happens to be free.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=ops.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=ops.cast(self.momentum, variable.dtype),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "weight_decay": self.coupled_weight_decay,
        }
