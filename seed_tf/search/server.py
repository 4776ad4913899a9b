"""A local web page: choose a picture, see its neighbours."""

from __future__ import annotations

import http.server
import importlib.resources
import io
import json
import re
import socketserver
import time
import urllib.parse
from collections.abc import Callable

import numpy as np
from absl import logging
from PIL import Image

from seed_tf.datasets.decoding import EncodedImage
from seed_tf.search.index import ImageSearch

HOST = "127.0.0.1"
MAX_UPLOAD = 32_000_000  # bytes
_THUMBNAIL = 256  # pixels
_MOST = 200  # images in an answer
_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; "
    "script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_server(
    search: ImageSearch | Callable[[], ImageSearch], port: int = 8000
) -> http.server.ThreadingHTTPServer:
    """Returns an HTTP server of the page, on 127.0.0.1 only.

    Besides the page, the server answers with JSON to

    - `GET /api/info`: encoder, number of images, limits;
    - `GET /api/random?count=24`: random images;
    - `GET /api/neighbours/<number>?k=24`: neighbours of an indexed image;
    - `POST /api/search?k=24`: neighbours of the image file in the body;

    and with a JPEG to `GET /thumbnail/<number>`. Requests name files by number
    only. Errors have a status of at least 400, and `{"error": ...}`.

    Args:
        search: `ImageSearch`, or a function that returns an `ImageSearch`.
            `make_server` calls the function once the port is reserved.
        port: int; 0 for any free port.

    Returns:
        A server on `server_port`, which answers in `serve_forever()`.

    Raises:
        OSError: if the port cannot be opened.
    """
    server = _Server((HOST, port), _Handler, bind_and_activate=False)
    try:
        try:
            server.server_bind()
        except OSError as error:
            raise OSError(
                f"Port {port} of {HOST} cannot be opened: {error.strerror}. "
                "Choose another `port`; 0 takes any that is free."
            ) from error
        server.search = search() if callable(search) else search
        server.server_activate()
    except BaseException:
        server.server_close()
        raise
    return server


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    search: ImageSearch
    request_queue_size = 128

    def server_bind(self):
        # HTTPServer's method asks the network for this host's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]


class _Refused(Exception):  # noqa: N818 - an answer
    """An answer with an error status."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "seed_tf", ""
    timeout = 60  # seconds to wait for a silent client

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def _not_allowed(self):
        self._answer(self._refuse_method)

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _not_allowed  # noqa: N815
    do_TRACE = do_CONNECT = _not_allowed  # noqa: N815

    def _answer(self, method):
        url = urllib.parse.urlsplit(self.path)
        try:
            self._check_host()
            method(url.path, urllib.parse.parse_qs(url.query))
        except _Refused as refused:
            self._send_error(refused.status, str(refused))
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client is gone
        except Exception:
            logging.exception("%s %s failed.", self.command, self.path)
            self._send_error(500, "The server failed; see its log.")

    def _check_host(self):
        """Refuses other host names that resolve to this machine."""
        host = self.headers.get("Host", "").rpartition(":")
        if (host[0] or host[2]) not in (HOST, "localhost"):
            raise _Refused(403, "This page is for this machine only.")

    def _get(self, path, query):
        if path in _PAGE:
            name, kind = _PAGE[path]
            file = importlib.resources.files("seed_tf.search") / "page" / name
            self._send(200, kind, file.read_bytes(), "no-cache")
        elif path == "/api/info":
            self._send_json(self._info())
        elif path == "/api/random":
            index = self.server.search.index
            count = min(_number(query, "count", 24), len(index))
            rows = np.random.default_rng().choice(len(index), count, False)
            self._send_json({"images": [self._image(row) for row in rows]})
        elif match := re.fullmatch(r"/api/neighbours/(\d{1,18})", path):
            row = self._row(match)
            start = time.perf_counter()
            found = self.server.search.index.others(row, _number(query, "k"))
            self._send_neighbours(
                found, {"search": start}, query=self._image(row)
            )
        elif match := re.fullmatch(r"/thumbnail/(\d{1,18})", path):
            self._send_thumbnail(self._row(match))
        elif path == "/api/search":
            self._refuse_method(path, query, allowed="POST")
        else:
            raise _Refused(404, "There is no such page.")

    def _post(self, path, query):
        if path != "/api/search":
            self._refuse_method(path, query, allowed="GET")
        k = _number(query, "k")
        data = self._body()
        start = time.perf_counter()
        try:
            embedding = self.server.search.embed(data)
        except ValueError as error:
            raise _Refused(400, str(error)) from error
        searching = time.perf_counter()
        (similarities,), (rows,) = self.server.search.index.search(
            embedding[None], k
        )
        self._send_neighbours(
            (similarities, rows), {"embed": start, "search": searching}
        )

    def _refuse_method(self, path, query, allowed="GET, POST"):
        self.close_connection = True  # the body is unread
        raise _Refused(405, f"Expected {allowed}. Received: {self.command}.")

    def _body(self):
        self.close_connection = True  # until the whole body is read
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,18}", length):
            raise _Refused(411, "Expected a Content-Length.")
        if int(length) > MAX_UPLOAD:
            # Read on: a client reads no answer before it has sent the body.
            for _ in range(min(int(length), 8 * MAX_UPLOAD) >> 20):
                self.rfile.read(1 << 20)
            raise _Refused(
                413,
                f"The picture is too large: {int(length) / 1e6:,.1f} MB. "
                f"Expected at most {MAX_UPLOAD / 1e6:,.1f} MB.",
            )
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise _Refused(400, "The picture is incomplete.")
        self.close_connection = False
        return data

    def _row(self, match):
        row, count = int(match[1]), len(self.server.search.index)
        if row >= count:
            raise _Refused(
                404, f"There is no image {row:,}: the index has {count:,}."
            )
        return row

    def _info(self):
        index = self.server.search.index
        names = ("encoder", "fingerprint", "output", "count", "dim", "search")
        return {
            **{name: index.config[name] for name in names},
            "max_upload": MAX_UPLOAD,
        }

    def _image(self, row):
        index = self.server.search.index
        # With the version, browsers may cache the address for ever.
        version = index.keys[row].hex()
        return {
            "number": int(row),
            "path": index.paths[row],
            "thumbnail": f"/thumbnail/{row}?{version}",
        }

    def _send_neighbours(self, found, starts, **more):
        times = [*starts.values(), time.perf_counter()]
        milliseconds = dict(zip(starts, 1e3 * np.diff(times), strict=True))
        similarities, rows = found
        self._send_json(
            {
                **more,
                "neighbours": [
                    {**self._image(row), "similarity": round(float(value), 6)}
                    for value, row in zip(similarities, rows, strict=True)
                ],
                "milliseconds": milliseconds,
            }
        )

    def _send_thumbnail(self, row):
        index = self.server.search.index
        tag = f'"{index.keys[row].hex()}"'
        cache = "private, max-age=31536000, immutable"
        if self.headers.get("If-None-Match") == tag:
            self._send(304, None, b"", cache, ETag=tag)
            return
        try:
            with open(index.file(row), "rb") as f:
                thumbnail = _thumbnail(f.read())
        except Exception as error:
            raise _Refused(
                404, f"{index.paths[row]} is gone or damaged."
            ) from error
        self._send(200, "image/jpeg", thumbnail, cache, ETag=tag)

    def _send_json(self, content, status=200, **headers):
        data = json.dumps(content).encode()
        self._send(status, "application/json", data, "no-store", **headers)

    def _send_error(self, status, message):
        headers = {"Connection": "close"} if self.close_connection else {}
        if status == 405:
            headers["Allow"] = "GET, POST"
        self._send_json({"error": message}, status, **headers)

    def send_error(self, code, message=None, explain=None):
        """Answers in JSON to requests that http.server refuses."""
        self.close_connection = True
        self.request_version = self.protocol_version  # may be missing
        self._send_error(int(code), message or "Not an HTTP request.")

    def _send(self, status, kind, data, cache, **headers):
        self.send_response(status)
        if kind:
            headers["Content-Type"] = kind
        headers |= {"Cache-Control": cache, **_HEADERS}
        if status != 304:
            headers["Content-Length"] = str(len(data))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, message, *args):
        logging.debug(message, *args)


def _number(query, name, default=24):
    """Returns an int of the query, in [1, 200]."""
    text = query.get(name, [str(default)])[-1]
    if not re.fullmatch(r"\d{1,9}", text) or not 1 <= int(text) <= _MOST:
        raise _Refused(
            400,
            f"`{name}` must be a number from 1 to {_MOST}. Received: "
            f"{name}={text[:20]}.",
        )
    return int(text)


def _thumbnail(data):
    """Returns the central square of an image file as a small JPEG."""
    image = EncodedImage(data)
    side = min(image.height, image.width)
    box = (image.height - side) // 2, (image.width - side) // 2, side, side
    ((pixels,),) = image.crops([([box], min(side, _THUMBNAIL))])  # type: ignore[list-item]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()
