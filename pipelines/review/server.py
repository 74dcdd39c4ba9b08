"""Serves the local page on which a person looks through a pool and marks images as real or synthetic.

in      a scored pool (`pipelines.review.gallery`)
out     run/marks.jsonl, one line for each mark, on the disk before the page shows it (`pipelines.run.marks`)
again   the page starts with the existing marks

The server listens on the loopback interface only. It requires a token that only this process and its terminal know: in
the address of the first request, and as a cookie from then on. It refuses Host headers other than the loopback's, so
that a site whose name was redirected here cannot read the crawl, and every request that changes something must come
from the page itself. The page loads nothing from elsewhere and shows names from a crawl as text.
"""

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any, Literal

import uvicorn
from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.errors import BadInput, CurateError
from pipelines.images.check import foreign_images
from pipelines.images.formats import sniff
from pipelines.images.thumbnails import Format, Thumbnail, encode
from pipelines.pages import render
from pipelines.progress import OnTick, ignore
from pipelines.review.config import ReviewConfig, Summary
from pipelines.review.filters import Filter
from pipelines.review.gallery import MAX_NEIGHBORHOODS, MOST_AT_ONCE, Gallery
from pipelines.review.region import SIDE
from pipelines.run import marks, quality
from pipelines.run.marks import Judgment
from pipelines.run.scores import ScoredPool

HOST = "127.0.0.1"
NAMES = {"127.0.0.1", "localhost"}  # accepted in the Host header, with any port, as it may be a tunnel's
THUMBNAIL = Format(side=256, codec="WEBP", quality=90, decoded_side=256)
LARGE = Format(side=2048, codec="WEBP", quality=90, decoded_side=2048)  # for images that browsers cannot show
MAX_THUMBNAIL_BYTES = 64 * 1024  # smaller files that browsers can show are sent as their own thumbnail
MAX_IMAGE_BYTES = 1 << 30
MAX_ROWS = 500  # of one request
MAX_MARKS = 10_000  # keys of one request
MAX_SPACE = 8_000_000  # pixels: browsers draw no element that is higher than 17 million
MAX_BODY = 1 << 20  # bytes of a request

_STATIC = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}  # what the folder of that name holds
_SHOWABLE = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "gif": "image/gif", "avif": "image/avif"}
_FOREVER = "private, max-age=31536000, immutable"  # the address contains the image's hash
_HEADERS = [
    (b"content-security-policy",
     b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
     b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]  # fmt: skip


class _Marking(Judgment):
    """A request of the page to mark one image or many."""

    keys: tuple[str, ...] = Field(min_length=1, max_length=MAX_MARKS)


class _MarkingAll(Judgment):
    """A request of the page to mark all images that pass a filter."""

    wanted: Filter
    count: int = Field(ge=1)  # of the images that the page says there are


def run(config: ReviewConfig, on_ready: Callable[[str], None], on_tick: OnTick = ignore) -> Summary:
    """Serve the page until Ctrl-C.

    `on_tick` reports the preparation, then `on_ready` gets the page's address with the token. Raises MissingArtifact if
    the pool has no scores, BadInput if the port is taken.
    """
    was_cut = marks.read(config.run).cut
    with _listen(config.port) as listener:
        gallery = Gallery(ScoredPool.open(config.pool, config.run), on_tick)
        if config.order == "labels" and not gallery.classes:
            raise BadInput(
                f"--order labels: {config.run} was trained on images without classes, so there is nothing to label. "
                "Leave out --order."
            )
        token, port = secrets.token_urlsafe(32), listener.getsockname()[1]
        settings = uvicorn.Config(
            app(gallery, token, port, config.order), log_level="warning", access_log=False, lifespan="off"
        )
        on_ready(f"http://{HOST}:{port}/?token={token}")
        with foreign_images(), suppress(KeyboardInterrupt):  # the normal way to stop; every mark is on the disk
            uvicorn.Server(settings).run(sockets=[listener])
    return Summary(marks=str(marks.path(config.run)), images=gallery.counts(), was_cut=was_cut)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise BadInput(
            f"--port {port} cannot be used ({error.strerror}). Choose another port, or 0 for any free one."
        ) from None
    return listener


def app(gallery: Gallery, token: str, port: int, order: Literal["suggested", "labels"] = "suggested") -> Starlette:
    """Build the server of a gallery; `port` is part of the cookie's name, as servers of a machine share cookies."""
    pages = _Pages(gallery, order)
    routes = [
        Route("/", pages.page),
        Route("/static/{name}", pages.static),
        Route("/api/view", pages.view),
        Route("/api/histogram", pages.histogram),
        Route("/api/rows", pages.rows),
        Route("/api/map", pages.map),
        Route("/api/image/{key}", pages.detail),
        Route("/thumbnail/{key}", pages.thumbnail),
        Route("/image/{key}", pages.image),
        Route("/api/marks", pages.mark, methods=["POST"]),
        Route("/api/marks/all", pages.mark_all, methods=["POST"]),
        Route("/api/undo", pages.undo, methods=["POST"]),
    ]
    guard = Middleware(_Guard, token=token, cookie=f"curate_review_{port}")
    return Starlette(
        routes=routes, middleware=[guard], exception_handlers={CurateError: _refused, ValidationError: _malformed}
    )


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)


async def _malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "request"
    return JSONResponse({"error": f"{name}: {first['msg']}."}, status_code=400)


class _Guard:
    """Lets a request pass if it has the token and comes from this machine's own page; adds headers to every answer."""

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or pass it on."""
        if scope["type"] != "http":
            return  # no other protocol is supported

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                named = {name.lower() for name, _ in headers}
                headers += [header for header in _HEADERS if header[0] not in named]
                if b"cache-control" not in named:
                    headers.append((b"cache-control", b"no-store"))
                message["headers"] = headers
            await send(message)

        answer = self._check(Request(scope)) or self._app
        await answer(scope, receive, hardened)

    def _check(self, request: Request) -> Response | None:
        """The answer to a request that is refused or redirected; None if it may pass."""
        host = request.headers.get("host", "")
        if host.rpartition(":")[0] not in NAMES and host not in NAMES:
            return PlainTextResponse("This page is only served to the machine that it runs on.", 421)
        if request.method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("This method is not supported.", 405)
        given = request.query_params.get("token")
        if given is not None and request.url.path == "/" and self._is_token(given):
            answer = RedirectResponse("/", 303)  # removes the token from the address
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return answer
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return PlainTextResponse(
                "Open the address that `curate review` printed: it contains the token for this page.", 403
            )
        if request.method == "POST":
            if request.headers.get("origin") not in (f"http://{host}", f"https://{host}"):
                return PlainTextResponse("Only the page itself may change anything.", 403)
            if request.headers.get("content-type") != "application/json":
                return PlainTextResponse("The request must be JSON.", 415)
            if not 0 <= int(request.headers.get("content-length", "-1")) <= MAX_BODY:
                return PlainTextResponse("The request is too large.", 413)
        return None

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


class _Pages:
    """The answers to requests that pass the guard."""

    def __init__(self, gallery: Gallery, order: Literal["suggested", "labels"]) -> None:
        self._gallery, self._order = gallery, order
        self._thumbnail = lru_cache(maxsize=2000)(self._encoded)  # about 20 MB

    def page(self, request: Request) -> Response:
        gallery = self._gallery
        values = {
            "pool": str(gallery.scored.pool.root),
            "run": str(gallery.scored.run),
            "classes": gallery.classes,
            "order": self._order,
            "total": len(gallery),
            "thresholds": gallery.thresholds,
            "quality": quality.load(gallery.scored.folder),
            "map_side": SIDE,
            "max_space": MAX_SPACE,
            "max_marks": MAX_MARKS,
            "most_at_once": MOST_AT_ONCE,
            "has_detector": gallery.has_detector,
            "has_neighborhood": gallery.neighborhood is not None,
            "neighbors_are_layout": gallery.scored.neighbors_are_layout,
            "unscored": len(gallery.scored.unscored),
            "max_neighborhoods": MAX_NEIGHBORHOODS,
        }
        return HTMLResponse(render("review.html.j2", values))

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        found = {file.name: file for file in files("pipelines.review").joinpath("static").iterdir()}.get(name)
        media_type = _STATIC.get(PurePath(name).suffix)
        if found is None or media_type is None:
            raise HTTPException(404)
        return Response(found.read_bytes(), media_type=media_type)

    def view(self, request: Request) -> Response:
        """All rows of a view at once, as little-endian int32: a million rows are 4 MB."""
        self._gallery.refresh()
        rows = self._gallery.view(_filter(request))
        return Response(rows.astype("<i4").tobytes(), media_type="application/octet-stream")

    def histogram(self, request: Request) -> Response:
        counts = self._gallery.histogram(_filter(request))
        return JSONResponse({"bins": counts, **self._state()})

    def map(self, request: Request) -> Response:
        """Where each row lies, little-endian uint16 x and y, and then each row's verdict, int8."""
        gallery = self._gallery
        content = gallery.map.dots_N2.astype("<u2").tobytes() + gallery.verdicts.tobytes()
        headers = {"x-share-of-variance": f"{gallery.map.share:.3f}"}
        return Response(content, media_type="application/octet-stream", headers=headers)

    def rows(self, request: Request) -> Response:
        try:
            rows = [int(row) for row in request.query_params["rows"].split(",")]
        except (KeyError, ValueError):
            raise BadInput("rows must be numbers separated by commas.") from None
        if len(rows) > MAX_ROWS or not all(0 <= row < len(self._gallery) for row in rows):
            raise BadInput(
                f"rows must be at most {MAX_ROWS} numbers from 0 to {len(self._gallery) - 1}. Reload the page."
            )
        return JSONResponse([self._gallery.describe(row) for row in rows])

    def detail(self, request: Request) -> Response:
        return JSONResponse(self._gallery.detail(self._row(request), 12))

    def thumbnail(self, request: Request) -> Response:
        return self._picture(request, THUMBNAIL, MAX_THUMBNAIL_BYTES)

    def image(self, request: Request) -> Response:
        return self._picture(request, LARGE, MAX_IMAGE_BYTES)

    async def mark(self, request: Request) -> Response:
        asked = _Marking.model_validate_json(await request.body())
        rows = await run_in_threadpool(self._gallery.mark, asked.keys, asked)
        return self._changed(rows)

    async def mark_all(self, request: Request) -> Response:
        asked = _MarkingAll.model_validate_json(await request.body())
        number = await run_in_threadpool(self._gallery.mark_all, asked.wanted, asked.count, asked)
        return JSONResponse({"rows": [], "number": number, **self._state()})

    async def undo(self, request: Request) -> Response:
        return self._changed(await run_in_threadpool(self._gallery.undo))

    def _changed(self, rows: list[int]) -> Response:
        """What has changed; where it is more than a page shows, it gets none of the rows and loads its view again."""
        described = [self._gallery.describe(row) for row in rows] if len(rows) <= MAX_ROWS else []
        return JSONResponse({"rows": described, "number": len(rows), **self._state()})

    def _state(self) -> dict[str, Any]:
        marked, suggested = self._gallery.progress(self._order)
        return {
            "counts": self._gallery.counts(),
            "can_undo": self._gallery.can_undo,
            "progress": {"marked": marked, "of": suggested},
        }

    def _row(self, request: Request) -> int:
        try:
            return self._gallery.row(request.path_params["key"])
        except BadInput:
            raise HTTPException(404) from None

    def _picture(self, request: Request, format_: Format, max_bytes: int) -> Response:
        """The image file itself if browsers can show it and it is not too large, else a new encoding of its pixels."""
        row = self._row(request)
        headers = {"cache-control": _FOREVER, "etag": f'"{self._gallery.sha256(row)}-{format_.side}"'}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        content = self._gallery.content(row)
        media_type = _SHOWABLE.get(sniff(content) or "")
        if media_type is None or len(content) > max_bytes:
            encoded = self._thumbnail(row) if format_ is THUMBNAIL else encode(content, format_)
            media_type, content = encoded.media_type, encoded.content
        return Response(content, media_type=media_type, headers=headers)

    def _encoded(self, row: int) -> Thumbnail:
        return encode(self._gallery.content(row), THUMBNAIL)


def _filter(request: Request) -> Filter:
    return Filter.model_validate({name: value for name, value in request.query_params.items() if value != ""})
