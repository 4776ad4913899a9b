"""Runs around `fit`: schedule, devices, checkpoints and reports."""

from seed_tf.io.fingerprints import fingerprint
from seed_tf.optimizers.schedule import warmup_cosine
from seed_tf.optimizers.sgd import SGD
from seed_tf.training.callbacks import Evaluate, MetricsLog, Progress
from seed_tf.training.checkpointing import Checkpoints
from seed_tf.training.estimate import dry_run
from seed_tf.training.report import write_run_report
from seed_tf.training.run import train
from seed_tf.training.run_folder import RunFolder, earlier_config
from seed_tf.training.saving import Stopped

__all__ = [
    "Checkpoints",
    "Evaluate",
    "MetricsLog",
    "Progress",
    "RunFolder",
    "SGD",
    "Stopped",
    "dry_run",
    "earlier_config",
    "fingerprint",
    "train",
    "warmup_cosine",
    "write_run_report",
]
