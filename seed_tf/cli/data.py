"""The images of a training."""

import functools

import seed_tf
from seed_tf.config import KNN_IMAGES, RunConfig, ViewsConfig
from seed_tf.images import shorter_side


def whole_size(settings: ViewsConfig):
    """Pixels of images that come whole: room for the views to crop from."""
    return shorter_side(settings.image_size)


class Data:
    """The images that the settings name, and what is kept of them."""

    def __init__(self, settings: RunConfig, views, num_views, view_cache=None):
        self._settings = settings
        self._corrupt = {}
        self._views, self._num_views = views, num_views
        self._view_cache = view_cache
        self.held_out = self._settings.held_out
        if self.held_out is None:
            images = self._load(
                self._settings.split, batch_size=1, shuffle=False
            )
            self.held_out = min(1000, int(images.cardinality()) // 20)
        self._training = {}
        steps = int(self.training().cardinality())
        self.steps_per_epoch = steps // self._settings.epochs
        self.labelled = None
        if self._settings.knn_every:
            self.labelled = [
                self._centre_crops(
                    split,
                    data_dir=self._settings.knn_data_dir
                    or self._settings.data_dir,
                    labels=True,
                    most=KNN_IMAGES,
                )
                for split in self._settings.knn_splits
            ]

    @property
    def corrupt_files(self):
        """What cannot be read, so far: dict of names to reasons."""
        files = {}
        for corrupt in self._corrupt.values():
            files |= corrupt.files
        return files

    def check(self):
        """Raises ValueError if too many files cannot be read."""
        for corrupt in self._corrupt.values():
            corrupt.check()

    def training(self, first_step=0, shard=(0, 1)):
        """Batches of all epochs, from a step on."""
        # Kept, as a quarter of a second of a start is to build one.
        if (first_step, shard) not in self._training:
            self._training[first_step, shard] = self._load(
                self._settings.split,
                image_size=whole_size(self._settings),
                seed=self._settings.seed,
                views=self._views,
                num_views=self._num_views,
                view_cache=self._view_cache,
                epochs=self._settings.epochs,
                first_step=first_step,
                shard=shard,
                held_out=self.held_out,
            )
        return self._training[first_step, shard]

    def unseen(self):
        """Centre crops of the images that training leaves out."""
        return self._centre_crops(
            self._settings.split, held_out=self.held_out, subset="held_out"
        )

    def _load(self, split, **kwargs):
        kwargs = {
            "data_dir": self._settings.data_dir,
            "batch_size": self._settings.batch_size,
            "download": self._settings.download,
            **kwargs,
        }
        corrupt = self._corrupt.setdefault(
            (kwargs["data_dir"], split),
            seed_tf.datasets.CorruptFiles(self._settings.max_corrupt_fraction),
        )
        return seed_tf.datasets.load(
            self._settings.dataset, split=split, corrupt=corrupt, **kwargs
        )

    def _centre_crops(self, split, most=None, **kwargs):
        load = functools.partial(
            self._load,
            split,
            image_size=self._settings.image_size,
            resize=whole_size(self._settings),
            shuffle=False,
            **kwargs,
        )
        if most and load(batch_size=1).cardinality() > most:
            load = functools.partial(load, held_out=most, subset="held_out")
        return load()
