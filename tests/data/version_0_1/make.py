"""Makes the files of this folder with the code of commit 3d57d53.

    PYTHONPATH=<checkout of 3d57d53> python make.py

It writes beside itself, and needs no other file. See README.md.
"""

import functools
import json
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
COMMIT = "3d57d53"
PHOTOS_TIME = 1_700_000_000  # seconds; an index knows files by it
SIZE = 16

SHARED = (
    *("--dataset=digits", f"--image_size={SIZE}", "--precision=float32"),
    *("--batch_size=128", "--epochs=4"),
    *("--warmup_epochs=1", "--queue_size=128"),
    *("--held_out=60", "--checkpoint_minutes=0"),
)
# A temperature below 0.01 keeps the teacher in float32 on every processor.
DISTILL = (
    *("distill", "--teacher=teacher.keras", "--student=resnet18"),
    *("--teacher_temperature=0.009", "--learning_rate=0.2"),
    *(*SHARED, "--output=run"),
)
PRETRAIN = (
    *("pretrain", "--encoder=resnet18", "--embedding_dim=16"),
    *("--stem=cifar", "--momentum=0.9", "--learning_rate=0.05"),
    *(*SHARED, "--output=pretrain_run"),
)
CACHE = (
    *("cache", "--dataset=folder", "--data_dir=photos"),
    *("--teacher=teacher.keras", "--views_per_image=2"),
    *("--teacher_precision=float32", f"--image_size={SIZE}"),
    *("--batch_size=8", "--output=view_cache"),
)
KILLED_AFTER = 15  # steps of 36: the sixth of the second epoch


def launch(name, *arguments):
    """Runs a launcher whose resnet18 is a tiny network, in this process."""
    from seed_tf.encoders.backbones import BACKBONES
    from seed_tf.encoders.resnet import resnet
    from seed_tf.training.saving import Checkpoints

    BACKBONES["resnet18"] = functools.partial(resnet, depths=(1,), width=6)
    last = int(os.environ.get("KILLED_AFTER", 0))
    save = Checkpoints.save

    def save_and_die(self, step, best=None):
        save(self, step, best)
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save = save_and_die
    sys.argv[1:] = arguments
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


def run(arguments, folder=HERE, *, killed_after=0):
    """Runs a launcher in a process of its own, with that folder as the cwd."""
    process = subprocess.run(
        [sys.executable, str(HERE / "make.py"), "launch", *arguments],
        cwd=folder,
        env={**os.environ, "KILLED_AFTER": str(killed_after)},
    )
    expected = -signal.SIGKILL if killed_after else 0
    if process.returncode != expected:
        sys.exit(f"{arguments} ended with {process.returncode}.")


def write_json(name, content):
    (HERE / name).write_text(json.dumps(content, indent=2) + "\n")


def noise(seed, count, size):
    """Smooth random images, uint8 `[count, size, size, 3]`."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(x).resize((size, size))) for x in pixels]
    )


def write_photos():
    """Twelve small JPEG files, some of them in a folder of their own."""
    from PIL import Image

    for i, pixels in enumerate(noise(1, 12, 28)):
        file = HERE / "photos" / ("more" if i % 4 == 3 else "") / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[: 20 + i % 3]).save(file, quality=85)
        os.utime(file, (PHOTOS_TIME, PHOTOS_TIME))


def write_teacher():
    import keras

    import seed_tf

    keras.utils.set_random_seed(3)
    backbone = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(16, 8, strides=8, activation="relu"),
        ]
    )
    teacher = seed_tf.Encoder(backbone, embedding_dim=16, head="linear")
    teacher.save(HERE / "teacher.keras")


def functional_backbone():
    import keras

    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv")(
        inputs
    )
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.Activation("relu", name="relu")(x)
    y = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = keras.layers.BatchNormalization(name="depthwise_bn")(y)
    y = keras.layers.Activation("hard_swish", name="hard_swish")(y)
    x = keras.layers.Add(name="add")([x, y])
    return keras.Model(inputs, x, name="tiny")


def write_encoder():
    """An encoder whose statistics are not those of a fresh one."""
    import keras
    import numpy as np

    import seed_tf

    keras.utils.set_random_seed(5)
    encoder = seed_tf.Encoder(
        functional_backbone(),
        embedding_dim=12,
        hidden_dim=10,
        head_batch_norm=True,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
    )
    rng = np.random.default_rng(2)
    for weight in encoder.weights:
        if weight.path.split("/")[-1].startswith(("moving", "gamma", "beta")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    encoder.save(HERE / "encoder.keras")
    images = noise(2, 4, SIZE)
    encoder = keras.models.load_model(HERE / "encoder.keras")
    np.savez_compressed(
        HERE / "encoder_outputs.npz",
        images=images,
        embeddings=encoder(images),
        features=encoder.features(images),
    )


def write_seed():
    """A whole model, trained three steps, and what it does afterwards."""
    import keras
    import numpy as np

    import seed_tf

    keras.utils.set_random_seed(7)
    model = seed_tf.SEED(
        seed_tf.Encoder(functional_backbone(), embedding_dim=16),
        keras.models.load_model(HERE / "teacher.keras"),
        views=seed_tf.views.moco_v2(SIZE),
        queue_size=20,
        teacher_temperature=0.05,
        teacher_precision="float32",
        seed=11,
    )
    model.compile(seed_tf.training.SGD(0.1))
    images = noise(3, 24, 20)
    model.fit(images, batch_size=8, shuffle=False, verbose=0)
    model.save(HERE / "seed.keras")
    model = keras.models.load_model(HERE / "seed.keras")
    state = {
        "images": images[:8],
        "outputs": model(images[:8]),
        "step": model.step.numpy(),
        "queue": model.queue.embeddings.numpy(),
        "cursor": model.queue.cursor.numpy(),
    }
    # Two epochs of one step each.
    history = model.fit(
        images[:8], batch_size=8, epochs=2, shuffle=False, verbose=0
    ).history
    state |= {
        "losses": history["loss"],
        "outputs_afterwards": model(images[:8]),
        "queue_afterwards": model.queue.embeddings.numpy(),
    }
    np.savez_compressed(HERE / "seed_state.npz", **state)


def checkpoint(output):
    """All tensors of the newest checkpoint of a run, by name."""
    import tensorflow as tf

    newest = max(pathlib.Path(output, "checkpoints").glob("step-?????????"))
    reader = tf.train.load_checkpoint(str(newest / "state"))
    return {
        name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): reader.get_tensor(
            name
        )
        for name in sorted(reader.get_variable_to_shape_map())
        if "OBJECT_GRAPH" not in name
    }


def student(output):
    """The weights of a run's student.keras, by name."""
    import keras

    model = keras.models.load_model(pathlib.Path(output) / "student.keras")
    weights = {f"student/{w.path}": w.numpy() for w in model.weights}
    assert len(weights) == len(model.weights)  # no name comes twice
    return weights


def slim(output):
    """Takes away what a run that goes on does not need, and the host's name."""
    # TensorBoard's file has the machine's name in its own.
    shutil.rmtree(output / "events")
    for path in sorted((output / "checkpoints").iterdir())[:-1]:
        shutil.rmtree(path)
    summary = json.loads((output / "summary.json").read_text())
    summary["machine"]["host"] = "Linux"
    write_json(output / "summary.json", summary)


def write_run(arguments):
    """A run that was killed, and where it ends if it is not.

    Checks that the killed one, gone on with, ends in the same place.
    """
    import numpy as np

    *flags, output = arguments
    output = output.removeprefix("--output=")
    run(arguments, killed_after=KILLED_AFTER)
    slim(HERE / output)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shutil.copy(HERE / "teacher.keras", folder)
        shutil.copytree(HERE / output, folder / output)
        run(arguments, folder)
        run([*flags, "--output=whole"], folder)
        resumed, whole = (
            {**checkpoint(path), "student.keras": student(path)}
            for path in (folder / output, folder / "whole")
        )
        summary = json.loads((folder / "whole" / "summary.json").read_text())
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_equal(resumed[name], value, name)
    # student.keras is of the best evaluation, which is to be the last.
    assert summary["encoder_of_step"] == summary["total_steps"]
    print(f"{output}: the resumed run and the whole one end in the same.")
    # Most of a checkpoint has names that say nothing of what it is.
    kept = ("queue/embeddings", "queue/enqueued", "step")
    final = {name: whole[name] for name in kept} | whole["student.keras"]
    np.savez_compressed(HERE / f"{output}_final.npz", **final)


def write_view_cache():
    import numpy as np

    import seed_tf

    run(CACHE)
    arguments = {
        "name": "folder",
        "data_dir": "photos",
        "image_size": 18,
        "batch_size": 5,
        "seed": 4,
        "epochs": 2,
    }
    batches = seed_tf.datasets.load(
        **arguments,
        views=seed_tf.views.moco_v2(SIZE),
        view_cache=seed_tf.view_cache.ViewCache("view_cache"),
    )
    batch = next(iter(batches))
    np.savez_compressed(
        "view_cache_batch.npz", **{k: v.numpy() for k, v in batch.items()}
    )
    note = {"views": f"moco_v2({SIZE})", "load": arguments}
    write_json("view_cache_batch.json", note)


def write_index():
    from seed_tf import search

    options = {"image_size": 24, "batch_size": 4}
    search.build("index", "photos", "encoder.keras", **options)
    file = HERE / "index" / "index.json"
    config = json.loads(file.read_text())
    config |= {"images": "photos", "encoder": "encoder.keras"}
    write_json(file, config)
    query = "more/7.jpg"
    found = search.Index("index")
    scores, rows = search.ImageSearch(found).search(
        (HERE / "photos" / query).read_bytes(), 5
    )
    note = {
        "build": options,
        "query": f"photos/{query}",
        "names": [found.paths[row] for row in rows],
        "scores": scores.tolist(),
    }
    write_json("index_query.json", note)


def main():
    import seed_tf

    code = pathlib.Path(seed_tf.__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=code, capture_output=True, text=True
    ).stdout
    if not commit.startswith(COMMIT):
        sys.exit(f"seed_tf is of commit {commit!r}, {COMMIT} is wanted.")
    os.chdir(HERE)
    for path in HERE.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix in (".keras", ".npz", ".json"):
            path.unlink()
    write_json("command.json", {"run": DISTILL, "pretrain_run": PRETRAIN})
    write_photos()
    write_teacher()
    write_encoder()
    write_seed()
    write_run(DISTILL)
    write_run(PRETRAIN)
    write_view_cache()
    write_index()


if __name__ == "__main__":
    if sys.argv[1:2] == ["launch"]:
        launch(*sys.argv[2:])
    else:
        main()
