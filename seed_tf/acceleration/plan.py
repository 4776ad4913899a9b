"""Chooses and installs faster kernels for a training step.

A `Plan` names the hardware of a step. An `Acceleration` carries the plan out in
one model: layers of the trained networks use faster kernels inside the training
step, and a folded copy of the frozen teacher gives its embeddings.

The kernels are installed when a forward pass begins and removed when it ends. A
`tf.function` keeps the traced operations, so later steps cost nothing. A clone
that shares the variables would not serve: a subclassed `keras.Model` cannot be
cloned layer by layer.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import keras

from seed_tf.acceleration import fused_layers, patching, precision
from seed_tf.acceleration import hardware as machine
from seed_tf.acceleration.folded_teacher import FoldedTeacher
from seed_tf.keras_internals import all_layers


@keras.saving.register_keras_serializable(package="seed_tf")
@dataclasses.dataclass(frozen=True)
class Plan:
    """Choices of a training step for given hardware.

    Attributes:
        hardware: `Hardware`, by default this machine's.

    Example:

    >>> plan = seed_tf.acceleration.Plan(
    ...     seed_tf.acceleration.Hardware(accelerated=True, bfloat16=True))
    >>> plan.student_policy
    'mixed_bfloat16'
    """

    hardware: machine.Hardware = dataclasses.field(
        default_factory=machine.current
    )

    @property
    def student_policy(self) -> str:
        """Keras dtype policy by which a student trains fastest."""
        return precision.default_student_policy(self.hardware)

    def get_config(self) -> dict:
        return dataclasses.asdict(self.hardware)

    @classmethod
    def from_config(cls, config: dict) -> Plan:
        return cls(machine.Hardware(**config))


class Acceleration:
    """A plan carried out in one model; `str` lists the replacements.

    Args:
        plan: "auto" for a plan for this machine, a `Plan`, or None for plain
            Keras and an unfolded teacher.

    Attributes:
        requested: the argument.
        plan: `Plan` or None.

    Raises:
        ValueError: if `plan` has another value.
    """

    def __init__(self, plan: Plan | str | None = "auto"):
        self.requested = plan
        if plan == "auto":
            plan = Plan()
        if plan is not None and not isinstance(plan, Plan):
            raise ValueError(
                '`acceleration` must be "auto", None for plain Keras, or a '
                "seed_tf.acceleration.Plan. "
                f"Received: acceleration={plan!r}."
            )
        self.plan = plan
        self._networks: list[keras.Model] = []
        self._teacher: FoldedTeacher | None = None

    def add(self, network: keras.Model) -> None:
        """Notes a network that the training step calls, for `str`."""
        self._networks.append(network)

    def fold(
        self,
        teacher: keras.Model,
        teacher_precision: str | None,
        teacher_temperature: float,
    ) -> Callable:
        """Returns a function from images to a frozen teacher's embeddings.

        Args:
            teacher: keras.Model.
            teacher_precision: "float32", "bfloat16", or None for the result
                of `precision.default_teacher_precision`.
            teacher_temperature: positive float.

        Raises:
            ValueError: if bfloat16 is asked for without a plan.
        """
        if self.plan is None:
            if teacher_precision == "bfloat16":
                raise ValueError(
                    "A teacher in bfloat16 is a copy that acceleration makes. "
                    "Received: teacher_precision='bfloat16' with "
                    "acceleration=None. Leave one of them out."
                )
            return functools.partial(teacher, training=False)
        self._teacher = FoldedTeacher(
            teacher,
            teacher_precision
            or precision.default_teacher_precision(
                teacher_temperature, self.plan.hardware
            ),
            self.plan.hardware,
        )
        return self._teacher

    def update(self) -> None:
        """Folds the teacher again, whose weights may have changed."""
        if self._teacher is not None:
            self._teacher.update()

    @property
    def variables(self) -> list:
        """Variables that acceleration adds to those of the model."""
        return [] if self._teacher is None else self._teacher.variables

    @contextlib.contextmanager
    def applied(self, network: keras.Model) -> Iterator[None]:
        """Within the context, the layers of `network` compute faster.

        Layers with a `call` or `convolution_op` of their own stay as they
        are. The context may be nested.
        """
        with patching.replaced(self._replacements(network)):
            yield

    def for_views(self) -> contextlib.AbstractContextManager:
        """Within the context, views are made for the hardware of the plan."""
        if self.plan is None:
            return contextlib.nullcontext()
        return machine.assume(self.plan.hardware)

    def _replacements(self, network):
        """Yields (layer, name of its method, function)."""
        if self.plan is None:
            return
        for layer in all_layers(network):
            found = fused_layers.replacement(layer, self.plan.hardware)
            if found and not patching.is_patched(layer):
                yield layer, *found

    def __str__(self):
        if self.plan is None:
            return "none, plain Keras"
        counts = collections.Counter(
            type(layer).__name__
            for network in self._networks
            for layer, *_ in self._replacements(network)
        )
        parts = [
            "faster kernels in training for "
            + (
                ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
                or "no layer"
            )
        ]
        if self._teacher is not None:
            how = "folded" if self._teacher.folded else "as it is"
            parts.append(f"teacher {how} in {self._teacher.dtype}")
        return "; ".join([*parts, f"for {self.plan.hardware}"])
