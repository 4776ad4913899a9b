"""Tests of the choice between 32 and 16 bits."""

import os
import pathlib
from unittest import mock

import tensorflow as tf
from absl.testing import absltest, parameterized

from seed_tf.acceleration import Hardware, hardware, precision


class Machine:
    """Stands for a machine with a device, or with a CPU of some flags."""

    def __init__(self, device=None, capability=None, flags=""):
        self._patches = [
            mock.patch.object(
                tf.config,
                "list_physical_devices",
                lambda kind: [kind] if kind == device else [],
            ),
            mock.patch.object(
                tf.config.experimental,
                "get_device_details",
                lambda gpu: {"compute_capability": capability},
            ),
            mock.patch.object(
                pathlib.Path,
                "read_text",
                mock.Mock(
                    **(
                        {"side_effect": FileNotFoundError}
                        if flags is None
                        else {"return_value": f"flags : {flags}"}
                    )
                ),
            ),
        ]

    def __enter__(self):
        hardware._bfloat16_is_fast.cache_clear()  # read once otherwise
        for patch in self._patches:
            patch.start()

    def __exit__(self, *_):
        for patch in self._patches:
            patch.stop()
        hardware._bfloat16_is_fast.cache_clear()  # read once otherwise


class PrecisionTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"device": "TPU"}, True),
        ({"device": "GPU", "capability": (8, 0)}, True),
        ({"device": "GPU", "capability": (10, 0)}, True),
        # A slow GPU beside a fast processor computes as the GPU can.
        ({"device": "GPU", "capability": (7, 5), "flags": "amx_bf16"}, False),
        ({"flags": "avx2 avx512_bf16"}, True),
        ({"flags": "avx512f amx_bf16 amx_tile"}, True),
        ({"flags": "avx2 avx512f"}, False),
        ({"flags": None}, False),
    )
    def test_where_bfloat16_is_fast(self, machine, expected):
        with Machine(**machine):
            self.assertEqual(hardware.current().bfloat16, expected)
            self.assertEqual(
                precision.default_teacher_precision(0.01),
                "bfloat16" if expected else "float32",
            )
            self.assertEqual(
                precision.default_teacher_precision(0.009), "float32"
            )

    @parameterized.parameters(
        ("AVX2", False), ("avx512_core", False), ("AVX512_CORE_BF16", True)
    )
    def test_a_limit_of_instructions(self, limit, expected):
        environment = {"ONEDNN_MAX_CPU_ISA": limit}
        with (
            mock.patch.dict(os.environ, environment),
            Machine(flags="avx2 avx512_bf16"),
        ):
            self.assertEqual(hardware.current().bfloat16, expected)

    @parameterized.parameters(
        ({"flags": "amx_bf16"}, "mixed_bfloat16"),
        ({"flags": "avx2"}, "float32"),
        ({"device": "TPU"}, "mixed_bfloat16"),
    )
    def test_of_a_student(self, machine, expected):
        with Machine(**machine):
            self.assertEqual(precision.default_student_policy(), expected)

    @parameterized.parameters(
        ({"flags": "amx_bf16"}, False),
        ({"device": "GPU", "capability": (7, 5)}, True),
        ({"device": "TPU"}, True),
    )
    def test_what_computes(self, machine, expected):
        with Machine(**machine):
            self.assertEqual(hardware.current().accelerated, expected)

    def test_an_assumed_machine(self):
        tpu = Hardware(accelerated=True, bfloat16=True)
        with Machine(flags="avx2"):
            with self.assertRaises(KeyError), hardware.assume(tpu):
                self.assertEqual(hardware.current(), tpu)
                self.assertEqual(
                    precision.default_student_policy(), "mixed_bfloat16"
                )
                raise KeyError
            self.assertEqual(hardware.current(), Hardware())


if __name__ == "__main__":
    absltest.main()
