"""tf.data pipelines that end at once.

While tf.data tunes a pipeline, the end of its iterator can wait, idle, for as
long again as the iterator has lived, up to a minute: see docs/notes.md. No
pipeline of this package is tuned: `steady` fixes the number of parallel calls.
"""

from __future__ import annotations

import os

import tensorflow as tf

# For `num_parallel_calls` of single images: one call for each core. TensorFlow
# takes the number from the options that `steady` sets.
ALL_CORES = tf.data.AUTOTUNE
# For `prefetch`, and for `num_parallel_calls` of whole batches. tf.data's own
# number of batches would grow with each pause of the training, without limit.
BATCHES_AHEAD = 4


def steady(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the data set with a fixed number of parallel calls.

    What is made from the result is steady too. Options that the data set
    already has are kept.

    Example:

    >>> data = seed_tf.io.pipelines.steady(tf.data.Dataset.range(3)).repeat()
    >>> data.options().autotune.enabled
    False
    """
    given, options = dataset.options().autotune, tf.data.Options()
    if given.enabled is None:
        options.autotune.enabled = False
    if given.initial_parallelism is None:
        options.autotune.initial_parallelism = os.cpu_count() or 1
    return dataset.with_options(options)
