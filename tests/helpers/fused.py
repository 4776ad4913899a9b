"""A layer that computes as within a training step."""

from seed_tf.acceleration import Acceleration, Hardware, Plan


class Fused:
    """A layer, or model, whose calls a plan accelerates.

    Args:
        layer: keras.layers.Layer. All but calls goes to it.
        accelerated: bool, whether the plan is for a GPU or TPU.
    """

    def __init__(self, layer, accelerated=False):
        self.layer = layer
        self.acceleration = Acceleration(Plan(Hardware(accelerated)))

    def __call__(self, *args, **kwargs):
        with self.acceleration.applied(self.layer):
            return self.layer(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.layer, name)
