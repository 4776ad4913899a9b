"""A student of a few weights, which commands find by its name."""

import keras

NAME = "tests.helpers.tiny_student:network"  # as `--student` takes it
WIDTH = 8


def network():
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(WIDTH, 3, strides=2, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ],
        name="tiny_student",
    )
