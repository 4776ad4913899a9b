"""The images of a run, for training and for evaluation."""

from __future__ import annotations

import functools

import tensorflow as tf

from seed_tf import datasets
from seed_tf.config import KNN_IMAGES, RunConfig
from seed_tf.images import shorter_side
from seed_tf.view_cache import ViewCache
from seed_tf.views import MultiCrop, View


class RunImages:
    """The images that a run trains on and is evaluated on.

    Args:
        config: settings of the run.
        views: augmentation, see `seed_tf.SEED`.
        num_views: views of each image in a step.
        view_cache: cache of views to train from, or None.

    Attributes:
        held_out: number of images that training leaves out.
        steps_per_epoch: steps in an epoch.
        labelled: centre crops and labels of both k-NN splits, or None.

    Raises:
        ValueError: as `datasets.load`.
    """

    def __init__(
        self,
        config: RunConfig,
        views: View | MultiCrop,
        num_views: int = 1,
        view_cache: ViewCache | None = None,
    ):
        self._config, self._corrupt, self._training = config, {}, {}
        self._views, self._num_views = views, num_views
        self._view_cache = view_cache
        # Views are crops of larger images.
        self._whole_size = shorter_side(config.image_size)
        self.held_out = config.held_out
        if self.held_out is None:
            images = self._load(config.split, batch_size=1, shuffle=False)
            self.held_out = min(1000, int(images.cardinality()) // 20)
        steps = int(self.training().cardinality())
        self.steps_per_epoch = steps // config.epochs
        self.labelled: list[tf.data.Dataset] | None = None
        if config.knn_every:
            self.labelled = [
                self._centre_crops(
                    split,
                    data_dir=config.knn_data_dir or config.data_dir,
                    labels=True,
                    most=KNN_IMAGES,
                )
                for split in config.knn_splits
            ]

    @property
    def corrupt_files(self) -> dict[str, str]:
        """Unreadable files so far: names and reasons."""
        files: dict[str, str] = {}
        for corrupt in self._corrupt.values():
            files |= corrupt.files
        return files

    def check(self) -> None:
        """Raises ValueError if too many files cannot be read."""
        for corrupt in self._corrupt.values():
            corrupt.check()

    def training(
        self, first_step: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        """Batches of all epochs from a step on."""
        # Building a dataset takes a quarter of a second.
        if (first_step, shard) not in self._training:
            config = self._config
            self._training[first_step, shard] = self._load(
                config.split,
                image_size=self._whole_size,
                seed=config.seed,
                views=self._views,
                num_views=self._num_views,
                view_cache=self._view_cache,
                epochs=config.epochs,
                first_step=first_step,
                shard=shard,
                held_out=self.held_out,
            )
        return self._training[first_step, shard]

    def unseen(self) -> tf.data.Dataset:
        """Centre crops of the images that training leaves out."""
        return self._centre_crops(
            self._config.split, held_out=self.held_out, subset="held_out"
        )

    def _load(self, split, **kwargs):
        config = self._config
        kwargs = {
            "data_dir": config.data_dir,
            "batch_size": config.batch_size,
            "download": config.download,
            **kwargs,
        }
        corrupt = self._corrupt.setdefault(
            (kwargs["data_dir"], split),
            datasets.CorruptFiles(config.max_corrupt_fraction),
        )
        return datasets.load(
            config.dataset, split=split, corrupt=corrupt, **kwargs
        )

    def _centre_crops(self, split, most=None, **kwargs):
        load = functools.partial(
            self._load,
            split,
            image_size=self._config.image_size,
            resize=self._whole_size,
            shuffle=False,
            **kwargs,
        )
        if most and load(batch_size=1).cardinality() > most:
            load = functools.partial(load, held_out=most, subset="held_out")
        return load()
