"""The images of a training, as the launchers' flags name them."""

import functools

from absl import flags

import seed_tf
from seed_tf.images import shorter_side

FLAGS = flags.FLAGS
KNN_IMAGES = 20_000


def whole_size():
    """Pixels of images that come whole: room for the views to crop from."""
    return shorter_side(FLAGS.image_size)


class Data:
    """The images that the flags name, and what is kept of them."""

    def __init__(self, views, num_views, view_cache=None):
        self._corrupt = {}
        self._views, self._num_views = views, num_views
        self._view_cache = view_cache
        self.held_out = FLAGS.held_out
        if self.held_out is None:
            images = self._load(FLAGS.split, batch_size=1, shuffle=False)
            self.held_out = min(1000, int(images.cardinality()) // 20)
        self._training = {}
        steps = int(self.training().cardinality())
        self.steps_per_epoch = steps // FLAGS.epochs
        self.labelled = None
        if FLAGS.knn_every:
            self.labelled = [
                self._centre_crops(
                    split,
                    data_dir=FLAGS.knn_data_dir or FLAGS.data_dir,
                    labels=True,
                    most=KNN_IMAGES,
                )
                for split in FLAGS.knn_splits
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
                FLAGS.split,
                image_size=whole_size(),
                seed=FLAGS.seed,
                views=self._views,
                num_views=self._num_views,
                view_cache=self._view_cache,
                epochs=FLAGS.epochs,
                first_step=first_step,
                shard=shard,
                held_out=self.held_out,
            )
        return self._training[first_step, shard]

    def unseen(self):
        """Centre crops of the images that training leaves out."""
        return self._centre_crops(
            FLAGS.split, held_out=self.held_out, subset="held_out"
        )

    def _load(self, split, **kwargs):
        kwargs = {
            "data_dir": FLAGS.data_dir,
            "batch_size": FLAGS.batch_size,
            "download": FLAGS.download,
            **kwargs,
        }
        corrupt = self._corrupt.setdefault(
            (kwargs["data_dir"], split),
            seed_tf.datasets.CorruptFiles(FLAGS.max_corrupt_fraction),
        )
        return seed_tf.datasets.load(
            FLAGS.dataset, split=split, corrupt=corrupt, **kwargs
        )

    def _centre_crops(self, split, most=None, **kwargs):
        load = functools.partial(
            self._load,
            split,
            image_size=FLAGS.image_size,
            resize=whole_size(),
            shuffle=False,
            **kwargs,
        )
        if most and load(batch_size=1).cardinality() > most:
            load = functools.partial(load, held_out=most, subset="held_out")
        return load()
