"""Devices of a run: one device, GPUs, several hosts, a TPU."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable

import keras
import tensorflow as tf
from absl import logging

from seed_tf.keras_internals import all_layers

_TPU_FILES = ("/dev/accel*", "/dev/vfio/*")  # of a TPU VM
# Messages of TensorFlow when a worker is gone, or came back as a new process.
_LOST = re.compile(
    "unhealthy|heartbeat|incarnation|has (likely )?restarted|Socket closed"
    "|Connection re(set|fused)|failed to connect|Collective ops is aborted"
    "|already in error|shut ?down|coordination service",
    re.IGNORECASE,
)


def make_strategy(
    name: str = "auto", tpu: str | None = None
) -> tf.distribute.Strategy:
    """Makes a `tf.distribute` strategy.

    Args:
        name: "one" for the first device; "mirrored" for all GPUs of this
            host; "multiworker" for all GPUs of the hosts in the environment
            variable TF_CONFIG; "tpu"; or "auto", the last available of these.
        tpu: "local" on a TPU VM, or the address of a TPU, "grpc://host:port".

    Raises:
        ValueError: if the devices are not available.
    """
    # No operation may run before a strategy of several workers is made.
    gpus = tf.config.list_physical_devices("GPU")
    if name == "auto":
        name = (
            "tpu"
            if tpu
            else "multiworker"
            if len(_workers()) > 1
            else "mirrored"
            if len(gpus) > 1
            else "one"
        )
    if name == "one":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        if not gpus:
            raise ValueError(
                'The strategy "mirrored" needs GPUs. TensorFlow finds none: '
                "choose `strategy='one'`, or install the extra `cuda`."
            )
        return tf.distribute.MirroredStrategy()
    if name == "multiworker":
        if not _workers():
            raise ValueError(
                'The strategy "multiworker" needs the environment variable '
                "TF_CONFIG on every host, see docs/devices.md. Received: none."
            )
        with _waiting_for(_workers()):
            return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu_strategy(tpu)
    raise ValueError(
        '`name` must be "auto", "one", "mirrored", "multiworker" or "tpu". '
        f"Received: name={name!r}."
    )


def is_chief() -> bool:
    """Returns whether this worker is the chief, which writes all files."""
    if not _workers():
        return True
    config = json.loads(os.environ["TF_CONFIG"])
    kind, index = config["task"]["type"], config["task"]["index"]
    return kind == "chief" or (index == 0 and "chief" not in config["cluster"])


def distribute(
    strategy: tf.distribute.Strategy, load: Callable[..., tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Prepares the data for `fit` under a strategy.

    Each of several workers reads only its own rows of a batch. On one host,
    `fit` splits the batches.

    Args:
        strategy: the strategy of the model.
        load: function of `shard`, a pair (index, count). Returns a dataset of
            these rows of every global batch.

    Returns:
        A dataset. With several workers the dataset is endless: pass
        `steps_per_epoch` to `fit`.
    """
    if not _has_workers(strategy):
        return load(shard=(0, 1))

    def of_worker(context):
        count = context.num_input_pipelines
        dataset = load(shard=(context.input_pipeline_id, count))
        replicas = context.num_replicas_in_sync // count
        if replicas > 1:
            rows = tf.nest.flatten(dataset.element_spec)[0].shape[0]
            dataset = dataset.rebatch(rows // replicas, drop_remainder=True)
        # TensorFlow loses the batch size of a finite dataset.
        return dataset.repeat()

    return strategy.distribute_datasets_from_function(of_worker)


def barrier(strategy: tf.distribute.Strategy) -> None:
    """Waits until all workers call this function."""
    if _has_workers(strategy):

        @tf.function
        def meet():
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, 1.0)

        strategy.run(meet)


def worker_lost(error: BaseException) -> bool:
    """Returns whether a step failed because another worker is gone."""
    return (
        isinstance(error, tf.errors.OpError)
        and len(_workers()) > 1
        and bool(_LOST.search(str(error)))
    )


def synchronise_batch_norm(model: keras.Model) -> None:
    """Sets BatchNorm layers to use statistics of all replicas.

    The paper's students use the statistics of each replica.

    Args:
        model: the network to change. Pass MoCo's encoder, not MoCo: the
            momentum encoder must normalise groups of keys separately.
    """
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


@contextlib.contextmanager
def _waiting_for(workers):
    """Names the awaited workers, and lets Ctrl-C end the wait."""
    logging.warning("Waiting for all workers: %s.", ", ".join(workers))
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Python handles no signal while TensorFlow waits.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        # TensorFlow's own handler would ignore SIGTERM.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _has_workers(strategy):
    kind = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, kind) and len(_workers()) > 1


def _workers():
    """Returns the addresses in TF_CONFIG, the chief first; [] if unset."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return []
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        own = cluster[task["type"]][task["index"]]
        workers = [*cluster.get("chief", []), *cluster.get("worker", [])]
        if own in workers:
            return workers
    except (ValueError, LookupError, TypeError):
        pass
    raise ValueError(
        "The environment variable TF_CONFIG must be JSON such as "
        '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": '
        '{"type": "worker", "index": 0}}. The task must be a worker of the '
        f"cluster. Received: {text}"
    )


def _tpu_strategy(address):
    host = re.fullmatch(r"(?:grpc://)?([^:/]+):(\d+)", address or "")
    if host:
        # TensorFlow would retry for minutes.
        try:
            socket.create_connection((host[1], int(host[2])), 10).close()
        except OSError as error:
            raise ValueError(
                f"No TPU answers at {address!r}: {error}."
            ) from error
    elif address not in (None, "local"):
        raise ValueError(
            '`tpu` must be "local", on a TPU VM, or "grpc://host:port". '
            f"Received: tpu={address!r}."
        )
    elif not any(map(glob.glob, _TPU_FILES)):
        raise ValueError(
            'The strategy "tpu" needs a TPU. This host has none: pass an '
            "address, `tpu='grpc://host:port'`, or start on a TPU VM."
        )
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
        address or "local"
    )
    if host:
        tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)
