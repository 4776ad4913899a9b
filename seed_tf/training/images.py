"""The images of a run, for training and for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from seed_tf import datasets
from seed_tf.config import KNN_IMAGES, RunConfig
from seed_tf.datasets.sources import Subset
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
        begun: `identity` at the beginning of the run to go on with, or None.
        held_out_names: `held_out_names` at the beginning of that run.

    Attributes:
        identity: JSON dict that identifies the images of the run.
        summary: a line about the images that were found.
        held_out: number of images that training leaves out.
        held_out_names: their names; [] if images have no `Source.key`.
        steps_per_epoch: steps in an epoch.
        labelled: centre crops and labels of both k-NN splits, or None.

    Raises:
        ValueError: as `datasets.load`, or if the images have changed since
            the run began.
    """

    def __init__(
        self,
        config: RunConfig,
        views: View | MultiCrop,
        num_views: int = 1,
        view_cache: ViewCache | None = None,
        begun: dict[str, Any] | None = None,
        held_out_names: Sequence[str] = (),
    ):
        self._config, self._corrupt, self._training = config, {}, {}
        self._views, self._num_views = views, num_views
        self._view_cache = view_cache
        # Views are crops of larger images.
        self._whole_size = shorter_side(config.view_size)
        self._source = self._train = self._unseen = self._find(config.split)
        size, self.summary = self._source.size, self._source.summary
        self.identity = {
            "images": size,
            "fingerprint": self._source.fingerprint(),
        }
        self.held_out = config.held_out
        if self.held_out is None:
            self.held_out = min(1000, size // 20)
        self.held_out_names = list(held_out_names)
        self._part, self._epochs = {"held_out": self.held_out}, config.epochs
        if begun and self._changed(begun):
            self._keep_schedule(begun["steps_per_epoch"])
        else:
            steps = int(self.training().cardinality())
            self.steps_per_epoch = steps // config.epochs
            self.held_out_names = self._names_of_held_out()
        self.identity["steps_per_epoch"] = self.steps_per_epoch
        self.labelled: list[tf.data.Dataset] | None = None
        if config.knn_every:
            self.labelled = [
                self._centre_crops(
                    self._find(split, config.knn_data_dir),
                    split=split,
                    image_size=config.image_size,
                    resize=shorter_side(config.image_size),
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
                self._train,
                image_size=self._whole_size,
                seed=config.seed,
                views=self._views,
                num_views=self._num_views,
                view_cache=self._view_cache,
                epochs=self._epochs,
                first_step=first_step,
                shard=shard,
                **self._part,
            )
        return self._training[first_step, shard]

    def unseen(self) -> tf.data.Dataset:
        """Centre crops of the images that training leaves out.

        They have the size of views.
        """
        part = {**self._part, "subset": "held_out"} if self._part else {}
        return self._centre_crops(
            self._unseen,
            image_size=self._config.view_size,
            resize=self._whole_size,
            **part,
        )

    def _find(self, split, data_dir=None):
        config = self._config
        return datasets.describe(
            config.dataset,
            split=split,
            data_dir=data_dir or config.data_dir,
            download=config.download,
        ).source

    def _changed(self, begun):
        """Whether the run goes on with other images; raises if it may not."""
        here = self.identity
        changed = any(begun.get(key) != here[key] for key in here)
        if changed and self._config.data_changed != "continue":
            same = begun.get("images") == here["images"]
            raise ValueError(
                "The images have changed since this run began: "
                f"{begun.get('images')} then, {here['images']} now"
                f"{', of other names or sizes' if same else ''}. Start anew "
                "with `overwrite=True`, choose another `output`, or go on with "
                "`data_changed='continue'`, which keeps the number of steps, "
                "and the held-out images out."
            )
        return changed or begun.get("continued", False)

    def _keep_schedule(self, steps_per_epoch):
        """Trains on all images but those held out at first."""
        config, source = self._config, self._source
        if source.key(0) is None or self._view_cache:
            raise ValueError(
                "`data_changed='continue'` needs a folder of images, and no "
                "view cache. Start anew with `overwrite=True`, or choose "
                "another `output`."
            )
        names = set(self.held_out_names)
        unseen = np.array([source.key(i) in names for i in range(source.size)])
        self._train = Subset(source, np.flatnonzero(~unseen))
        self._unseen = Subset(source, np.flatnonzero(unseen))
        self._part, self.held_out = {}, self._unseen.size
        steps = steps_per_epoch * config.epochs
        self._epochs = -(
            -steps // max(1, self._train.size // config.batch_size)
        )
        self.steps_per_epoch = steps_per_epoch
        self.identity["continued"] = True

    def _names_of_held_out(self):
        count, source = self.held_out, self._source
        if not count or source.key(0) is None:
            return []
        sampler = datasets.Sampler(
            source.size, count, count, rows=(0, count), held_out=True
        )
        numbers = sampler.indices(tf.constant(0, tf.int64)).numpy()
        return [source.key(number) for number in numbers]

    def _load(self, source, split=None, **kwargs):
        config = self._config
        split = split or config.split
        corrupt = self._corrupt.setdefault(
            ("labels" in kwargs, split),
            datasets.CorruptFiles(config.max_corrupt_fraction),
        )
        return datasets.load(
            source,
            split=split,
            **{"batch_size": config.batch_size, "corrupt": corrupt, **kwargs},
        )

    def _centre_crops(self, source, most=None, **kwargs):
        load = functools.partial(
            self._load,
            source,
            shuffle=False,
            **kwargs,
        )
        if most and load(batch_size=1).cardinality() > most:
            load = functools.partial(load, held_out=most, subset="held_out")
        return load()
