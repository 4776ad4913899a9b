"""Random views that trace quickly, for tests of other things than views."""

from seed_tf import views


def crop_and_flip(size):
    """A random crop and flip: half of the tracing time of `moco_v2`'s views."""
    layers = [views.RandomResizedCrop(size), views.RandomHorizontalFlip()]
    return views.View(layers)
