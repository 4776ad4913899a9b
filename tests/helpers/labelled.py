"""A small encoder and labelled images, for tests of evaluation."""

import os

import keras
import numpy as np
from PIL import Image

import seed_tf
from seed_tf.evaluation import LabelledImages


def tiny_encoder(seed=0, name=None):
    keras.utils.set_random_seed(seed)
    return seed_tf.Encoder(
        keras.Sequential(
            [
                keras.Input((None, None, 3)),
                keras.layers.Conv2D(6, 3, 2),
                keras.layers.ReLU(),
            ],
            name=name,
        ),
        embedding_dim=5,
    )


def digits(split):
    return LabelledImages("digits", split, image_size=12)


def class_folders(root, sizes):
    rng = np.random.default_rng(0)
    for name, size in sizes.items():
        folder = os.path.join(root, name)
        os.makedirs(folder)
        for i in range(size):
            image = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(image).save(os.path.join(folder, f"{i}.png"))
    return root
