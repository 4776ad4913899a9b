"""Networks of keras.applications."""

from __future__ import annotations

import difflib
import importlib
import inspect

import keras
import numpy as np
from keras import ops

from seed_tf.teachers.networks import Network, to_vector


def load(
    name: str, *, image_size: int | None = None, weights: bool = True
) -> Network:
    """Builds a network of keras.applications, without its classifier.

    Args:
        name: of the function, e.g. "ConvNeXtBase".
        image_size: pixels that the network is to be used at. The default is
            224.
        weights: whether to load those of ImageNet, which Keras downloads at
            their first use, or to leave them random.

    Raises:
        ValueError: if there is no such network, or its weights cannot be
            loaded.
    """
    known = [x for x in dir(keras.applications) if x[0].isupper()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"Expected a network of keras.applications. Received: {name!r}."
            + "".join(f' Did you mean "{x}"?' for x in near)
        )
    build = getattr(keras.applications, name)
    try:
        network = build(
            include_top=False,
            weights="imagenet" if weights else None,
            input_shape=(None, None, 3),
            pooling="avg",
        )
    except (OSError, ValueError) as error:  # no network, or a fixed size
        raise ValueError(
            f"keras.applications.{name} cannot be built: {error}"
        ) from error
    module = importlib.import_module(inspect.unwrap(build).__module__)
    scale, offset, order = _preprocessing(module.preprocess_input)
    std = [float(1 / (255 * s)) for s in scale]
    mean = [float(-o * s) for o, s in zip(offset, std, strict=True)]
    if list(order) == [2, 1, 0]:
        images = keras.Input((None, None, 3), name="images")
        flipped = ops.flip(images, axis=-1)
        network = keras.Model(images, network(flipped), name=network.name)
    return Network(
        to_vector(network), tuple(mean), tuple(std), image_size or 224
    )


def _preprocessing(function):
    """Returns scale, offset and output position of each channel.

    All functions of keras.applications are linear in each channel, and some
    turn RGB into BGR: they are measured at black and at one channel's white.
    """
    pixels = np.zeros((4, 1, 1, 3), "float32")
    pixels[[1, 2, 3], 0, 0, [0, 1, 2]] = 255
    black, *whites = np.asarray(function(pixels))[:, 0, 0]
    change = (np.stack(whites) - black) / 255
    order = np.argmax(np.abs(change), axis=1)
    return change[range(3), order], black[order], order
