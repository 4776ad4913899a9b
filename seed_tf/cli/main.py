"""The command line: `seed-tf <command>`, or `python -m seed_tf <command>`.

This module, and the top level of every module of a command, import no
TensorFlow: help and errors of usage answer at once.
"""

from __future__ import annotations

import difflib
import faulthandler
import importlib
import io
import os
import sys
from collections.abc import Sequence

from absl import logging
from absl.flags import FLAGS

import seed_tf
from seed_tf.cli import flags
from seed_tf.io.text import plain, printable, reason, visible
from seed_tf.version import __version__

# The module of a command has its name, and begins with this line.
COMMANDS = {
    "pretrain": "Trains an encoder with MoCo v2, as a teacher or a baseline.",
    "distill": "Distils a small student from a trained teacher with SEED.",
    "cache": "Stores fixed views and a teacher's embeddings to train from.",
    "advise": "Recommends a temperature and a queue size for your images.",
    "evaluate": "Measures the features of encoders: k-NN, probes, fine-tuning.",
    "detect": "Fine-tunes encoders as backbones of object detectors.",
    "report": "Compares runs: settings, curves, accuracy and cost.",
    "search": "Searches a folder of images by image.",
    "export": "Writes an encoder for TensorFlow Serving, LiteRT or ONNX.",
    "convert": "Converts published checkpoints to Keras, and back to PyTorch.",
    "quickstart": "Distils a tiny encoder of handwritten digits in minutes.",
}


def main() -> None:
    """Runs the command line of this process, and ends the process."""
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):  # names that it cannot encode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `seed-tf --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def run(words: Sequence[str]) -> int:
    """Runs a command.

    Args:
        words: the command line after the program's name.

    Returns:
        The exit status: 0, 1 after an error, 128 + n after signal n.
    """
    words = list(words)
    try:
        command, call = _parse(words)
    except flags.HelpRequested as request:
        print(request)
        return 0
    except flags.Error as error:
        named = [x for x in words[:1] if x in COMMANDS]
        usage = " ".join(["seed-tf", *named, "--help"])
        print(f"Error: {printable(str(error))}\nSee: {usage}", file=sys.stderr)
        return 1
    try:
        _prepare()
    except ImportError as error:
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        return 1
    return _guarded(command, call)


def _parse(words):
    if not words or words[0] in ("--help", "-h", "help", "--helpfull"):
        raise flags.HelpRequested(_overview())
    if words[0] == "--version":
        raise flags.HelpRequested(__version__)
    for word in words:
        if word.encode(errors="ignore").decode() != word:
            raise flags.Error(
                f"Expected names in UTF-8. Received: '{visible(word)}'."
            )
    name, *words = words
    if name not in COMMANDS:
        raise flags.Error(_unknown("command", name, COMMANDS))
    module = importlib.import_module(f"seed_tf.cli.{name}")
    command, doc = module.COMMAND, module.__doc__ or ""
    if isinstance(command, dict):  # of commands
        if not words or words[0] not in command:
            if {"--help", "--helpfull"} & set(words):
                raise flags.HelpRequested(
                    f"{doc.strip()}\n\n"
                    f"Commands: {', '.join(command)}. Each has --help."
                )
            word = words[0] if words else ""
            raise flags.Error(_unknown(f"command of {name}", word, command))
        second, *words = words
        name, command = f"{name} {second}", command[second]
    return command, command.parse(name, words, doc)


def _overview():
    lines = [f"  {name:<12}{line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "SEED distillation of small image encoders.",
            "",
            "Usage: seed-tf COMMAND [flags]",
            "",
            *lines,
            "",
            "seed-tf COMMAND --help shows the flags of a command.",
        ]
    )


def _unknown(kind, word, known):
    close = difflib.get_close_matches(word, known, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"Unknown {kind}: {word!r}.{hint} Expected one of {', '.join(known)}."
    )


def _prepare():
    """Imports TensorFlow and sets up logging for a command."""
    seed_tf._register_classes()
    import tensorflow as tf

    logging.use_absl_handler()
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # TensorFlow raises it
        tf.get_logger().setLevel("WARNING")


def _guarded(command, call):
    """Runs a command. Prints an expected error as one line."""
    import tensorflow as tf

    from seed_tf.training import Stopped, devices

    try:
        text = command.instead and command.instead(call.given)
        if text:
            print(text)
        else:
            command.run(call)
    except Stopped as stop:
        print(f"{stop} The same command goes on:\n  {call.line()}")
        return 128 + stop.signal
    except KeyboardInterrupt:
        if command.resumable:
            print(f"Stopped. The same command goes on:\n  {call.line()}")
        return 130
    except (
        ValueError,
        FloatingPointError,
        OSError,
        tf.errors.OpError,
    ) as error:
        if devices.worker_lost(error):
            logging.warning(
                "Another worker is gone (%s): starting anew.", reason(error)
            )
            _restart(call)
            return 0
        logging.debug("", exc_info=True)  # shown with --verbosity=1
        message = printable(command.as_flags(plain(error)))
        print(f"Error: {message}", file=sys.stderr)
        return 1
    return 0


def _restart(call):
    """Replaces this process by a new one, which waits for the lost worker."""
    os.execv(sys.executable, [sys.executable, "-m", "seed_tf", *call.words()])
