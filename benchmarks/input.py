"""Reading JPEGs for training: decoding the crop against decoding it all.

    python -m benchmarks.input --images=<folder or .tar>

First one image after the other in one thread: the random crop that a view
begins with, from the encoded file to its square, by four ways of decoding that
alternate on every image. Then whole pipelines of `datasets.load`, taking turns.
Ratios are what to trust on a shared machine.
"""

import io
import os
import shutil
import statistics
import tarfile
import tempfile
import time

import numpy as np
import tensorflow as tf
from absl import app, flags
from PIL import Image

from seed_tf import (
    datasets,
    random,
    views,
)
from seed_tf.datasets.decoding import EncodedImage
from seed_tf.datasets.folders import ImageFolder
from seed_tf.trainer import Trainer

FLAGS = flags.FLAGS
flags.DEFINE_string("images", None, "A folder of JPEGs, or a .tar of one.")
flags.mark_flag_as_required("images")
flags.DEFINE_float("enlarge", 1.0, "By which photographs grow before it all.")
flags.DEFINE_integer("size", 224, "Pixels of a view.")
flags.DEFINE_integer("small_size", 96, "Pixels of a small view.")
flags.DEFINE_integer("batch_size", 32, "Images in a batch of the pipelines.")
flags.DEFINE_integer("repeats", 3, "Passes over the images, and turns.")
flags.DEFINE_float("seconds", 6.0, "Of a pipeline's turn.")


def resized(pixels, box, size):
    top, left, height, width = box
    crop = pixels.crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))


def cropped(data, boxes, size):
    """What `load(views=...)` does."""
    return EncodedImage(data).crops([(boxes, size)])[0]


def full(data, boxes, size):
    """All of it by PIL, then crop and resize: torchvision's way."""
    pixels = Image.open(io.BytesIO(data)).convert("RGB")
    return np.stack([resized(pixels, box, size) for box in boxes])


def full_tensorflow(data, boxes, size):
    """All of it by TensorFlow, then the same."""
    pixels = Image.fromarray(tf.io.decode_jpeg(data, 3).numpy())
    return np.stack([resized(pixels, box, size) for box in boxes])


def draft(data, boxes, size):
    """All of it by PIL, at a fraction of the size where that is enough."""
    pixels = Image.open(io.BytesIO(data))
    width, height = pixels.size
    step = min(min(h, w) for _, _, h, w in boxes) / size / 2
    pixels.draft("RGB", (int(width / step), int(height / step)))
    scale = pixels.size[0] / width
    pixels = pixels.convert("RGB")
    crops = []
    for top, left, h, w in boxes:
        crop = [scale * x for x in (left, top, left + w, top + h)]
        part = pixels.resize((size, size), Image.Resampling.BILINEAR, crop)
        crops.append(np.asarray(part))
    return np.stack(crops)


WAYS = {
    "crop only (ours)": cropped,
    "all, PIL": full,
    "all, TensorFlow": full_tensorflow,
    "all, PIL draft": draft,
}
# Area of the crop, how many of each image, and which size.
CASES = {
    "one view, area 0.2-1": ((0.2, 1.0), 1, "size"),
    "two views, area 0.2-1": ((0.2, 1.0), 2, "size"),
    "one small view, area 0.05-0.14": ((0.05, 0.14), 1, "small_size"),
}


def decoding(files, scale, count, size):
    """Median over passes of each way's images per second."""
    layer = views.RandomResizedCrop(size, scale)
    rates = {name: [] for name in WAYS}
    for repeat in range(FLAGS.repeats):
        seeds = random.image_seeds(0, repeat, count * len(files))
        draws = random.uniform(seeds, layer.num_uniforms).numpy()
        draws = np.split(draws, len(files))
        seconds = dict.fromkeys(WAYS, 0.0)
        for data, draw in zip(files, draws, strict=True):
            width, height = Image.open(io.BytesIO(data)).size
            boxes = layer.boxes(draw, np.float32(height), np.float32(width))
            boxes = boxes.astype(int).tolist()
            for name, way in WAYS.items():
                start = time.perf_counter()
                way(data, boxes, size)
                seconds[name] += time.perf_counter() - start
        for name, spent in seconds.items():
            rates[name].append(len(files) / spent)
    return {name: statistics.median(rate) for name, rate in rates.items()}


def pipelines(folder):
    """Median over turns of each pipeline's images per second.

    Of a turn the second half counts. The last pipeline makes views of the
    crops, as the model's step does.
    """
    view = views.moco_v2(FLAGS.size)
    pair = views.multi_crop(
        views.swav(FLAGS.size), views.small_patches(FLAGS.small_size)
    )
    ways = {
        "crops, one view": {"views": view},
        "crops, two views": {"views": view, "num_views": 2},
        "crops, multi-crop 1 + 6": {"views": pair},
        "whole images": {"image_size": FLAGS.size},
        "crops, and the rest of the view": {"views": view},
    }
    trainer = Trainer(views=view)
    finish = tf.function(trainer.augment, reduce_retracing=True)
    rates = {name: [] for name in ways}
    for repeat in range(FLAGS.repeats):
        for name, options in ways.items():
            dataset = datasets.load(
                "folder",
                data_dir=folder,
                batch_size=FLAGS.batch_size,
                seed=repeat,
                epochs=10**6,
                **options,
            )
            times = []
            for step, batch in enumerate(dataset):
                if "rest" in name:
                    finish(batch, tf.constant(step, tf.int64))
                times.append(time.perf_counter())
                if times[-1] > times[0] + FLAGS.seconds:
                    break
            times = times[(len(times) - 1) // 2 :]
            count = (len(times) - 1) * FLAGS.batch_size
            rates[name].append(count / (times[-1] - times[0]))
    return {name: statistics.median(rate) for name, rate in rates.items()}


def table(title, rates, reference):
    print(f"\n| {title} | images/s | ratio |\n|---|---|---|")
    for name, rate in rates.items():
        ratio = rate / rates[reference]
        print(f"| {name} | {rate:.0f} | {ratio:.2f} x |", flush=True)


def enlarge(path):
    """Writes a larger image in the place of one, to stand for a camera's."""
    image = Image.open(path).convert("RGB")
    width, height = (round(FLAGS.enlarge * side) for side in image.size)
    image.resize((width, height), Image.Resampling.BICUBIC).save(
        path, "JPEG", quality=90
    )


def run(folder):
    index = ImageFolder(folder, "train")
    files = []
    for i in range(index.size):
        path, _ = index[i]
        if FLAGS.enlarge != 1:
            enlarge(path)
        with open(path, "rb") as file:
            data = file.read()
        image = Image.open(io.BytesIO(data))
        if image.format == "JPEG" and image.mode == "RGB":
            files.append(data)
    sides = [Image.open(io.BytesIO(data)).size for data in files]
    print(
        f"{len(files)} JPEGs, median {np.median(sides, 0)} pixels, "
        f"{np.mean([len(data) for data in files]) / 1000:.0f} kB"
    )
    for name, (scale, count, size) in CASES.items():
        rates = decoding(files, scale, count, FLAGS[size].value)
        table(f"decoding, {name}", rates, "all, PIL")
    table("pipeline, all cores", pipelines(folder), "whole images")


def main(_):
    with tempfile.TemporaryDirectory() as folder:
        if os.path.isdir(FLAGS.images):
            shutil.copytree(FLAGS.images, folder, dirs_exist_ok=True)
        else:
            with tarfile.open(FLAGS.images) as archive:
                archive.extractall(folder, filter="data")
        run(folder)


if __name__ == "__main__":
    app.run(main)
