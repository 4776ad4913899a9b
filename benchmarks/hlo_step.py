"""Carries a compiled TensorFlow step to a machine that has JAX instead.

XLA compiles for both. `write` takes a step of `tf.function`, which reads and
assigns variables, and writes the program that XLA is given, with variables as
parameters, and their values. `Program` compiles it for JAX's first device and
keeps the variables there from call to call:

    step = tf.function(model_step, jit_compile=True, autograph=False)
    write(step, [images], "step")           # step.hlo, step.npz

    program = Program("step")               # where JAX is
    (loss,) = program(images)

JAX has no public function to run such a program, so this uses names of its
inside, as they are in version 0.10.
"""

import re

import numpy as np


def write(step, arguments, stem):
    """Writes stem.hlo, the program, and stem.npz, its variables.

    Args:
        step: tf.function with `jit_compile=True`.
        arguments: list of tensors, what it is called on.
        stem: str, path.
    """
    program = step.experimental_get_compiler_ir(*arguments)
    with open(f"{stem}.hlo", "wb") as file:
        file.write(program(stage="hlo_serialized"))
    # Output 3 as the new value of parameter 2 reads "{3}: (2, {}, may-alias)".
    head = program(stage="hlo").partition("\n")[0]
    updates = re.findall(r"\{(\d+)\}: \((\d+), \{\}", head)
    concrete = step.get_concrete_function(*arguments)
    values, halves = {}, []
    for i, tensor in enumerate(concrete.captured_inputs, len(arguments)):
        value = _value(tensor).numpy()
        if value.dtype.name == "bfloat16":  # which .npz does not know
            halves.append(i)
            value = value.view(np.uint16)
        values[f"parameter_{i}"] = value
    np.savez_compressed(
        f"{stem}.npz",
        updates=np.array(updates, np.int64).reshape(-1, 2),
        bfloat16=np.array(halves, np.int64),
        **values,
    )


def _value(tensor):
    """The tensor itself, or what the variable holds that it is a handle of."""
    import tensorflow as tf

    if tensor.dtype != tf.resource:
        return tensor
    # Not from `concrete.variables`, which lacks those that only operations
    # by handle touch, such as the optimiser's.
    held = tensor._handle_data.shape_and_type[0].dtype
    return tf.raw_ops.ReadVariableOp(resource=tensor, dtype=held)


class Program:
    """What `write` wrote, on JAX's first device.

    Called on arrays it runs one step and returns the step's results, a list
    of JAX arrays; the variables stay on the device.

    Args:
        stem: str, path.
    """

    def __init__(self, stem):
        import jax
        import ml_dtypes
        from jax._src.interpreters import mlir
        from jax._src.lib import xla_client
        from jaxlib.mlir import ir

        jax.config.update("jax_enable_x64", True)  # for int64 counters
        device = jax.devices()[0]
        self._put = lambda value: jax.device_put(value, device)
        with open(f"{stem}.hlo", "rb") as file:
            program = xla_client.XlaComputation(file.read())
        text = xla_client._xla.mlir.xla_computation_to_mlir_module(program)
        with mlir.make_ir_context():
            self._program = device.client.compile_and_load(
                ir.Module.parse(text),
                xla_client.DeviceList((device,)),
                xla_client.CompileOptions(),
            )
        self.variables = {}
        with np.load(f"{stem}.npz") as saved:
            self._updates = {int(o): int(p) for o, p in saved["updates"]}
            for name in saved.files:
                if name.startswith("parameter_"):
                    index, value = int(name.partition("_")[2]), saved[name]
                    if index in saved["bfloat16"]:
                        value = value.view(ml_dtypes.bfloat16)
                    self.variables[index] = self._put(value)

    def __call__(self, *arguments):
        inputs = [self._put(x) for x in arguments]
        inputs += [self.variables[i] for i in sorted(self.variables)]
        run = self._program.execute_sharded(inputs)
        results = []
        for i, (value,) in enumerate(
            run.disassemble_into_single_device_arrays()
        ):
            if i in self._updates:
                self.variables[self._updates[i]] = value
            else:
                results.append(value)
        return results
