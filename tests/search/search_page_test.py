"""The page of the search, driven in a real browser without a window."""

import base64
import io
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import threading
import time
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest
from helpers.runs import (
    pictures,
    tiny_teacher,
)
from PIL import Image

from seed_tf import search

BROWSER = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)


class Browser:
    """Chromium without a window, told what to do by its DevTools protocol.

    Messages are JSON, each ended by a NUL, on the browser's descriptors 3
    and 4.
    """

    def __init__(self, profile):
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def descriptors():
            # Out of the way of each other first.
            read, write = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [
                BROWSER,
                "--headless=new",
                "--remote-debugging-pipe",
                "--no-sandbox",  # it may run as root
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stderr=subprocess.DEVNULL,
            preexec_fn=descriptors,
            pass_fds=(3, 4),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._rest = itertools.count(1), b""
        self._session, self.events = None, []
        (page,) = [
            target
            for target in self.call("Target.getTargets")["targetInfos"]
            if target["type"] == "page"
        ]
        self._session = self.call(
            "Target.attachToTarget", targetId=page["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], 60)[0]:
                raise AssertionError("The browser does not answer.")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise AssertionError("The browser is gone.")
            self._rest += data
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def run(self, script):
        """The value of a JavaScript expression, of its promise if it is one."""
        result = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in result:
            raise AssertionError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait(self, script):
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + 30
        while not self.run(script):
            if time.monotonic() > end:
                raise AssertionError(f"Never: {script}")
            time.sleep(0.05)

    def problems(self):
        """What the console shows in red, since this was asked last."""
        self.run("0")
        events, self.events = self.events, []
        found = []
        for event in events:
            method, details = event.get("method"), event.get("params")
            if method == "Runtime.exceptionThrown":
                found.append(details["exceptionDetails"]["text"])
            if method == "Log.entryAdded" and details["entry"]["level"] == (
                "error"
            ):
                found.append(details["entry"]["text"])
            if method == "Runtime.consoleAPICalled":
                found.append(str(details["args"]))
            if method == "Network.requestWillBeSent":
                url = details["request"]["url"]
                if not url.startswith(("http://127.0.0.1:", "blob:")):
                    found.append(f"asked for {url}")
        return found

    def screenshot(self):
        data = self.call("Page.captureScreenshot")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data)))

    def close(self):
        self.call("Browser.close")
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)


def text(name):
    return f"document.getElementById('{name}').textContent"


SHOWN = "[...document.querySelectorAll('#grid a')].map(a => +a.dataset.number)"
SETTLED = (
    "document.getElementById('grid').ariaBusy == 'false'"
    " && document.querySelectorAll('#grid a').length == 24"
    " && [...document.images].slice(0, 6).every(i => i.naturalWidth || !i.src)"
)


@absltest.skipUnless(BROWSER, "no Chromium on the PATH")
@pytest.mark.slow
class SearchPageTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = pathlib.Path(self.create_tempdir().full_path)
        photos = pictures(str(folder / "photos"), 40, size=48)
        encoder = tiny_teacher(str(folder / "teacher.keras"))
        self.index = search.build(
            str(folder / "index"),
            photos,
            encoder,
            image_size=32,
            log=lambda line: None,
        )
        self.search = search.ImageSearch(self.index)
        server = search.make_server(self.search, port=0)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.url = f"http://127.0.0.1:{server.server_port}/"
        self.browser = Browser(str(folder / "profile"))
        self.addCleanup(self.browser.close)
        self.folder = folder

    def expect(self, embedding, without=None):
        """The page shows NumPy's order of neighbours of an embedding."""
        order = np.argsort(-(self.index.embeddings @ embedding), kind="stable")
        order = [int(row) for row in order if row != without][:24]
        self.browser.wait(f"{SETTLED} && {SHOWN}[0] == {order[0]}")
        self.assertEqual(self.browser.run(SHOWN), order)

    def click(self, selector):
        """A click of the mouse in the middle of an element."""
        x, y = self.browser.run(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })"
            f"(document.querySelector({selector!r}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.browser.call(
                "Input.dispatchMouseEvent",
                **{"type": kind, "x": x, "y": y},
                **{"button": "left", "clickCount": 1},
            )

    def key(self, name, code):
        for kind in ("rawKeyDown", "char", "keyUp"):
            self.browser.call(
                "Input.dispatchKeyEvent",
                **{"type": kind, "key": name, "code": name},
                windowsVirtualKeyCode=code,
                text="\r" if name == "Enter" else "",
            )

    def choose(self, file):
        root = self.browser.call("DOM.getDocument")["root"]["nodeId"]
        node = self.browser.call(
            "DOM.querySelector", nodeId=root, selector="#file"
        )["nodeId"]
        self.browser.call("DOM.setFileInputFiles", files=[file], nodeId=node)

    def test_pick_upload_paste_and_fail(self):
        browser, vectors = self.browser, self.index.embeddings
        browser.call("Page.navigate", url=self.url)
        browser.wait(f"document.readyState == 'complete' && {SETTLED}")
        shown = browser.run(SHOWN)
        self.assertLen(set(shown), 24)
        info = browser.run(text("info"))
        self.assertRegex(info, "^40 images · .*teacher.keras .*6 wide.* exact")

        with self.subTest("pick a picture"):
            picked = shown[5]
            self.click(f'a[data-number="{picked}"]')
            self.expect(vectors[picked], without=picked)
            self.assertEqual(browser.run("location.search"), f"?image={picked}")
            self.assertRegex(
                browser.run(text("times")),
                r"^search \d+\.\d ms$",
            )
            values = browser.run(
                "[...document.querySelectorAll('.similarity')]"
                ".map(e => +e.textContent)"
            )
            wanted = vectors[browser.run(SHOWN)] @ vectors[picked]
            np.testing.assert_allclose(values, wanted, atol=6e-4)

        with self.subTest("the address leads back here"):
            browser.call("Page.reload")
            browser.wait("document.readyState == 'complete'")
            self.expect(vectors[picked], without=picked)

        with self.subTest("by keyboard"):
            second = browser.run(SHOWN)[0]
            browser.run("document.getElementById('shuffle').focus()")
            self.key("Tab", 9)
            self.key("Enter", 13)
            self.expect(vectors[second], without=second)

        with self.subTest("back"):
            browser.run("history.back()")
            self.expect(vectors[picked], without=picked)

        picture = self.folder / "new.png"
        pixels = np.random.default_rng(9).integers(0, 256, (3, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((70, 50)).save(picture)
        embedding = self.search.embed(picture.read_bytes())
        with self.subTest("upload"):
            self.choose(str(picture))
            self.expect(embedding)
            self.assertEqual(
                browser.run("document.getElementById('query-image').src")[:5],
                "blob:",
            )
            name = browser.run(
                "document.getElementById('query-name').innerText"
            )
            self.assertEqual(name, "new.png")
            self.assertEqual(browser.run("location.search"), "")
            self.assertRegex(
                browser.run(text("times")),
                r"^embed \d+\.\d ms · search \d+\.\d ms$",
            )

        data = base64.b64encode((self.folder / "photos/7.jpg").read_bytes())
        carry = (
            f"const bytes = Uint8Array.from(atob('{data.decode()}'),"
            " c => c.charCodeAt(0)); const data = new DataTransfer();"
            " data.items.add(new File([bytes], 'a.jpg'));"
        )
        number = next(i for i in range(40) if self.index.paths[i] == "7.jpg")
        with self.subTest("paste"):
            browser.run(
                f"{{ {carry} document.dispatchEvent(new ClipboardEvent("
                "'paste', {clipboardData: data, bubbles: true})); }"
            )
            self.expect(vectors[number])
        with self.subTest("drop"):
            self.click("#shuffle")
            browser.wait(
                f"document.getElementById('query').hidden && {SETTLED}"
            )
            browser.run(
                f"{{ {carry} document.body.dispatchEvent(new DragEvent("
                "'drop', {dataTransfer: data, bubbles: true})); }"
            )
            self.expect(vectors[number])

        with self.subTest("an answer that comes late is left"):
            shown = browser.run(SHOWN)
            late, answered = threading.Event(), threading.Event()

            def slow(row, k, others=self.index.others):
                late.wait(30)
                answered.set()
                return others(row, k)

            with mock.patch.object(self.index, "others", slow):
                self.click(f'a[data-number="{shown[1]}"]')
                self.choose(str(picture))
                self.expect(embedding)
                late.set()
                answered.wait(30)
            time.sleep(0.3)
            self.expect(embedding)

        with self.subTest("what is too large is not sent"):
            browser.run(
                "upload(new File([new ArrayBuffer(32000001 + 1e5)], 'a.jpg'))"
            )
            self.assertEqual(
                browser.run(text("error")),
                "The picture is too large: 32.1 MB. Expected at most 32.0 MB.",
            )
            self.assertFalse(
                browser.run("document.getElementById('error').hidden")
            )

        with self.subTest("every picture is described"):
            self.assertTrue(
                browser.run("[...document.images].every(i => i.alt)")
            )
        self.assertEqual(browser.problems(), [])

        with self.subTest("what is no picture"):
            words = self.folder / "words.jpg"
            words.write_text("<script>These are words.</script>")
            self.choose(str(words))
            browser.wait("!document.getElementById('error').hidden")
            self.assertRegex(
                browser.run(text("error")),
                "^Not a readable image: not a JPEG",
            )
            self.expect(embedding)  # what was there stays
            (problem,) = browser.problems()  # the browser tells of the status
            self.assertIn("400", problem)
            self.choose(str(picture))
            self.expect(embedding)
            self.assertTrue(
                browser.run("document.getElementById('error').hidden")
            )

    def test_looks(self):
        browser = self.browser
        for theme in ("light", "dark"):
            browser.call(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": theme}],
            )
            for width in (320, 1280):
                with self.subTest(theme=theme, width=width):
                    browser.call(
                        "Emulation.setDeviceMetricsOverride",
                        **{"width": width, "height": 800, "mobile": False},
                        deviceScaleFactor=1,
                    )
                    browser.call("Page.navigate", url=f"{self.url}?image=3")
                    browser.wait(
                        f"document.readyState == 'complete' && {SETTLED}"
                    )
                    self.assertLessEqual(
                        browser.run("document.documentElement.scrollWidth"),
                        width,
                    )
                    image = browser.screenshot().convert("L")
                    corner = image.getpixel((1, 1))
                    self.assertEqual(corner > 128, theme == "light")
                    self.assertGreater(np.asarray(image).std(), 10)
        self.assertEqual(browser.problems(), [])


if __name__ == "__main__":
    absltest.main()
