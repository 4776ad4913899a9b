"""Splits and metrics of the usual data sets of transfer learning."""

from __future__ import annotations

from typing import NamedTuple


class Convention(NamedTuple):
    """Splits and metric of published results on a data set.

    Attributes:
        metric: "top-1", or "mean per class", the mean of the accuracies
            of all classes.
        train: str, the training split of TensorFlow Datasets, with the
            validation images if the data set has any.
        test: str, split to test on.
    """

    metric: str
    train: str
    test: str


# By name in TensorFlow Datasets. Source: Kornblith, Shlens and Le, "Do Better
# ImageNet Models Transfer Better?", CVPR 2019, table 1. SimCLR (appendix B.8)
# and later papers report the same metrics. VOC 2007 is left out because it is
# multi-label; TFDS lacks Birdsnap and FGVC Aircraft. TFDS calls the test images
# of Food-101 "validation", and so the images of ImageNet with public labels;
# "train" of Cars and Pets means all training images. "sun397" is a random
# split: the published splits are "sun397/standard-part1-120k" and so on.
CONVENTIONS = {
    "caltech101": Convention("mean per class", "train", "test"),
    "cars196": Convention("top-1", "train", "test"),
    "cifar10": Convention("top-1", "train", "test"),
    "cifar100": Convention("top-1", "train", "test"),
    "dtd": Convention("top-1", "train+validation", "test"),
    "food101": Convention("top-1", "train", "validation"),
    "imagenet2012": Convention("top-1", "train", "validation"),
    "oxford_flowers102": Convention(
        "mean per class", "train+validation", "test"
    ),
    "oxford_iiit_pet": Convention("mean per class", "train", "test"),
    "sun397": Convention("top-1", "train", "test"),
}


def convention(dataset: str) -> Convention:
    """Returns the convention of a data set: top-1, train, test if unknown.

    Args:
        dataset: str, a TFDS name, also with config and version.

    Example:

    >>> convention("oxford_iiit_pet:4.0.0").metric
    'mean per class'
    """
    name = dataset.split("/")[0].split(":")[0]
    return CONVENTIONS.get(name, Convention("top-1", "train", "test"))
