"""Arrays and records: what is read back is whole, or its file is named."""

import json
import os
import pathlib
import warnings
import zlib

import numpy as np
from absl.testing import absltest, parameterized

from seed_tf.io import arrays


class ArraysTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.create_tempdir().full_path, "x.npy")
        self.rows = np.random.default_rng(0).random((7, 12), np.float32)
        np.save(self.path, self.rows)

    def open(self, dtype=np.float32, shape=(None, 12), expected=None):
        return arrays.open_array(self.path, dtype, shape, expected)

    def test_checksum_of_a_whole_file(self):
        data = pathlib.Path(self.path).read_bytes()
        self.assertEqual(arrays.checksum(self.path), f"{zlib.crc32(data):08x}")
        found = self.open(expected=arrays.checksum(self.path))
        np.testing.assert_array_equal(found, self.rows)
        with self.assertRaisesRegex(ValueError, "x.npy' is damaged.*'abc'"):
            self.open(expected="abc")

    def test_bits_of_the_header(self):
        """Without a checksum, too, a header is right or refused."""
        data = pathlib.Path(self.path).read_bytes()
        refused = 0
        for bit in range(0, 8 * 128, 3):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            pathlib.Path(self.path).write_bytes(flipped)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # NumPy's, of Python 2
                    found = self.open(shape=(7, 12))
                np.testing.assert_array_equal(found, self.rows)
            except ValueError as error:
                self.assertStartsWith(str(error), f"{self.path!r} is damaged")
                refused += 1
        self.assertGreater(refused, 150)

    @parameterized.parameters(
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\0\x04\0((((",
        b"\x93NUMPY\x01\0\x0a\0{'descr':\n",
        b"\x93NUMPY\x01\0\x0c\0{'a': '\\x0'}",
        b"PK\x03\x04" + bytes(80),
        b"\x80\x04N.",
    )
    def test_no_array(self, data):
        pathlib.Path(self.path).write_bytes(data)
        with self.assertRaisesRegex(ValueError, "x.npy' is damaged: expected"):
            self.open()

    def test_another_array(self):
        for array in (
            *(self.rows.astype(np.float64), self.rows.astype(">f4")),
            *(self.rows[:, :5], self.rows[0], np.asfortranarray(self.rows)),
            np.array([None] * 3),
        ):
            np.save(self.path, array)
            with self.assertRaisesRegex(
                ValueError, r"is damaged: expected <f4 \(any, 12\)"
            ):
                self.open()
        for change in (lambda x: x[:-1], lambda x: x + b"\0"):
            np.save(self.path, self.rows)
            data = pathlib.Path(self.path).read_bytes()
            pathlib.Path(self.path).write_bytes(change(data))
            with self.assertRaisesRegex(ValueError, "x.npy' is damaged"):
                self.open()
        os.remove(self.path)
        with self.assertRaises(FileNotFoundError):
            self.open()

    def test_rows_are_written_one_after_another(self):
        with arrays.ArrayWriter(self.path) as writer:
            for start in range(0, 7, 3):
                writer.append(self.rows[start : start + 3])
        np.testing.assert_array_equal(np.load(self.path), self.rows)
        np.testing.assert_array_equal(self.open(), self.rows)


class RecordsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.create_tempdir().full_path, "x.json")
        self.content = {"é": [1, 0.1, None, True], "n": 3, "of": {"a": "b"}}
        self.fields = {"n": int, "of": dict}

    def read(self):
        return arrays.read_record(self.path, self.fields)

    def test_flipped_bits(self):
        arrays.write_record(self.path, self.content)
        self.assertEqual(self.read(), self.content)
        data = pathlib.Path(self.path).read_bytes()
        for bit in range(0, 8 * len(data), 3):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            pathlib.Path(self.path).write_bytes(flipped)
            try:
                found = self.read()
            except ValueError as error:
                self.assertStartsWith(str(error), f"{self.path!r} is damaged")
            else:  # white space, or the name of the checksum itself
                for name, value in self.content.items():
                    self.assertEqual(found[name], value)

    def test_values(self):
        for content in (
            *([], None, 3, {}, {"n": 3}, {"n": "3", "of": {}}),
            *({"n": True, "of": {}}, {"n": 3, "of": []}, {"n": 3.0, "of": {}}),
        ):
            pathlib.Path(self.path).write_text(json.dumps(content))
            with self.assertRaisesRegex(ValueError, "x.json' is damaged: exp"):
                self.read()
        pathlib.Path(self.path).write_text(json.dumps(self.content))
        self.assertEqual(self.read(), self.content)  # of an earlier version
        os.remove(self.path)
        with self.assertRaises(FileNotFoundError):
            self.read()


if __name__ == "__main__":
    absltest.main()
