"""Where a model trains: one device, several, several hosts, a TPU."""

import contextlib
import glob
import json
import os
import re
import signal
import socket
import threading

import keras
import tensorflow as tf
from absl import logging

from seed_tf.keras_internals import all_layers

_TPU_FILES = ("/dev/accel*", "/dev/vfio/*")  # of a TPU VM
# What TensorFlow's collectives and its coordination service say of a worker
# that is gone, or came back as another process.
_LOST = re.compile(
    "unhealthy|heartbeat|incarnation|has (likely )?restarted|Socket closed"
    "|Connection re(set|fused)|failed to connect|Collective ops is aborted"
    "|already in error|shut ?down|coordination service",
    re.IGNORECASE,
)


def make_strategy(name="auto", tpu=None):
    """The `tf.distribute` strategy of a name.

    Args:
        name: "one", the first device; "mirrored", all GPUs of this host;
            "multiworker", the hosts that the environment variable TF_CONFIG
            names, and all their GPUs; "tpu"; or "auto": the last of these
            that is there.
        tpu: "local" on a TPU VM, or the address of a TPU, "grpc://host:port".

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        ValueError: if what is named is not there.
    """
    # Nothing may run before a strategy of several workers is made.
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
                'The strategy "mirrored" needs GPUs, and TensorFlow sees none: '
                "choose `strategy='one'`, or install the extra `cuda`."
            )
        return tf.distribute.MirroredStrategy()
    if name == "multiworker":
        if not _workers():
            raise ValueError(
                'The strategy "multiworker" needs the environment variable '
                "TF_CONFIG, on every host its own, see docs/devices.md. "
                "Received: none."
            )
        with _waiting_for(_workers()):
            return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu_strategy(tpu)
    raise ValueError(
        '`name` must be "auto", "one", "mirrored", "multiworker" or "tpu". '
        f"Received: name={name!r}."
    )


def is_chief():
    """Whether this process is the one of its workers that writes files."""
    if not _workers():
        return True
    config = json.loads(os.environ["TF_CONFIG"])
    kind, index = config["task"]["type"], config["task"]["index"]
    return kind == "chief" or (index == 0 and "chief" not in config["cluster"])


def distribute(strategy, load):
    """The data that `fit` takes under a strategy.

    Every worker reads and decodes its own rows of a batch only. On one host
    `fit` splits batches itself.

    Args:
        strategy: `tf.distribute.Strategy`.
        load: function of `shard`, a pair (index, count), to a
            `tf.data.Dataset` of these rows of every global batch.

    Returns:
        `tf.data.Dataset`, or its distributed kind, which is endless: tell
        `fit` the `steps_per_epoch`.
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
        # Of data that end, TensorFlow hands out batches of unknown size.
        return dataset.repeat()

    return strategy.distribute_datasets_from_function(of_worker)


def barrier(strategy):
    """Returns when all workers have come here."""
    if _has_workers(strategy):

        @tf.function
        def meet():
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, 1.0)

        strategy.run(meet)


def worker_lost(error):
    """Whether a training step failed because another worker is gone."""
    return (
        isinstance(error, tf.errors.OpError)
        and len(_workers()) > 1
        and bool(_LOST.search(str(error)))
    )


def synchronise_batch_norm(model):
    """Makes BatchNorm of a model take statistics over all replicas.

    In place, built or not. The paper's students use those of each replica.

    Args:
        model: keras.Model. Of MoCo the encoder: keys of the momentum encoder
            must be normalised apart.
    """
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


@contextlib.contextmanager
def _waiting_for(workers):
    """Says what is waited for, and lets Ctrl-C end it."""
    logging.warning("Waiting for all workers: %s.", ", ".join(workers))
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # TensorFlow waits without letting Python handle signals.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        # TensorFlow has taken it over, and would do nothing.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _has_workers(strategy):
    kind = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, kind) and len(_workers()) > 1


def _workers():
    """Addresses of TF_CONFIG's workers, the chief first; none without."""
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
        '{"type": "worker", "index": 0}}, whose task is a worker of the '
        f"cluster. Received: {text}"
    )


def _tpu_strategy(address):
    host = re.fullmatch(r"(?:grpc://)?([^:/]+):(\d+)", address or "")
    if host:
        # TensorFlow would go on trying for minutes.
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
            'The strategy "tpu" needs a TPU, and this host has none. Give its '
            "address as `tpu='grpc://host:port'`, or start on a TPU VM."
        )
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
        address or "local"
    )
    if host:
        tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)
