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
inside, as they are in versions 0.10 and 0.11.
"""

import re

import numpy as np

_SAMPLE = 4096  # values from which more are drawn


def gpu():
    """The hardware that steps are traced for."""
    from seed_tf.acceleration import Hardware

    return Hardware(accelerated=True, bfloat16=True)


def redraw(variables):
    """Gives random weights values that need little room in a file.

    All but the first 4,096 of each are drawn anew from these.

    Args:
        variables: of Keras, changed in place. Equal ones stay equal.
    """
    for variable in variables:
        value = variable.numpy()
        if value.size > _SAMPLE:
            variable.assign(_drawn(value.ravel()[:_SAMPLE], value.shape))


def _drawn(sample, shape):
    rest = np.prod(shape) - len(sample)
    # By places, so that what scales or rounds values leaves them drawn.
    rest = np.random.default_rng(rest).integers(len(sample), size=rest)
    return np.concatenate([sample, sample[rest]]).reshape(shape)


def write(step, arguments, stem):
    """Writes stem.hlo, the program, and stem.npz, its variables.

    Args:
        step: tf.function with `jit_compile=True`.
        arguments: list of tensors, what it is called on.
        stem: str, path.

    Returns:
        dict of what the program has as parameters, `tensor.ref()` of a
        variable's handle or of a constant, to its number there.
    """
    program = step.experimental_get_compiler_ir(*arguments)
    with open(f"{stem}.hlo", "wb") as file:
        file.write(program(stage="hlo_serialized"))
    # Output 3 as the new value of parameter 2 reads "{3}: (2, {}, may-alias)".
    head = program(stage="hlo").partition("\n")[0]
    updates = re.findall(r"\{(\d+)\}: \((\d+), \{\}", head)
    concrete = step.get_concrete_function(*arguments)
    values, shapes, halves, places = {}, {}, [], {}
    for i, tensor in enumerate(concrete.captured_inputs, len(arguments)):
        places[tensor.ref()] = i
        array = _value(tensor).numpy()
        if array.dtype.name == "bfloat16":  # which .npz does not know
            halves.append(i)
            array = array.view(np.uint16)
        sample = array.ravel()[:_SAMPLE]
        if array.size > _SAMPLE and np.array_equal(
            array, _drawn(sample, array.shape)
        ):
            shapes[f"shape_{i}"], array = array.shape, sample
        values[f"parameter_{i}"] = array
    np.savez_compressed(
        f"{stem}.npz",
        updates=np.array(updates, np.int64).reshape(-1, 2),
        bfloat16=np.array(halves, np.int64),
        **values,
        **shapes,
    )
    return places


def value(saved, index):
    """The array of a parameter in what `write` saved, an open .npz."""
    array = saved[f"parameter_{index}"]
    if f"shape_{index}" in saved:
        array = _drawn(array, saved[f"shape_{index}"])
    if index in saved["bfloat16"]:
        import ml_dtypes

        array = array.view(ml_dtypes.bfloat16)
    return array


def _value(tensor):
    """The tensor itself, or what the variable holds that it is a handle of."""
    import tensorflow as tf

    if tensor.dtype != tf.resource:
        return tensor
    # Not from `concrete.variables`, which lacks those that only operations
    # by handle touch, such as the optimiser's.
    held = tensor._handle_data.shape_and_type[0].dtype
    return tf.raw_ops.ReadVariableOp(resource=tensor, dtype=held)


def _leave_out_copies(module):
    """Passes on what is copied: GPUs' compiler is sent no `mhlo.copy`."""
    from jaxlib.mlir import ir

    copies = []

    def find(operation):
        if operation.name == "mhlo.copy":
            copies.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(find)
    for copy in copies:
        copy.results[0].replace_all_uses_with(copy.operands[0])
        copy.erase()


class Program:
    """What `write` wrote, on JAX's first device.

    Called on arrays it runs one step and returns the step's results, a list
    of JAX arrays; the variables stay on the device.

    Args:
        stem: str, path.
    """

    def __init__(self, stem):
        import jax
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
            module = ir.Module.parse(text)
            _leave_out_copies(module)
            self._program = device.client.compile_and_load(
                module,
                xla_client.DeviceList((device,)),
                xla_client.CompileOptions(),
            )
        self.variables = {}
        with np.load(f"{stem}.npz") as saved:
            self._updates = {int(o): int(p) for o, p in saved["updates"]}
            for name in saved.files:
                if name.startswith("parameter_"):
                    index = int(name.partition("_")[2])
                    self.variables[index] = self._put(value(saved, index))

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
