"""Tables and the HTML page, read back."""

import base64
import html.parser
import io
import os
import subprocess
import sys

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

import seed_tf
from seed_tf.reporting import figures, pages, tables

ROWS = [
    {"encoder": "MoCo v2 <alone>", "k-NN": (78.46, 1.2), "steps": 300},
    {"encoder": "SEED", "k-NN": (92.5, 0.61), "steps": None},
    {"encoder": "pixels", "k-NN": np.float32(98.5)},
]
COLUMNS = ["encoder", "k-NN", "steps"]


class Page(html.parser.HTMLParser):
    """Tags with attributes, and the text of every element."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"unbalanced </{tag}>"

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))


class TableTest(parameterized.TestCase):
    def test_text(self):
        self.assertEqual(
            tables.table(ROWS, COLUMNS),
            "encoder                k-NN  steps\n"
            "---------------  ----------  -----\n"
            "MoCo v2 <alone>  78.5 ± 1.2    300\n"
            "SEED             92.5 ± 0.6      –\n"
            "pixels                 98.5      –",
        )

    def test_names_stay_in_their_cell(self):
        rows = [{"a": "x|y <b>\n\x1b[2J", "n": 1.0}]
        self.assertEqual(
            tables.table(rows, ["a", "n"], "markdown").splitlines()[2],
            r"| x\|y \<b>\n\x1b[2J | 1.0 |",
        )
        self.assertIn(r"x|y <b>\n\x1b[2J", tables.table(rows, ["a"]))

    def test_markdown(self):
        self.assertEqual(
            tables.table(ROWS[1:], COLUMNS[:2], "markdown"),
            "| encoder |       k-NN |\n"
            "| ------- | ---------: |\n"
            "| SEED    | 92.5 ± 0.6 |\n"
            "| pixels  |       98.5 |",
        )

    def test_html(self):
        page = Page(tables.table(ROWS, COLUMNS, "html"))
        self.assertEmpty(page.open)
        self.assertEqual([t for tag, t in page.texts if tag == "th"], COLUMNS)
        cells = [t for tag, t in page.texts if tag == "td"]
        self.assertEqual(cells[:3], ["MoCo v2 <alone>", "78.5 ± 1.2", "300"])
        self.assertEqual(cells[3:6], ["SEED", "92.5 ± 0.6", "–"])

    def test_unknown_format(self):
        with self.assertRaisesRegex(ValueError, "fmt='latex'"):
            tables.table(ROWS, COLUMNS, "latex")


class PageTest(parameterized.TestCase):
    def test_page_is_whole_and_alone(self):
        figure = figures.curves({"SEED": {"loss": [3.0, 2.0]}}, ["loss"])
        path = os.path.join(self.create_tempdir().full_path, "report.html")
        pages.write_page(
            path,
            "A & B",
            [
                (
                    "First",
                    "One.\n\nTwo < 3.",
                    tables.table(ROWS, COLUMNS, "html"),
                ),
                ("Second", "", figure, figure),
            ],
        )
        with open(path, encoding="utf-8") as file:
            source = file.read()
        page = Page(source)
        self.assertEmpty(page.open)
        texts = page.texts
        for expected in (
            ("title", "A & B"),
            ("h1", "A & B"),
            ("h2", "First"),
            ("p", "One."),
            ("p", "Two < 3."),
            ("td", "SEED"),
        ):
            self.assertIn(expected, texts)
        # No request leaves the page.
        links = [
            value
            for _, attributes in page.tags
            for key, value in attributes.items()
            if key in ("src", "href")
        ]
        self.assertLen(links, 2)
        self.assertNotRegex(source, r"https?:|url\(|@import")
        for link in links:
            kind, data = link.split(",")
            self.assertEqual(kind, "data:image/png;base64")
            with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
                self.assertGreater(picture.width, 300)
                self.assertGreater(np.asarray(picture.convert("L")).std(), 5)

    def test_modules_are_light(self):
        """Tables and pages need neither a figure nor a number package."""
        heavy = "numpy", "matplotlib", "sklearn", "keras"
        for module in (tables, pages):
            program = (
                "import runpy, sys\n"
                "sys.modules['seed_tf'] = type(sys)('seed_tf')\n"
                f"sys.modules['seed_tf'].__path__ = {seed_tf.__path__!r}\n"
                f"runpy.run_path({module.__file__!r})\n"
                f"print([x for x in {heavy} if x in sys.modules])"
            )
            output = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True
            )
            self.assertEqual(output.stdout, "[]\n", output.stderr)


if __name__ == "__main__":
    absltest.main()
