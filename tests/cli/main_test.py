"""The command line: help, errors of usage, and what every command shares."""

import dataclasses
import importlib
import os
import pathlib
import signal
import subprocess
import sys
from unittest import mock

import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.runs import command

from seed_tf.cli import flags, main
from seed_tf.config import DistillConfig
from seed_tf.training import Stopped

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Runs the command line where TensorFlow, Keras and NumPy cannot be imported.
WITHOUT_TENSORFLOW = """
import runpy, sys
for name in ("tensorflow", "keras", "numpy", "sklearn", "matplotlib"):
    sys.modules[name] = None
program, *sys.argv[1:] = sys.argv[1:]
if program == "seed-tf":  # as its console script
    sys.argv[0] = "/usr/bin/seed-tf"
    from seed_tf.cli.main import main
    main()
runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


def without_tensorflow(*words):
    """Returns the exit status and what was printed."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


class UsageTest(parameterized.TestCase):
    """Answers that need no TensorFlow."""

    @parameterized.parameters(
        (("seed-tf", "--help"), 0, "  distill +Distils a small student"),
        (("seed-tf", "distill", "--help"), 0, "--teacher\n.*required"),
        (("seed-tf", "distil"), 1, "Did you mean 'distill'"),
        (("seed-tf", "distill", "--techer=t"), 1, "Did you mean: teacher"),
        (("experiments.distill", "--output=o"), 1, "--teacher must be given"),
        (("experiments.search", "index", "--help"), 0, "--output_layer\n"),
    )
    def test_without_tensorflow(self, words, code, printed):
        ended, text = without_tensorflow(*words)
        self.assertEqual(ended, code, text)
        self.assertRegex(text, f"(?s){printed}")
        self.assertNotIn("Traceback", text)

    def test_python_dash_m(self):
        script = (
            "import sys; sys.modules['tensorflow'] = None; "
            "import runpy; sys.argv[0] = '-m'; "
            "sys.orig_argv[-len(sys.argv):] = ['seed_tf', '--help']; "
            "runpy.run_module('seed_tf', run_name='__main__', alter_sys=True)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("Usage: seed-tf COMMAND", done.stdout)

    @parameterized.parameters(*main.COMMANDS)
    def test_every_command_has_help(self, name):
        module = importlib.import_module(f"seed_tf.cli.{name}")
        self.assertStartsWith(module.__doc__, main.COMMANDS[name] + "\n")
        printed = command(name, "--help")
        self.assertStartsWith(printed, main.COMMANDS[name])
        self.assertIn(f"    seed-tf {name}", printed)
        script = ROOT / "experiments" / f"{name}.py"
        self.assertIn(f'["seed-tf", "{name}"]', script.read_text())

    @parameterized.parameters(
        ((), 0, "Usage: seed-tf COMMAND"),
        (("--version",), 0, r"^\d+\.\d+"),
        (("fly",), 1, "Unknown command: 'fly'. Expected one of pretrain, "),
        (("distill", "--epochs=0"), 1, "--epochs=0: .* positive"),
        (("distill", "--epochs=many"), 1, "--epochs=many: .*int"),
        (("distill", "--views=mine"), 1, "--views=mine: .*moco_v2"),
        (("distill", "photos"), 1, "Expected only flags. Received: 'photos'"),
        (("distill",), 1, "--output and --teacher must be given"),
        (("evaluate", "--protocol=knn,svm", "--encoder=x"), 1, "svm.*: value"),
    )
    def test_words(self, words, code, printed):
        self.assertRegex(command(*words, code=code), printed)

    def test_flags_of_absl(self):
        self.assertNotIn("--verbosity", command("report", "--help"))
        self.assertIn("--verbosity", command("report", "--helpfull"))
        printed = command("report", "--verbosity=1", code=1)
        self.assertIn("Error: Name the folders", printed)


class EndsTest(parameterized.TestCase):
    """How a command ends, whatever it is."""

    def end(self, error, code, *words):
        words = words or ("report", "a b", "--output=out")
        run = mock.Mock(side_effect=error)
        module = importlib.import_module(f"seed_tf.cli.{words[0]}")
        with mock.patch.object(
            module,
            "COMMAND",
            dataclasses.replace(module.COMMAND, run=run),
        ):
            return command(*words, code=code)

    @parameterized.parameters(ValueError, OSError, FloatingPointError)
    def test_bad_input_is_one_line(self, error):
        printed = self.end(
            error("`output` holds a run. Use `overwrite=True`, `size=3`."), 1
        )
        self.assertEqual(
            printed,
            "Error: --output holds a run. Use `overwrite=True`, `size=3`.\n",
        )

    def test_a_defect_has_a_traceback(self):
        with self.assertRaises(KeyError):
            self.end(KeyError("x"), 1)

    def test_a_signal(self):
        stop = Stopped("Stopped.", signal.SIGTERM)
        printed = self.end(stop, 128 + signal.SIGTERM)
        self.assertRegex(
            printed, "Stopped. The same.*\n.*seed_tf report 'a b' --output=o"
        )
        self.assertEqual(self.end(KeyboardInterrupt, 130), "")
        printed = self.end(stop, 143, "pretrain", "--overwrite", "--output=o")
        self.assertEndsWith(printed, "seed_tf pretrain --output=o\n")
        printed = self.end(
            *(KeyboardInterrupt, 130, "cache", "--teacher=t", "--output=o")
        )
        self.assertIn("Stopped. The same command goes on:", printed)

    @parameterized.parameters(
        "--overwrite", "--overwrite=true", "--overwrite=1", "-overwrite"
    )
    def test_a_lost_worker_is_waited_for(self, overwrite):
        lost = tf.errors.UnavailableError(None, None, "Socket closed")
        words = ("pretrain", "--output=o p", overwrite, "--noflip")
        with (
            mock.patch.object(main.os, "execv") as execv,
            mock.patch(
                "seed_tf.training.devices.worker_lost", return_value=True
            ),
        ):
            self.end(lost, 0, *words)
        program, arguments = execv.call_args.args
        self.assertEqual(program, sys.executable)
        self.assertEqual(arguments[1:4], ["-m", "seed_tf", "pretrain"])
        self.assertCountEqual(arguments[4:], ["--output=o p", "--noflip"])


class FlagsTest(parameterized.TestCase):
    def test_settings_and_given(self):
        call = flags.Command(DistillConfig, print).parse(
            "distill",
            [
                *("--output=o", "--teacher=t", "--jit", "--noflip"),
                *("--epochs=3", "--knn_splits=a,b", "--epochs=4"),
            ],
            "",
        )
        given = {
            **{"output": "o", "teacher": "t", "jit": True, "flip": False},
            **{"epochs": 4, "knn_splits": ("a", "b")},
        }
        self.assertEqual(call.given, given)
        self.assertEqual(call.settings, DistillConfig(**given))
        again = flags.Command(DistillConfig, print).parse(
            "distill", call.words()[1:], ""
        )
        self.assertEqual(again.given, given)

    @parameterized.parameters(*main.COMMANDS)
    def test_folders_are_normalised(self, name):
        paths = {
            *("data_dir", "labels_dir", "knn_data_dir", "cache_dir", "output"),
            *("teacher", "view_cache", "index", "image", "explain"),
            *("label_list", "results", "student_weights"),
        }
        if name != "pretrain":  # its encoder is the name of a network
            paths.add("encoder")
        commands = importlib.import_module(f"seed_tf.cli.{name}").COMMAND
        if not isinstance(commands, dict):
            commands = {name: commands}
        for each in commands.values():
            for field in dataclasses.fields(each.settings):
                with self.subTest(field.name):
                    self.assertEqual(
                        bool(field.metadata["path"]), field.name in paths
                    )

    def test_a_path_of_a_flag(self):
        for words, message in (
            (("evaluate", "--output=gs://b/r"), "--output must be on a disk"),
            (("search", "index", "--index=s3://b"), "--index must be on a d"),
            (("cache", "--output="), "--teacher and --output must be given"),
        ):
            self.assertRegex(command(*words, code=1), f"^Error: {message}")
        call = flags.Command(DistillConfig, print).parse(
            "distill", ["--output=~/o/", "--teacher=./t/"], ""
        )
        home = os.path.expanduser("~")
        self.assertEqual(call.given, {"output": f"{home}/o", "teacher": "t"})

    @parameterized.parameters(
        ("Use `overwrite=True`.", "Use --overwrite."),
        ("Use `flip=False`.", "Use --noflip."),
        ("`epochs=3` and `steps`", "--epochs=3 and `steps`"),
        ("Use `strategy='one'`.", "Use --strategy=one."),
        ("the `Encoder`'s `output`", "the `Encoder`'s --output"),
    )
    def test_as_flags(self, message, expected):
        names = [field.name for field in dataclasses.fields(DistillConfig)]
        self.assertEqual(flags.as_flags(message, names), expected)


if __name__ == "__main__":
    absltest.main()
