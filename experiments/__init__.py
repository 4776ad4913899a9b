"""Launchers: flags in, library calls, files out."""

import os

# TensorFlow's start-up notices would bury what a launcher says.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
