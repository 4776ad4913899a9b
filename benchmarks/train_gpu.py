"""Trains programs of `benchmarks.cifar10_gpu` where there is JAX alone.

    python -m benchmarks.train_gpu --programs=programs --images=cifar10/train \\
        --output=trained --seconds=200

Each program is a training step of images uint8 `[B, H, W, 3]` and a learning
rate (`benchmarks.hlo_step`). All are trained at once, each by a process, since
small steps leave a GPU idle between their kernels. It needs of this repository
no more than `benchmarks`.
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("programs", None, "Folder.", required=True)
flags.DEFINE_string("images", None, "Folder of folders.", required=True)
flags.DEFINE_string("output", None, "Folder to write to.", required=True)
flags.DEFINE_float(
    "seconds",
    None,
    "What the steps may take, as measured at the start; a program for which "
    "its epochs take longer is given fewer, and says so.",
)
flags.DEFINE_string("worker", None, "Internal: name of a program.")

TRIAL = 100  # steps


def decode(folder):
    """Photographs of one size, uint8 `[N, H, W, 3]`, by their paths' order."""
    from PIL import Image

    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with concurrent.futures.ThreadPoolExecutor() as pool:
        images = pool.map(lambda p: np.asarray(Image.open(p)), paths)
    return np.stack(list(images))


def work(name):
    import jax
    from jax import numpy as jnp

    from benchmarks import hlo_step

    programs, output = pathlib.Path(FLAGS.programs), pathlib.Path(FLAGS.output)
    notes = json.loads((programs / f"{name}.json").read_text())
    batch, epochs = notes["batch"], notes["epochs"]
    program = hlo_step.Program(programs / name)
    start = dict(program.variables)
    copy = jax.jit(lambda values: jax.tree.map(jnp.copy, values))
    images = jax.device_put(np.load(output / "images.npy"))
    per_epoch = len(images) // batch
    rng = np.random.default_rng(notes["seed"])
    pick = jax.jit(lambda order, i: images[order[i]])

    def orders():
        while True:
            order = rng.permutation(len(images))[: per_epoch * batch]
            yield jax.device_put(order.reshape(per_epoch, batch))

    def run(steps, rates):
        """Trains from the start; losses and seconds."""
        program.variables = copy(start)
        losses, since = [], time.time()
        order = orders()
        for i in range(steps):
            if i % per_epoch == 0:
                now = next(order)
            losses += program(pick(now, i % per_epoch), rates(i))
            if i % per_epoch == per_epoch - 1:
                epoch = np.mean(losses[-per_epoch:])
                seconds = time.time() - since
                left = seconds / (i + 1) * (steps - i - 1)
                print(
                    f"{name}  epoch {(i + 1) // per_epoch}  loss {epoch:.3f}  "
                    f"{batch * (i + 1) / seconds:,.0f} images/s  "
                    f"{left:.0f} s left",
                    flush=True,
                )
        losses = [float(loss) for loss in losses]
        return losses, time.time() - since

    constant = np.float32(notes["rates"][1])
    run(3, lambda _: constant)
    barrier(output, name, "compiled")
    _, seconds = run(TRIAL, lambda _: constant)
    if FLAGS.seconds:
        fit = int(FLAGS.seconds / (seconds / TRIAL * per_epoch))
        if fit < epochs:
            epochs = max(fit, 1)
            print(f"{name}  {epochs} epochs fit, of {notes['epochs']}")
    steps = epochs * per_epoch
    places = np.linspace(0, steps, len(notes["rates"]))
    rates = np.interp(np.arange(steps), places, notes["rates"])
    rates = rates.astype(np.float32)
    barrier(output, name, "tried")
    losses, seconds = run(steps, lambda i: rates[i])
    weights = {
        f"weight_{i}": shortened(np.asarray(program.variables[place]))
        for i, place in notes["weights"].items()
    }
    np.savez(output / f"{name}.npz", **weights)
    by_epoch = np.reshape(losses, (epochs, per_epoch)).mean(1)
    result = {
        "run": notes["run"],
        "device": jax.devices()[0].device_kind,
        "batch": batch,
        "epochs": epochs,
        "steps": steps,
        "seconds": round(seconds, 1),
        "losses": [round(float(loss), 4) for loss in by_epoch],
    }
    (output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def shortened(value):
    """Kernels in 16 bits, as these come back over a network."""
    return value.astype(np.float16) if value.ndim > 1 else value


def barrier(output, name, state):
    """Waits until all programs are as far."""
    (output / f"{name}.{state}").touch()
    count = len(list(pathlib.Path(FLAGS.programs).glob("*.hlo")))
    while len(list(output.glob(f"*.{state}"))) < count:
        time.sleep(0.1)


def main(_):
    if FLAGS.worker:
        work(FLAGS.worker)
        return
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True)
    images = decode(pathlib.Path(FLAGS.images))
    print(f"{len(images):,} images {images.shape[1:]}", flush=True)
    np.save(output / "images.npy", images)
    # JAX would take most of the GPU's memory for the first of them.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    names = [p.stem for p in pathlib.Path(FLAGS.programs).glob("*.hlo")]
    workers = {
        name: subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.train_gpu"),
                f"--programs={FLAGS.programs}",
                f"--images={FLAGS.images}",
                f"--output={output}",
                f"--worker={name}",
                *([f"--seconds={FLAGS.seconds}"] if FLAGS.seconds else []),
            ],
            env=environment,
        )
        for name in sorted(names)
    }
    # One that fails would let the others wait for it.
    while workers:
        for name, worker in list(workers.items()):
            if worker.poll() is None:
                continue
            del workers[name]
            if worker.returncode:
                for other in workers.values():
                    other.kill()
                sys.exit(f"{name} failed.")
        time.sleep(0.1)
    for path in output.iterdir():
        if path.suffix not in (".npz", ".json"):
            path.unlink()


if __name__ == "__main__":
    app.run(main)
