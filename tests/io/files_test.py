"""Files and folders appear whole or not at all."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from seed_tf.io import extras, files, locks


class FilesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.path = os.path.join(self.folder, "x.json")

    def test_a_failed_write_keeps_the_old_file(self):
        with files.atomic_write(self.path) as unfinished:
            pathlib.Path(unfinished).write_text("old")
        with self.assertRaises(KeyError), files.atomic_write(self.path) as path:
            pathlib.Path(path).write_text("ne")
            raise KeyError
        self.assertEqual(pathlib.Path(self.path).read_text(), "old")
        self.assertEqual(os.listdir(self.folder), ["x.json"])

    @parameterized.parameters(
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError("Can't write data (errno = 28, 'No space left on device')"),
        RuntimeError("PytorchStreamWriter failed writing file data/3"),
        RuntimeError("[enforce fail] . unexpected pos 916544 vs 916440"),
    )
    def test_a_full_disk_leaves_nothing(self, error):
        for write in (files.atomic_write, files.atomic_folder):
            with (
                self.assertRaisesRegex(OSError, "x.json' cannot.*Make room"),
                write(self.path) as unfinished,
            ):
                if write is files.atomic_write:
                    pathlib.Path(unfinished).write_text("half")
                raise error
            self.assertEqual(os.listdir(self.folder), [])

    def test_other_errors_stay(self):
        for error in (ValueError("the quota of the report"), KeyError("x")):
            with (
                self.assertRaises(type(error)) as caught,
                files.atomic_write(self.path),
            ):
                raise error
            self.assertIs(caught.exception, error)

    def test_space_is_checked_first(self):
        free = shutil.disk_usage("/")._replace(free=1000)
        path = os.path.join(self.folder, "new", "x.bin")
        with mock.patch.object(shutil, "disk_usage", return_value=free):
            with self.assertRaisesRegex(
                OSError, f"'{path}' has 1 kB free, and 1 MB are needed. Make"
            ):
                files.check_space(path, 1_000_000)
            files.check_space(path, 1000)
            with (
                self.assertRaisesRegex(OSError, "No space left"),
                files.atomic_write(self.path, 2000),
            ):
                self.fail("nothing is written")

    def test_a_folder_gets_its_name_last(self):
        path = os.path.join(self.folder, "whole")
        os.makedirs(f"{path}.unfinished/left/by/a/killed/process")
        with files.atomic_folder(path) as folder:
            self.assertFalse(os.path.exists(path))
            os.makedirs(os.path.join(folder, "below"))
            pathlib.Path(folder, "below", "file").write_text("content")
        self.assertEqual(os.listdir(self.folder), ["whole"])
        self.assertEqual(os.listdir(path), ["below"])

    def test_a_folder_that_fails_is_removed(self):
        path = os.path.join(self.folder, "whole")
        with (
            mock.patch.object(files, "flush", side_effect=OSError(28, "Full")),
            self.assertRaisesRegex(OSError, "Full"),
            files.atomic_folder(path) as folder,
        ):
            pathlib.Path(folder, "file").write_text("content")
        self.assertEqual(os.listdir(self.folder), [])

    def test_json(self):
        content = {"a": [1, None], "b": {"c": "é"}}
        files.write_json(self.path, content)
        self.assertEqual(files.read_json(self.path), content)
        self.assertTrue(pathlib.Path(self.path).read_text().endswith("}\n"))
        missing = os.path.join(self.folder, "missing")
        self.assertEqual(files.read_json(missing, {}), {})
        with self.assertRaises(FileNotFoundError):
            files.read_json(missing)
        pathlib.Path(self.path).write_text("{")
        with self.assertRaisesRegex(ValueError, "x.json' is damaged"):
            files.read_json(self.path, {})

    @parameterized.parameters(
        ("[1]", "expected an object, received \\[1\\]"),
        ("{" * 9, "Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe{", "truncated data"),
        (f'"{"x" * 100_000}"', "received 'x+…x+'$"),
    )
    def test_a_foreign_document_is_named(self, text, message):
        text = text.encode() if isinstance(text, str) else text
        pathlib.Path(self.path).write_bytes(text)
        with self.assertRaisesRegex(ValueError, f"x.json' is dam.*{message}"):
            files.read_json(self.path, {})

    def test_a_damaged_line_is_left_out_alone(self):
        lines = [
            *('{"step": 1}', '{"step": 2', "\xff", "[3]", '{"step": "4"}'),
            *('{"epoch": 5}', '{"step": 6}', '{"step'),
        ]
        pathlib.Path(self.path).write_bytes("\n".join(lines).encode("latin-1"))
        with self.assertLogs(level="WARNING") as logs:
            found = files.read_json_lines(self.path, ["step"])
        self.assertEqual(found, [{"step": 1}, {"step": 6}])
        self.assertLen(logs.output, 5)
        for row, line in enumerate(logs.output, 2):
            self.assertRegex(line, f"Line {row} of '.*x.json' is damaged")

    def test_differences_of_documents(self):
        there = {"a": 1, "b": {"c": 2, "d": 3}}
        here = {"a": 1, "b": {"c": 4, "d": 3}, "e": None}
        self.assertEqual(
            files.differences(there, here),
            ["b, c: 2 there, 4 here", "e: '(absent)' there, None here"],
        )

    def test_one_process_writes_to_a_folder(self):
        with (
            locks.folder_lock(self.folder),
            self.assertRaisesRegex(ValueError, "Another process is writing"),
            locks.folder_lock(self.folder),
        ):
            pass
        with locks.folder_lock(self.folder):
            pass
        pathlib.Path(self.path).write_text("")
        with (
            self.assertRaisesRegex(OSError, "x.json' cannot be written: File"),
            locks.folder_lock(self.path),
        ):
            pass
        self.assertEqual(os.listdir(self.folder), ["x.json"])

    def test_a_killed_process_leaves_no_lock(self):
        script = (
            "import sys; sys.argv[0] = 'seed-tf'\n"  # loads no TensorFlow
            "from seed_tf.io import locks\n"
            "with locks.folder_lock(sys.argv[1]):\n"
            "    print('locked', flush=True); input()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, self.folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            process.stdout.readline()
            with (
                self.assertRaisesRegex(ValueError, "Another process"),
                locks.folder_lock(self.folder),
            ):
                pass
            process.kill()
        with locks.folder_lock(self.folder):
            pass
        self.assertEmpty(os.listdir(self.folder))

    def test_a_missing_package_names_its_extra(self):
        with (
            self.assertRaisesRegex(
                ValueError,
                r"Indexes need .*pip install 'seed_tf\[search\]'.*no_such",
            ),
            extras.extra("search", "Indexes"),
        ):
            raise ImportError("No module named no_such_package")


if __name__ == "__main__":
    absltest.main()
