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
        student_policy: "mixed_bfloat16" to train float32 networks in
            bfloat16, "float32" to train them as they are, or "auto" for the
            faster on the hardware, which the attribute then holds. Networks
            with a layer of another Keras policy train as they are.

    Raises:
        ValueError: if `student_policy` has another value.

    Example:

    >>> plan = seed_tf.acceleration.Plan(
    ...     seed_tf.acceleration.Hardware(accelerated=True, bfloat16=True))
    >>> plan.student_policy
    'mixed_bfloat16'
    """

    hardware: machine.Hardware = dataclasses.field(
        default_factory=machine.current
    )
    student_policy: str = "auto"

    def __post_init__(self):
        policy = self.student_policy
        if policy == "auto":
            policy = precision.default_student_policy(self.hardware)
        if policy not in ("float32", "mixed_bfloat16"):
            raise ValueError(
                '`student_policy` must be "auto", "float32" or '
                '"mixed_bfloat16". Set others by '
                "keras.config.set_dtype_policy before you build the student. "
                f"Received: student_policy={policy!r}."
            )
        object.__setattr__(self, "student_policy", policy)

    def get_config(self) -> dict:
        return {
            **dataclasses.asdict(self.hardware),
            "student_policy": self.student_policy,
        }

    @classmethod
    def from_config(cls, config: dict) -> Plan:
        hardware = dict(config)
        policy = hardware.pop("student_policy", "auto")
        return cls(machine.Hardware(**hardware), policy)


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
        # Layers to train in 16 bits, by network.
        self._networks: dict[keras.Model, list[keras.layers.Layer]] = {}
        self._teacher: FoldedTeacher | None = None
        self._updates_held = 0

    def add(self, network: keras.Model) -> None:
        """Notes a built network that the training step calls."""
        self._networks[network] = (
            precision.layers_for_16_bits(network)
            if self.plan and self.plan.student_policy != "float32"
            else []
        )

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
        if self._teacher is not None and not self._updates_held:
            self._teacher.update()

    @contextlib.contextmanager
    def updated(self) -> Iterator[None]:
        """Folds the teacher again, and not once more within the context.

        A validation within `fit` need not fold the teacher.
        """
        self.update()
        self._updates_held += 1
        try:
            yield
        finally:
            self._updates_held -= 1

    @property
    def variables(self) -> list:
        """Variables that acceleration adds to those of the model."""
        return [] if self._teacher is None else self._teacher.variables

    @contextlib.contextmanager
    def applied(self, network: keras.Model) -> Iterator[None]:
        """Within the context, the layers of `network` compute faster.

        Layers with a `call` or `convolution_op` of their own stay as they
        are, and a network that is not `add`ed keeps its precision. The
        context may be nested.
        """
        with (
            patching.replaced(self._policies(network)),
            patching.replaced(self._replacements(network)),
        ):
            yield

    def for_views(self) -> contextlib.AbstractContextManager:
        """Within the context, views are made for the hardware of the plan."""
        if self.plan is None:
            return contextlib.nullcontext()
        return machine.assume(self.plan.hardware)

    def _policies(self, network):
        """Yields (layer, "dtype_policy", policy)."""
        for layer in self._networks.get(network, ()):
            policy = keras.DTypePolicy(self.plan.student_policy)
            yield layer, "dtype_policy", policy

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
        counts, dtypes = collections.Counter(), set()
        for network in self._networks:
            with patching.replaced(self._policies(network)):
                for layer, *_ in self._replacements(network):
                    counts[type(layer).__name__] += 1
                dtypes |= _compute_dtypes(network)
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
        parts = [
            f"training in {' and '.join(sorted(dtypes))} with faster kernels "
            f"for {kinds or 'no layer'}"
        ]
        if self._teacher is not None:
            how = "folded" if self._teacher.folded else "as it is"
            parts.append(f"teacher {how} in {self._teacher.dtype}")
        return "; ".join([*parts, f"for {self.plan.hardware}"])


def _compute_dtypes(network):
    """Returns in which types the layers with weights compute, a set."""
    return {
        layer.compute_dtype
        for layer in all_layers(network)
        if layer.weights and not isinstance(layer, keras.Model)
    }
