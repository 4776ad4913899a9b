"""A local web page: choose a picture, see its neighbours."""

from __future__ import annotations

import asyncio
import importlib.resources
import io
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from PIL import Image

from seed_tf.datasets.decoding import EncodedImage
from seed_tf.io.extras import extra
from seed_tf.io.text import reason
from seed_tf.search.index import ImageSearch

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
MAX_UPLOAD = 32_000_000  # bytes
TIMEOUT = 60  # seconds for a client to send a request's body
_CONNECTIONS = 200
_THUMBNAIL = 256  # pixels
_MOST = 200  # images in an answer
_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Server": "seed_tf",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; "
    "script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Server:
    """The page at a port of 127.0.0.1, see `make_server`.

    Attributes:
        server_port: int.
    """

    def __init__(self, server: Any, listener: socket.socket) -> None:
        self._server, self._listener = server, listener
        self._ended = threading.Event()
        self.server_port = listener.getsockname()[1]

    def serve_forever(self) -> None:
        """Answers requests until `shutdown`, or Ctrl-C in the main thread."""
        try:
            self._server.run([self._listener])
        finally:
            self._ended.set()

    def shutdown(self) -> None:
        """Ends `serve_forever`, which another thread has called."""
        self._server.should_exit = True
        self._ended.wait()

    def server_close(self) -> None:
        """Gives the port back."""
        self._listener.close()


def make_server(
    search: ImageSearch | Callable[[], ImageSearch], port: int = 8000
) -> Server:
    """Returns an HTTP server of the page, on 127.0.0.1 only.

    Besides the page, the server answers with JSON to

    - `GET /api/info`: encoder, number of images, limits;
    - `GET /api/random?count=24`: random images;
    - `GET /api/neighbours/<number>?k=24`: neighbours of an indexed image;
    - `POST /api/search?k=24`: neighbours of the image file in the body;

    and with a JPEG to `GET /thumbnail/<number>`. Requests name files by number
    only. Errors have a status of at least 400, and `{"error": ...}`. uvicorn
    answers what is not HTTP with 400 and a line of text.

    Args:
        search: `ImageSearch`, or a function that returns an `ImageSearch`.
            `make_server` calls the function once the port is reserved.
        port: int; 0 for any free port.

    Returns:
        A server on `server_port`, which answers in `serve_forever()`.

    Raises:
        OSError: if the port cannot be opened.
        ValueError: if Starlette or uvicorn is missing.
    """
    with extra("search", "Pages"):
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise OSError(
                f"Port {port} of {HOST} cannot be opened: {reason(error)}. "
                "Choose another `port`; 0 takes any that is free."
            ) from error
        app = _application(search() if callable(search) else search)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    config = uvicorn.Config(
        _Guard(app),
        http=H11Protocol,
        ws="none",
        lifespan="off",
        headers=list(_HEADERS.items()),
        server_header=False,
        proxy_headers=False,
        log_config=None,
        log_level="warning",
        access_log=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    return Server(uvicorn.Server(config), listener)


class _Guard:
    """Refuses other sites, and reads a request's body before its answer.

    A body that is read to its end cannot be taken for the next request, and a
    client that still sends does not miss the answer.
    """

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect, Request

        answer: Any = self._app
        request = Request(scope, receive)
        try:
            refusal = _foreign(request)
            scope["state"]["body"] = await _body(request)
            if refusal:
                raise HTTPException(403, refusal)
        except HTTPException as error:
            answer = _refused(request, error)
        except ClientDisconnect:
            logging.info("A client hung up: %.99r.", request.url.path)
            return
        await answer(scope, receive, send)


def _foreign(request: Request) -> str:
    """Returns why a request of another site is refused, or an empty str."""
    host = request.headers.get("Host", "")
    # Any name may resolve to this machine.
    if not re.fullmatch(rf"({re.escape(HOST)}|localhost)(:\d+)?", host):
        return "This page is for this machine only."
    if set(request.headers.getlist("Origin")) - {f"http://{host}"}:
        return "This page takes no requests of other sites."
    return ""


async def _body(request: Request) -> bytes:
    """Returns a request's body; HTTPException if too large or too slow."""
    from starlette.exceptions import HTTPException

    close = {"Connection": "close"}
    headers = request.headers
    if "Transfer-Encoding" in headers and "Content-Length" in headers:
        raise HTTPException(400, "A body has one length only.", close)
    length = int(headers.get("Content-Length", 0))
    size, chunks = length, []
    if size <= 8 * MAX_UPLOAD:
        size = 0
        try:
            async with asyncio.timeout(TIMEOUT):
                async for chunk in request.stream():
                    size += len(chunk)
                    chunks.append(chunk if size <= MAX_UPLOAD else b"")
                    if size > 8 * MAX_UPLOAD:
                        break
        except TimeoutError as error:
            raise HTTPException(408, "The body is slow.", close) from error
    if size > MAX_UPLOAD:
        raise HTTPException(
            413,
            f"The picture is too large: {max(size, length) / 1e6:,.1f} "
            f"MB. Expected at most {MAX_UPLOAD / 1e6:,.1f} MB.",
            close,
        )
    return b"".join(chunks)


def _refused(request: Request, error: Exception) -> Response:
    """Returns an answer to what Starlette or this module refuses."""
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    status, message, headers = 500, "The server failed; see its log.", None
    if isinstance(error, HTTPException):
        status, message, headers = (
            error.status_code,
            error.detail,
            error.headers,
        )
    if status == 404 and message == "Not Found":
        message = "There is no such page."
    if status == 405:
        allowed = ", ".join(sorted((headers or {})["Allow"].split(", ")))
        message = f"Expected {allowed}. Received: {request.method[:20]}."
    return JSONResponse({"error": message}, status, headers)


def _application(search: ImageSearch) -> Starlette:
    """Returns the page's routes. Starlette calls each in a thread."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    index = search.index

    def page(request: Request) -> Response:
        name, kind = _PAGE[request.url.path]
        file = importlib.resources.files("seed_tf.search") / "page" / name
        headers = {"Cache-Control": "no-cache"}
        return Response(file.read_bytes(), 200, headers, kind)

    def answer(content: Any) -> Response:
        return JSONResponse(content, headers={"Cache-Control": "no-store"})

    def info(request: Request) -> Response:
        names = ("encoder", "fingerprint", "output", "count", "dim", "search")
        facts = {name: index.config[name] for name in names}
        return answer({**facts, "max_upload": MAX_UPLOAD})

    def random(request: Request) -> Response:
        count = min(_number(request, "count"), len(index))
        rows = np.random.default_rng().choice(len(index), count, False)
        return answer({"images": [image(row) for row in rows]})

    def neighbours(request: Request) -> Response:
        row, k = number(request), _number(request, "k")
        start = time.perf_counter()
        found = index.others(row, k)
        return listed(found, {"search": start}, query=image(row))

    def upload(request: Request) -> Response:
        k = _number(request, "k")
        start = time.perf_counter()
        try:
            embedding = search.embed(request.state.body)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        searching = time.perf_counter()
        (similarities,), (rows,) = index.search(embedding[None], k)
        starts = {"embed": start, "search": searching}
        return listed((similarities, rows), starts)

    def thumbnail(request: Request) -> Response:
        row = number(request)
        tag = f'"{index.keys[row].hex()}"'
        cache = "private, max-age=31536000, immutable"
        headers = {"Cache-Control": cache, "ETag": tag}
        if request.headers.get("If-None-Match") == tag:
            return Response(status_code=304, headers=headers)
        try:
            with open(index.file(row), "rb") as file:
                data = _thumbnail(file.read())
        except Exception as error:  # damaged data cause any kind
            raise HTTPException(
                404, f"{index.paths[row]} is gone or damaged."
            ) from error
        return Response(data, 200, headers, "image/jpeg")

    def number(request: Request) -> int:
        """Returns the number of the image in a request's path."""
        text, count = request.path_params["row"], len(index)
        if not re.fullmatch("[0-9]{1,18}", text):
            raise HTTPException(404)
        if int(text) >= count:
            raise HTTPException(
                404,
                f"There is no image {int(text):,}: the index has {count:,}.",
            )
        return int(text)

    def image(row: int) -> dict[str, Any]:
        # With the version, browsers may cache the address for ever.
        version = index.keys[row].hex()
        return {
            "number": int(row),
            "path": index.paths[row],
            "thumbnail": f"/thumbnail/{row}?{version}",
        }

    def listed(found: Any, starts: dict[str, float], **more: Any) -> Response:
        times = np.diff([*starts.values(), time.perf_counter()])
        rows = [
            {**image(row), "similarity": round(float(value), 6)}
            for value, row in zip(*found, strict=True)
        ]
        milliseconds = dict(zip(starts, 1e3 * times, strict=True))
        return answer(
            {**more, "neighbours": rows, "milliseconds": milliseconds}
        )

    app = Starlette(
        routes=[
            *(Route(path, page) for path in _PAGE),
            Route("/api/info", info),
            Route("/api/random", random),
            Route("/api/neighbours/{row}", neighbours),
            Route("/api/search", upload, methods=["POST"]),
            Route("/thumbnail/{row}", thumbnail),
        ],
        exception_handlers={HTTPException: _refused, Exception: _refused},
    )
    app.router.redirect_slashes = False
    return app


def _number(request: Request, name: str) -> int:
    """Returns an int of the query, in [1, 200], by default 24."""
    from starlette.exceptions import HTTPException

    text = request.query_params.get(name, "24")
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= _MOST:
        raise HTTPException(
            400,
            f"`{name}` must be a number from 1 to {_MOST}. Received: "
            f"{name}={text[:20]}.",
        )
    return int(text)


def _thumbnail(data: bytes) -> bytes:
    """Returns the central square of an image file as a small JPEG."""
    image = EncodedImage(data)
    side = min(image.height, image.width)
    box = (image.height - side) // 2, (image.width - side) // 2, side, side
    ((pixels,),) = image.crops([([box], min(side, _THUMBNAIL))])  # type: ignore[list-item]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()
