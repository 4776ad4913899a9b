"""How the usual data sets of transfer learning are split and scored."""

from typing import NamedTuple


class Convention(NamedTuple):
    """What published numbers of a data set mean.

    Attributes:
        metric: "top-1", or "mean per class", the mean of the classes' own
            accuracies.
        train: str, split of TensorFlow Datasets to learn from, validation
            images included where there are any.
        test: str, split to test on.
    """

    metric: str
    train: str
    test: str


# By name in TensorFlow Datasets. Source: Kornblith, Shlens and Le, "Do Better
# ImageNet Models Transfer Better?", CVPR 2019, table 1, whose metrics SimCLR
# (appendix B.8) and others after it report. Their VOC 2007 is multi-label and
# missing here; Birdsnap and FGVC Aircraft are missing in TFDS. Its "validation"
# of Food-101 are the test images, of ImageNet those whose labels are public;
# "train" of Cars and Pets is all of training. Its "sun397" alone is a random
# split: the published ones are "sun397/standard-part1-120k" and on.
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


def convention(dataset):
    """The `Convention` of a data set; top-1, train and test if unknown.

    Args:
        dataset: str, a TFDS name, also with config and version.

    Example:

    >>> convention("oxford_iiit_pet:4.0.0").metric
    'mean per class'
    """
    name = dataset.split("/")[0].split(":")[0]
    return CONVENTIONS.get(name, Convention("top-1", "train", "test"))
