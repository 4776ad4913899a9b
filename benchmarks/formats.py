"""Every export of an encoder: how fast, how large, how close to Keras.

    python -m benchmarks.formats --run=runs/student --data_dir=labelled_photos

Writes each format, times it at two batch sizes with one and with two threads,
and compares it with the Keras model; then shortens and packs the outputs, for
a search on the device. Ends with two tables, and formats.md, .json and .png in
--output. On a shared machine compare rows, and do not trust milliseconds.

A thread count is enforced twice: each has a process of its own, which the
system keeps on so many cores, and each runtime is told. In there, the formats
take turns in rounds. With the name of a backbone weights are random: only sizes
and latencies count then.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from sklearn.decomposition import PCA

import seed_tf
from seed_tf.export import checking, saved_model
from seed_tf.export.litert import litert
from seed_tf.export.litert import load as load_litert
from seed_tf.export.onnx import load as load_onnx
from seed_tf.export.onnx import onnx
from seed_tf.export.outputs import Outputs
from seed_tf.reporting import (
    figures,
    tables,
)

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "run", None, "A run folder, a .keras file or the name of a backbone."
)
flags.DEFINE_string(
    "data_dir",
    None,
    "Folder with train/ and test/, each of a folder per class; or any folder "
    "of images, without k-NN. By default crops of two photographs.",
)
flags.DEFINE_integer("image_size", None, "Pixels; by default the run's, or 224")
flags.DEFINE_integer("bank", 2000, "Labelled images to search in.", 1)
flags.DEFINE_integer("queries", 1000, "Labelled images to search for.", 1)
flags.DEFINE_integer("k", 10, "Neighbours that vote.", 1)
flags.DEFINE_list("dims", ["16", "32", "64", "128"], "Of shorter embeddings.")
flags.DEFINE_list("threads", ["1", "2"], "Threads to time with.")
flags.DEFINE_list("batch", ["1", "32"], "Batch sizes to time.")
flags.DEFINE_integer("rounds", 20, "In which the formats take turns.", 1)
flags.DEFINE_float("budget_ms", None, "One image, first of --threads, median.")
flags.DEFINE_float("budget_mb", None, "Size of the files.")
flags.DEFINE_float("budget_cosine", 0.99, "Least mean cosine, embeddings.")
flags.DEFINE_float(
    "budget_knn",
    1.0,
    "Percentage points of k-NN top-1 that may be lost; chance is allowed for.",
)
flags.DEFINE_string("output", "runs/formats", "Folder for the results.")
flags.DEFINE_string("worker", None, "Internal: what to time, as JSON.")
for _name in ("dims", "threads", "batch"):
    flags.register_validator(
        _name,
        lambda values: all(v.isdigit() and int(v) for v in values),
        "Must be positive integers, divided by commas.",
    )

CALLS = {1: 4}  # timed in one round, by batch size


def load_keras(path, threads):
    del threads  # of the process
    outputs = Outputs(seed_tf.checkpoints.load_encoder(path))
    run = tf.function(lambda images: outputs(images))
    return lambda images: _numpy(run(tf.constant(images)))


def load_saved_model(path, threads):
    del threads
    loaded = tf.saved_model.load(path)
    run = loaded.signatures["serving_default"]

    def call(images):
        # `loaded` holds the weights.
        return _numpy(loaded and run(tf.constant(images)))

    return call


def _numpy(outputs):
    return {k: outputs[k].numpy() for k in ("embedding", "features")}


def save_keras(encoder, path, *, images, limits):
    del images, limits
    encoder.save(path)


def save_saved_model(encoder, path, *, images, limits):
    files = [tf.io.encode_png(image).numpy() for image in images[:64]]
    size = images.shape[1]
    return saved_model(
        encoder,
        os.path.dirname(path),
        image_size=size,
        resize=size,
        files=files,
        version=int(os.path.basename(path)),
        limits=limits,
    )


def save_litert(precision):
    # Files of one image would be run 32 times for a batch of 32.
    return functools.partial(litert, precision=precision, batch_size=None)


@dataclasses.dataclass(frozen=True)
class Format:
    file: str
    save: callable  # of encoder, path, images=, limits=
    load: callable  # of path and threads: function of images


FORMATS = {
    "Keras": Format("encoder.keras", save_keras, load_keras),
    "SavedModel": Format("saved_model/1", save_saved_model, load_saved_model),
    "LiteRT float32": Format(
        "float32.tflite", save_litert("float32"), load_litert
    ),
    "LiteRT float16": Format(
        "float16.tflite", save_litert("float16"), load_litert
    ),
    "LiteRT int8 dynamic": Format(
        "int8_dynamic.tflite", save_litert("int8_dynamic"), load_litert
    ),
    "LiteRT int8": Format("int8.tflite", save_litert("int8"), load_litert),
    "ONNX": Format("encoder.onnx", onnx, load_onnx),
}


def time_formats(paths, size, batches, threads, rounds):
    """Milliseconds per call: {name: {batch: [...]}}, in turns, this process."""
    runs = {
        # Of each batch size one of its own, as a service would have it.
        (name, batch): FORMATS[name].load(path, threads=threads)
        for name, path in paths.items()
        for batch in batches
    }
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(batches), size, size, 3), "uint8")
    spent = {name: {batch: [] for batch in batches} for name in paths}
    for round_ in range(rounds + 1):
        for (name, batch), run in runs.items():
            for _ in range(CALLS.get(batch, 1)):
                start = time.perf_counter()
                run(images[:batch])
                if round_:  # the first warms up
                    spent[name][batch].append(
                        1000 * (time.perf_counter() - start)
                    )
    return spent


def worker(arguments):
    tf.config.threading.set_intra_op_parallelism_threads(arguments["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(json.dumps(time_formats(**arguments)))


def latencies(paths, size):
    """{name: {"batch 1, 2 threads": [ms, ...]}}."""
    found = {name: {} for name in paths}
    cores = sorted(os.sched_getaffinity(0))
    for threads in map(int, FLAGS.threads):
        if threads > len(cores):
            print(f"{threads} threads: there are {len(cores)} cores; left out.")
            continue
        arguments = {
            "paths": paths,
            "size": size,
            "batches": list(map(int, FLAGS.batch)),
            "threads": threads,
            "rounds": FLAGS.rounds,
        }
        command = [sys.executable, "-m", "benchmarks.formats"]
        command += [f"--worker={json.dumps(arguments)}"]
        os.sched_setaffinity(0, cores[:threads])  # which the child inherits
        try:
            output = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        finally:
            os.sched_setaffinity(0, cores)
        spent = json.loads(output.stdout.splitlines()[-1])
        for name, by_batch in spent.items():
            for batch, ms in by_batch.items():
                found[name][_case(batch, threads)] = ms
    return found


def _case(batch, threads):
    return f"batch {batch}, {threads} thread{'s' * (threads > 1)}"


def write_formats(encoder, folder, images):
    """Paths by name, and why an export would refuse some of them."""
    anything = checking.Limits(difference=np.inf, cosine=-1, agreement=0)
    paths, refused = {}, {}
    for name, format_ in FORMATS.items():
        print(f"Writing {name} ...", flush=True)
        paths[name] = os.path.join(folder, format_.file)
        result = format_.save(
            encoder, paths[name], images=images, limits=anything
        )
        try:
            if result:
                result.refuse(checking.LIMITS[result.precision])
        except ValueError as error:
            refused[name] = str(error)
    return paths, refused


def size_mb(path):
    files = [path]
    if os.path.isdir(path):
        files = [
            os.path.join(folder, file)
            for folder, _, names in os.walk(path)
            for file in names
        ]
    return sum(map(os.path.getsize, files)) / 1e6


def outputs_of(paths, sets):
    """{name: list of dicts of outputs, one of each array of images}."""
    found = {}
    for name, path in paths.items():
        print(f"Embedding by {name} ...", flush=True)
        run = FORMATS[name].load(path, threads=os.cpu_count())
        found[name] = [checking.run_all(run, images) for images in sets]
    return found


def drift(outputs, expected, labels):
    """What a format gives differently from Keras.

    Cosines of embeddings, the share of the 10 nearest neighbours that both
    name, and k-NN top-1 on features; the last two in percent. What is lost of
    it comes with its standard error, over queries that one of them gets right.
    """
    rows = [
        np.concatenate([s["embedding"] for s in o]) for o in (outputs, expected)
    ]
    lengths = [np.linalg.norm(r, axis=1) for r in rows]
    cosines = np.sum(rows[0] * rows[1], axis=1) / np.prod(lengths, axis=0)
    row = {
        "cosine": float(cosines.mean()),
        "least cosine": float(cosines.min()),
        "shared": 100 * seed_tf.evaluation.neighbour_agreement(*rows),
    }
    if labels:

        def right(bank, queries):
            pair = bank[0]["features"], queries[1]["features"]
            return hits(similarities_float32(*pair), *labels, FLAGS.k)

        reference = right(expected, expected).astype(float)
        own = right(outputs, outputs)
        row["k-NN"] = 100 * float(own.mean())
        for name, found in (
            ("lost", own),
            ("lost, mixed", right(expected, outputs)),
        ):
            lost = reference - found
            error = lost.std() / np.sqrt(len(lost))
            row[name] = [100 * float(lost.mean()), 100 * float(error)]
    return row


def verdict(row, first_case, trained):
    """What of the budget a row misses; "pass" if nothing."""
    missed = ["refused"] if trained and "refused" in row else []
    if FLAGS.budget_ms and row[first_case][0] > FLAGS.budget_ms:
        missed.append("ms")
    if FLAGS.budget_mb and row["MB"] > FLAGS.budget_mb:
        missed.append("MB")
    if trained:  # random weights promise nothing
        if row["cosine"] < FLAGS.budget_cosine:
            missed.append("cosine")
        lost, error = row.get("lost", (0, 0))
        if lost - 2 * error > FLAGS.budget_knn:  # not by chance
            missed.append("k-NN")
    return "fail: " + ", ".join(missed) if missed else "pass"


# The embedding budget.


def shorter(bank, queries, dims, way):
    """The first of their numbers, or the principal components of the bank."""
    if way == "cut":
        return bank[:, :dims], queries[:, :dims]
    reduction = PCA(dims, svd_solver="covariance_eigh").fit(bank)
    return reduction.transform(bank), reduction.transform(queries)


def similarities_float32(bank, queries):
    """Cosines `[Q, N]`."""
    return _unit(queries) @ _unit(bank).T


def similarities_int8(bank, queries):
    """Cosines of vectors stored as int8: scaled by their largest number."""
    bank, queries = map(as_int8, (bank, queries))
    products = queries.astype(np.int32) @ bank.astype(np.int32).T
    lengths = [np.linalg.norm(x.astype(float), axis=1) for x in (queries, bank)]
    return products / np.maximum(np.outer(*lengths), 1e-12)


def similarities_binary(bank, queries):
    """Less the Hamming distance of signs, packed 8 to a byte."""
    bank, queries = (np.packbits(x > 0, axis=1) for x in (bank, queries))
    return -np.stack(
        [
            np.bitwise_count(bank ^ q).sum(axis=1, dtype=np.int64)
            for q in queries
        ]
    )


STORED = {
    "float32": (similarities_float32, 32),
    "int8": (similarities_int8, 8),
    "binary": (similarities_binary, 1),
}


def as_int8(x):
    """Rows `[N, D]` in [-127, 127]; their lengths do not matter to a cosine."""
    scale = 127 / np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-12)
    return np.round(x * scale).astype(np.int8)


def hits(similarities, labels, truth, k):
    """Which queries k-NN gets right, `[Q]`, as `seed_tf.evaluation.knn`."""
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    classes = 1 + max(labels.max(), truth.max())
    votes = [np.bincount(row, minlength=classes) for row in labels[nearest]]
    return np.argmax(votes, axis=1) == truth


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def embedding_budget(outputs, labels, dims, k):
    """Rows of k-NN top-1 in percent, by output, way, width and storage."""
    rows = []
    for output in ("embedding", "features"):
        bank, queries = (_unit(o[output]) for o in outputs)
        width = bank.shape[1]
        most = min(width, len(bank))
        cases = [(d, "PCA") for d in dims if d <= most]
        cases += [(d, "cut") for d in dims if d < width]
        # All of them is a cut that cuts nothing.
        for count, way in [*sorted(cases), (width, "cut")]:
            pair = shorter(bank, queries, count, way)
            for stored, (similarity, bits) in STORED.items():
                accuracy = hits(similarity(*pair), *labels, k).mean()
                rows.append(
                    {
                        "output": output,
                        "of": width,
                        "by": way if count < width or way == "PCA" else "",
                        "dims": count,
                        "stored": stored,
                        "bytes": -(-count * bits // 8),
                        "k-NN": 100 * float(accuracy),
                    }
                )
    return rows


def budget_table(rows, fmt):
    """One line per output, way and width."""
    lines = {}
    for row in rows:
        key = (row["output"], row["dims"], row["by"])
        by = f"{row['by']} to " if row["by"] else "all "
        line = lines.setdefault(
            key, {"outputs": f"{row['output']}, {by}{row['dims']}"}
        )
        line[row["stored"]] = f"{row['k-NN']:.1f}"
        line[f"{row['stored']} bytes"] = row["bytes"]
    columns = ["outputs"]
    for stored in STORED:
        columns += [stored, f"{stored} bytes"]
    return tables.table(list(lines.values()), columns, fmt)


# What it all is about, and how it looks.


def load_encoder(run):
    """The encoder, pixels of its images, whether it is trained, its name."""
    if os.path.exists(run):
        size = FLAGS.image_size or 224
        config = os.path.join(run, "config.json")
        if not FLAGS.image_size and os.path.exists(config):
            with open(config) as file:
                size = json.load(file).get("image_size", size)
        name = os.path.basename(os.path.normpath(run))
        return seed_tf.checkpoints.load_encoder(run), size, True, name
    encoder = seed_tf.Encoder(run)
    return encoder, FLAGS.image_size or 224, False, f"{run}, random weights"


def load_images(size):
    """Lists of images `[N, S, S, 3]` and of labels, of bank and queries.

    The list of labels is empty without classes.
    """
    if not FLAGS.data_dir:
        return [crops(256, size)], []
    if os.path.isdir(os.path.join(FLAGS.data_dir, "test")):
        counts = {"train": FLAGS.bank, "test": FLAGS.queries}
        pairs = [_take(*split, size, labels=True) for split in counts.items()]
        images, labels = zip(*pairs, strict=True)
        if len(labels[0]) < FLAGS.k:
            sys.exit(f"--k={FLAGS.k}: there are {len(labels[0])} images.")
        return list(images), list(labels)
    return _take("train", 512, size, labels=False), []


def _take(split, count, size, *, labels):
    """The first shuffled images of a split, and their labels if wanted."""
    dataset = seed_tf.datasets.load(
        "folder",
        split=split,
        data_dir=FLAGS.data_dir,
        image_size=size,
        resize=round(size * 8 / 7),
        batch_size=50,
        drop_remainder=False,
        labels=labels,
    )
    dataset = dataset.unbatch().take(count).batch(50)
    parts = [b if labels else (b,) for b in dataset.as_numpy_iterator()]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def crops(count, size):
    """Squares out of scikit-learn's two photographs, `[N, S, S, 3]` uint8."""
    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    squares = []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        side = rng.integers(64, min(photograph.shape[:2]))
        top, left = (rng.integers(n - side) for n in photograph.shape[:2])
        square = photograph[top : top + side, left : left + side]
        square = tf.image.resize(square, [size, size], antialias=True)
        squares.append(tf.cast(square, tf.uint8).numpy())
    return np.stack(squares)


_STORED_STYLE = {"float32": "-", "int8": "--", "binary": ":"}


def draw(rows, cases, budget):
    """Latencies as bars above, k-NN by bytes per image below, if there is any.

    Args:
        rows: the table of formats.
        cases: keys of rows that hold (median, p95) in ms.
        budget: rows of `embedding_budget`, may be empty.
    """
    colours = figures.palette([row["format"] for row in rows])
    height = 0.9 + 0.25 * len(rows)
    figure = Figure((8, 2 * height + 2.8 * bool(budget)), layout="constrained")
    parts = figure.subfigures(
        1 + bool(budget),
        1,
        height_ratios=[2 * height, 2.8][: 1 + bool(budget)],
        squeeze=False,
    )[:, 0]
    panels = parts[0].subplots(-(-len(cases) // 2), 2, sharey=True)
    for axes, case in zip(np.ravel(panels), cases, strict=False):
        _draw_latencies(axes, rows, case, colours)
    if budget:
        outputs = list(dict.fromkeys(row["output"] for row in budget))
        panels = parts[1].subplots(1, len(outputs), sharey=True)
        for axes, output in zip(panels, outputs, strict=True):
            _draw_budget(axes, [r for r in budget if r["output"] == output])
        panels[0].set_ylabel("k-NN top-1 (%)")
        parts[1].legend(
            *panels[-1].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=6,
            frameon=False,
            fontsize=8,
        )
    return figure


def _draw_latencies(axes, rows, case, colours):
    largest = max(row[case][1] for row in rows)
    for y, row in enumerate(rows):
        median, p95 = row[case]
        axes.barh(y, median, height=0.66, color=colours[row["format"]])
        axes.plot([median, p95], [y, y], color="#222222", lw=1.2)
        axes.text(
            p95 + 0.02 * largest, y, f"{median:.1f}", va="center", fontsize=8
        )
    axes.set_title(case, loc="left", fontsize=9, fontweight="bold")
    axes.set_xlim(0, 1.18 * largest)
    axes.set_yticks(range(len(rows)), [row["format"] for row in rows])
    axes.tick_params(labelsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("ms: median, line to p95", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_budget(axes, rows):
    colours = figures.palette(["PCA", "cut"])
    for stored, line in _STORED_STYLE.items():
        for by, colour in colours.items():
            points = sorted(
                (row["bytes"], row["k-NN"])
                for row in rows
                if row["stored"] == stored and row["by"] == by
            )
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    *(line,),
                    color=colour,
                    marker=".",
                    label=f"{by}, {stored}",
                )
    whole = next(r for r in rows if not r["by"] and r["stored"] == "float32")
    axes.axhline(whole["k-NN"], color="#888888", lw=1)
    axes.set_xscale("log", base=2)
    ticks = sorted({row["bytes"] for row in rows if row["by"]})
    axes.set_xticks(ticks, ticks)
    axes.set_title(
        f"{whole['output']}, grey: all {whole['of']} as float32",
        loc="left",
        fontsize=9,
        fontweight="bold",
    )
    axes.set_xlabel("bytes per image", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def formats_table(rows, cases, fmt):
    """One line per format, latencies as median / p95."""
    lines = []
    for row in rows:
        line = {
            "format": row["format"],
            "MB": row["MB"],
            "cosine": f"{row['cosine']:.5f}",
            "neighbours shared": row["shared"],
            "k-NN": row.get("k-NN"),
            "budget": row["budget"],
        }
        for name in ("lost", "lost, mixed"):
            line[name] = tuple(row[name]) if name in row else None
        for case in cases:
            line[case] = "{:.1f} / {:.1f}".format(*row[case])
        lines.append(line)
    columns = ["format", "MB", "cosine", "neighbours shared"]
    columns += ["k-NN", "lost", "lost, mixed"] if "k-NN" in rows[0] else []
    return tables.table(lines, [*columns, *cases, "budget"], fmt)


def _texts(title, rows, cases, budget, counts, fmt):
    """Both tables with their titles."""
    parts = [title, formats_table(rows, cases, fmt)]
    if budget:
        parts += [
            f"k-NN top-1 (%, k = {FLAGS.k}, {counts[1]} queries, {counts[0]} "
            "in the bank) and bytes per image",
            budget_table(budget, fmt),
        ]
    return "\n\n".join(parts)


def measure(encoder, folder, size, trained):
    """Rows of both tables, cases of the first, sizes of bank and queries."""
    sets, labels = load_images(size)
    paths, refused = write_formats(encoder, folder, sets[0])
    outputs = outputs_of(paths, sets)
    print("Timing ...", flush=True)
    spent = latencies(paths, size)
    rows = []
    for name, path in paths.items():
        row = {"format": name, "MB": size_mb(path)}
        row |= drift(outputs[name], outputs["Keras"], labels)
        for case, ms in spent[name].items():
            row[case] = [float(np.quantile(ms, q)) for q in (0.5, 0.95)]
        if name in refused:
            row["refused"] = refused[name]
        rows.append(row)
    cases = list(spent["Keras"])
    for row in rows:
        row["budget"] = verdict(row, cases[0], trained)
    budget = []
    if labels:
        dims = sorted(map(int, FLAGS.dims))
        budget = embedding_budget(outputs["Keras"], labels, dims, FLAGS.k)
    return rows, cases, budget, list(map(len, labels))


def main(_):
    if FLAGS.worker:
        worker(json.loads(FLAGS.worker))
        return
    logging.set_verbosity(logging.WARNING)  # of the converters
    if not FLAGS.run:
        sys.exit("--run=<run folder, .keras file or name of a backbone>")
    start = time.time()
    encoder, size, trained, name = load_encoder(FLAGS.run)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(encoder, folder, size, trained)
    rows, cases, budget, _ = results
    title = (
        f"{name}, {size} x {size} pixels, ms per call as median / p95 of "
        f"{FLAGS.rounds} rounds, load average {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores"
    )
    text, markdown = (
        _texts(title, *results, fmt) for fmt in ("text", "markdown")
    )
    print(f"\n{text}\n\n{time.time() - start:.0f} s")
    os.makedirs(FLAGS.output, exist_ok=True)
    with open(os.path.join(FLAGS.output, "formats.md"), "w") as file:
        file.write(f"{markdown}\n")
    with open(os.path.join(FLAGS.output, "formats.json"), "w") as file:
        json.dump(
            {"title": title, "formats": rows, "embeddings": budget},
            file,
            indent=2,
        )
    figure = draw(rows, cases, budget)
    figure.savefig(os.path.join(FLAGS.output, "formats.png"), dpi=130)


if __name__ == "__main__":
    app.run(main)
