"""Review: a local page on which a person looks through the pool and says what is real and what is synthetic.

in      a scored pool (`pipelines.review.gallery`)
out     run/marks.jsonl, a line a mark, on the disk before the page shows it (`pipelines.run.marks`)
again   the marks are there

The server answers on the loopback interface alone. It wants a token that only this process and its terminal know: once
in the address, from then on as a cookie. A Host header other than the loopback's is refused, so that no site whose name
is pointed here can read the crawl, and a request that changes something must come from the page itself. The page loads
nothing from elsewhere, and shows whatever a crawl wrote into names as text.
"""

import io
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from typing import Any

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageOps
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
from pipelines.progress import OnTick, ignore
from pipelines.review.config import ReviewConfig, Summary
from pipelines.review.gallery import MAX_NEIGHBORHOODS, NEIGHBORS, Filter, Gallery
from pipelines.run import marks
from pipelines.run.marks import Judgment
from pipelines.run.scores import ScoredPool

HOST = "127.0.0.1"
NAMES = {"127.0.0.1", "localhost"}  # of this machine, as a Host header; the port may be a tunnel's
THUMBNAIL = 256  # pixels of the longer side
SHOWN = 2048  # the same, of an image that browsers cannot show as it is
AS_IT_IS = 64 * 1024  # bytes up to which a file is its own thumbnail
MAX_ROWS = 500  # of one request
MAX_MARKS = 10_000
MAX_BODY = 1 << 20

_STATIC = {"review.css": "text/css", "review.js": "text/javascript", "review.svg": "image/svg+xml"}
_SHOWABLE = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "gif": "image/gif", "avif": "image/avif"}
_FOREVER = "private, max-age=31536000, immutable"  # an address holds the image's hash
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
    """What the page asks to put on record, of one image or of many."""

    keys: tuple[str, ...] = Field(min_length=1, max_length=MAX_MARKS)


def run(config: ReviewConfig, on_ready: Callable[[str], None], on_tick: OnTick = ignore) -> Summary:
    """Serve the page until Ctrl-C; `on_ready` gets its address, token and all, `on_tick` what comes before.

    Raises MissingArtifact where the pool has no scores, BadInput for a port that is taken.
    """
    was_cut = marks.read(config.run).cut
    with _listen(config.port) as listener:
        gallery = Gallery(ScoredPool.open(config.pool, config.run), on_tick)
        token, port = secrets.token_urlsafe(32), listener.getsockname()[1]
        settings = uvicorn.Config(app(gallery, token, port), log_level="warning", access_log=False, lifespan="off")
        on_ready(f"http://{HOST}:{port}/?token={token}")
        with foreign_images(), suppress(KeyboardInterrupt):  # how a person leaves; every mark is on the disk
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
            f"--port {port}: cannot be used ({error.strerror}); name another, or 0 for any free one."
        ) from None
    return listener


def app(gallery: Gallery, token: str, port: int) -> Starlette:
    """Build the server of a gallery; `port` names its cookie, which a machine's servers share otherwise."""
    pages = _Pages(gallery)
    routes = [
        Route("/", pages.page),
        Route("/static/{name}", pages.static),
        Route("/api/view", pages.view),
        Route("/api/histogram", pages.histogram),
        Route("/api/rows", pages.rows),
        Route("/api/image/{key}", pages.detail),
        Route("/thumbnail/{key}", pages.thumbnail),
        Route("/image/{key}", pages.image),
        Route("/api/marks", pages.mark, methods=["POST"]),
        Route("/api/undo", pages.undo, methods=["POST"]),
    ]
    guard = Middleware(_Guard, token=token, cookie=f"curate_review_{port}")
    return Starlette(routes=routes, middleware=[guard], exception_handlers={CurateError: _refused})


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)


class _Guard:
    """Lets requests through that bear the token and come from this machine's own page, and hardens every answer."""

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or pass it on."""
        if scope["type"] != "http":
            return  # nothing else is spoken here

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
        """The answer to a request that goes no further."""
        host = request.headers.get("host", "")
        if host.rpartition(":")[0] not in NAMES and host not in NAMES:
            return PlainTextResponse("This page is served to the machine it runs on alone.", 421)
        if request.method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("No such method.", 405)
        given = request.query_params.get("token")
        if given is not None and request.url.path == "/" and self._is_token(given):
            answer = RedirectResponse("/", 303)  # so that the token is not in the address any more
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return answer
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return PlainTextResponse(
                "Open the address that `curate review` printed: it holds the key to this page.", 403
            )
        if request.method == "POST":
            if request.headers.get("origin") not in (f"http://{host}", f"https://{host}"):
                return PlainTextResponse("Only the page itself may change something.", 403)
            if request.headers.get("content-type") != "application/json":
                return PlainTextResponse("Only JSON is taken.", 415)
            if not 0 <= int(request.headers.get("content-length", "-1")) <= MAX_BODY:
                return PlainTextResponse("Too much at once.", 413)
        return None

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


class _Pages:
    """What the server answers."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        environment = Environment(
            loader=PackageLoader("pipelines"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._template = environment.get_template("review.html.j2")
        self._thumbnail = lru_cache(maxsize=2000)(self._shrunk)  # some 20 MB

    def page(self, request: Request) -> Response:
        gallery = self._gallery
        return HTMLResponse(
            self._template.render(
                pool=str(gallery.scored.pool.root),
                run=str(gallery.scored.run),
                classes=gallery.classes,
                total=len(gallery),
                threshold=gallery.threshold,
                has_detector=gallery.has_detector,
                has_neighborhood=gallery.neighborhood is not None,
                unscored=len(gallery.scored.unscored),
                max_neighborhoods=MAX_NEIGHBORHOODS,
                neighbors=NEIGHBORS,
            )
        )

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            raise HTTPException(404)
        return Response(files("pipelines.review").joinpath("static", name).read_bytes(), media_type=_STATIC[name])

    def view(self, request: Request) -> Response:
        """Rows of a view as little-endian int32: even a million are few megabytes, and the page asks for no page."""
        self._gallery.refresh()
        rows = self._gallery.view(_filter(request))
        return Response(rows.astype("<i4").tobytes(), media_type="application/octet-stream")

    def histogram(self, request: Request) -> Response:
        counts = self._gallery.histogram(_filter(request))
        return JSONResponse({"bins": counts, **self._state()})

    def rows(self, request: Request) -> Response:
        try:
            rows = [int(row) for row in request.query_params["rows"].split(",")]
        except (KeyError, ValueError):
            raise BadInput("rows: must be numbers with commas between them.") from None
        if len(rows) > MAX_ROWS or not all(0 <= row < len(self._gallery) for row in rows):
            raise BadInput(f"rows: must be at most {MAX_ROWS} of 0 to {len(self._gallery) - 1}; load the page again.")
        return JSONResponse([self._gallery.describe(row) for row in rows])

    def detail(self, request: Request) -> Response:
        return JSONResponse(self._gallery.detail(self._row(request), 12))

    def thumbnail(self, request: Request) -> Response:
        row = self._row(request)
        return self._picture(request, row, THUMBNAIL, AS_IT_IS)

    def image(self, request: Request) -> Response:
        row = self._row(request)
        return self._picture(request, row, SHOWN, 1 << 30)

    async def mark(self, request: Request) -> Response:
        try:
            asked = _Marking.model_validate_json(await request.body())
        except ValidationError as error:
            raise BadInput(f"marks: {error.errors()[0]['msg']}.") from None
        rows = await run_in_threadpool(self._gallery.mark, asked.keys, asked)
        return self._changed(rows)

    async def undo(self, request: Request) -> Response:
        return self._changed(await run_in_threadpool(self._gallery.undo))

    def _changed(self, rows: list[int]) -> Response:
        return JSONResponse({"rows": [self._gallery.describe(row) for row in rows], **self._state()})

    def _state(self) -> dict[str, Any]:
        return {"counts": self._gallery.counts(), "can_undo": self._gallery.can_undo}

    def _row(self, request: Request) -> int:
        try:
            return self._gallery.row(request.path_params["key"])
        except BadInput:
            raise HTTPException(404) from None

    def _picture(self, request: Request, row: int, side: int, as_it_is: int) -> Response:
        """An image file as it is where a browser shows it and it is small enough, else its pixels encoded anew."""
        headers = {"cache-control": _FOREVER, "etag": f'"{self._gallery.sha256(row)}-{side}"'}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        content = self._gallery.content(row)
        kind = _SHOWABLE.get(sniff(content) or "")
        if kind is None or len(content) > as_it_is:
            shrunk = self._thumbnail if side == THUMBNAIL else self._shrunk
            kind, content = shrunk(row, side)
        return Response(content, media_type=kind, headers=headers)

    def _shrunk(self, row: int, side: int) -> tuple[str, bytes]:
        with Image.open(io.BytesIO(self._gallery.content(row))) as opened:
            opened.draft("RGB", (side, side))
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        picture.save(out, "WEBP", quality=90)
        return "image/webp", out.getvalue()


def _filter(request: Request) -> Filter:
    try:
        return Filter.model_validate({name: value for name, value in request.query_params.items() if value != ""})
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{first['loc'][0]}: {first['msg']}.") from None
