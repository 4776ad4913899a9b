"""Text of others is shown whole, in few lines, and moves no terminal."""

from absl.testing import absltest, parameterized

from seed_tf.io import text

TENSORFLOW = type("InvalidArgumentError", (Exception,), {})
TENSORFLOW.__module__ = "tensorflow.python.framework.errors_impl"
STEP = "{{function_node __wrapped__IteratorGetNext_device_/device:CPU:0}} "
NODE = (
    " \n\t [[{{function_node c}}{{node c/Assert}}]] [Op:IteratorGetNext] name: "
)


class TextTest(parameterized.TestCase):
    @parameterized.parameters(
        ("photo.jpg é 鳥", "photo.jpg é 鳥"),
        ("a\x1b[2J\r\n\tb", r"a\x1b[2J\r\n\tb"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\udcff.png", r"\udcff.png"),
    )
    def test_visible(self, name, expected):
        self.assertEqual(text.visible(name), expected)

    @parameterized.parameters(
        (ValueError("No room.\nAt all."), "No room"),
        (OSError(28, "No space left", "a/b"), "No space left"),
        (KeyError(), "KeyError"),
    )
    def test_reason_stands_in_a_sentence(self, error, expected):
        self.assertEqual(text.reason(error), expected)

    @parameterized.parameters(
        (ValueError("No such view."), "No such view."),
        (ValueError(), "ValueError"),
        (
            ValueError(
                "in user code:\n\n    File 'x.py', line 5, in f  *\n"
                "        raise ValueError(y)\n\n    ValueError: No batch.\n"
            ),
            "No batch.",
        ),
        (
            ValueError(
                "Exception encountered when calling MoCo.call().\n\n"
                "\x1b[1mNo batch.\x1b[0m\n\nArguments received by MoCo.call():"
                "\n  • x=tf.Tensor(shape=(1,))"
            ),
            "No batch.",
        ),
        (
            TENSORFLOW(
                f"{STEP}assertion failed: [2 of 4: it\\'s [1].jpg]{NODE}"
            ),
            "2 of 4: it's [1].jpg",
        ),
        (
            TENSORFLOW(f"{STEP}OOM when allocating{NODE}"),
            "InvalidArgumentError: OOM when allocating",
        ),
    )
    def test_frames_of_others_are_left_out(self, error, expected):
        self.assertEqual(text.plain(error), expected)

    def test_a_message_has_few_lines(self):
        for message in ("key" * 100_000, "key\n" * 100_000, "\x1b" * 10_000):
            printed = text.printable(message)
            self.assertLess(len(printed), 3000)
            self.assertLess(printed.count("\n"), 10)
            self.assertNotIn("\x1b", printed)
        self.assertEqual(text.printable("two\n  lines"), "two\n  lines")
        self.assertEqual(text.reason(OSError(28, "Full", "x")), "Full")
        self.assertEqual(text.reason(ValueError("\n one \n two")), "one")
        self.assertEqual(text.reason(ValueError()), "ValueError")


if __name__ == "__main__":
    absltest.main()
