"""Images, an encoder and an index, as small as tests of exports need them."""

import io
import json
import os
import pathlib
import struct
import tempfile
import zlib

import keras
import numpy as np
from PIL import Image

import seed_tf
from seed_tf.io.fingerprints import identity

SIZE, RESIZE = 16, 18


def encoded(image, kind, orientation=None, **options):
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(width=40, height=30, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def translucent(height=30):
    image = picture(40, height).convert("RGBA")
    image.putalpha(picture(40, height, seed=1).convert("L"))
    return image


def png_header(width, height):
    """A PNG file that announces a size, and holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            struct.pack(">I", 13)
            + header
            + struct.pack(">I", zlib.crc32(header)),
            b"\0\0\0\0IDAT",
        ]
    )


def temporary_folder():
    return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def write_index(folder, encoder, count, size=SIZE, **config):
    """An index as `seed_tf.search.build` writes it; returns its rows."""
    rows = np.random.default_rng(0).normal(size=(count, 5)).astype("float32")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[7] = rows[3]  # a tie
    os.makedirs(folder, exist_ok=True)
    np.save(os.path.join(folder, "embeddings.npy"), rows)
    names = "".join(f"bird {row}.jpg\n" for row in range(count))
    pathlib.Path(folder, "paths.txt").write_text(names)
    config = {
        "output": "features",
        "count": count,
        "dim": 5,
        "fingerprint": identity(encoder),
        "image_size": size,
        "resize": round(size * 8 / 7),
        **config,
    }
    pathlib.Path(folder, "index.json").write_text(json.dumps(config))
    return rows


def tiny_encoder():
    keras.utils.set_random_seed(0)  # layers draw their seeds when they are made
    layers = [
        keras.Input((None, None, 3)),
        keras.layers.Conv2D(5, 3, strides=2, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
    ]
    return seed_tf.Encoder(keras.Sequential(layers), embedding_dim=6)
