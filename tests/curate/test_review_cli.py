"""`curate review`: whom its server lets in, what it sends, and what it says of mistakes."""

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.pool.manifest import Pool
from tests.curate.reviewing import Server, review
from tests.warm import curate

pytestmark = pytest.mark.slow


class Client:
    """Plain HTTP, with any header."""

    def __init__(self, server: Server) -> None:
        self._port = server.port
        self.host = f"127.0.0.1:{server.port}"
        status, headers, _ = self.ask(f"/?token={server.token}")
        assert status == 303
        self.cookie = headers["set-cookie"].partition(";")[0]
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(headers["set-cookie"].split("; "))

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, content, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        result = answer.status, answer.headers, answer.read()
        connection.close()
        return result


def test_only_the_person_at_this_machine_gets_in(home: Path) -> None:
    key = str(Pool.open(home / "pool").rows("00000")["key"][0])
    with review(home) as server:
        client = Client(server)
        mine = {"cookie": client.cookie}
        assert client.ask("/", **mine)[0] == 200
        for path in (
            "/",
            "/api/view",
            "/api/map",
            "/static/map.js",
            f"/image/{key}",
            f"/thumbnail/{key}",
            "/static/review.js",
            "/?token=guess",
        ):
            assert client.ask(path)[0] == 403
            assert client.ask(path, cookie=client.cookie + "x")[0] == 403
            assert client.ask(path, host=f"evil.example:{server.port}", **mine)[0] == 421
        assert client.ask(f"/?token={server.token}", host="evil.example")[0] == 421
        assert client.ask("/", host=f"localhost:{server.port + 1}", **mine)[0] == 200  # through a tunnel

        asked = {"keys": [key], "verdict": "real"}
        send = {**mine, "content_type": "application/json"}
        assert client.ask("/api/marks", "POST", asked, **send)[0] == 403  # no Origin
        assert client.ask("/api/marks", "POST", asked, origin="http://evil.example", **send)[0] == 403
        assert client.ask("/api/undo", "GET", origin=f"http://{client.host}", **send)[0] == 405
        own = {"origin": f"http://{client.host}"}
        assert client.ask("/api/marks", "POST", asked, **own, **mine, content_type="text/plain")[0] == 415
        assert client.ask("/api/marks", "POST", b" " * (2 << 20), **own, **send)[0] == 413
        assert not (home / "run" / "marks.jsonl").exists()
        status, headers, body = client.ask("/api/marks", "POST", asked, **own, **send)
        assert status == 200 and json.loads(body)["rows"][0]["marked"] == "real"
        assert "access-control-allow-origin" not in headers
        assert "default-src 'none'" in headers["content-security-policy"]
        for wrong, sentence in (
            ({"keys": ["000990000"], "verdict": "real"}, "no scored image"),
            ({"keys": [key], "verdict": "real", "label": "zebra"}, "none of the classes"),
            ({"keys": [key], "verdict": "synthetic", "label": "disc"}, "a label says that an image is real"),
            ({"keys": [key], "verdict": "perhaps"}, "'real', 'synthetic', 'off-class' or 'skip'"),
            ([], "should be an object"),
        ):
            status, _, body = client.ask("/api/marks", "POST", wrong, **own, **send)
            assert status == 400 and sentence in json.loads(body)["error"]
        everything = {"wanted": {"marked": "no"}, "count": 3, "verdict": "skip"}
        status, _, body = client.ask("/api/marks/all", "POST", everything, **own, **send)
        assert status == 400 and "by now, not 3" in json.loads(body)["error"]
        assert client.ask("/api/marks/all", "POST", everything, **send)[0] == 403
        for path in (
            "/api/view?region=1",
            "/api/view?text=" + "a" * 501,
            "/api/rows?rows=-1",
            "/api/rows?rows=a",
            "/api/view?order=best",
            "/api/view?low=2",
        ):
            assert client.ask(path, **mine)[0] == 400
        for path in ("/api/image/000990000", "/static/review.html", "/static/..", "/static/..%2Fserver.py"):
            assert client.ask(path, **mine)[0] == 404


def test_images_are_the_crawls_bytes_and_stay_in_the_browsers_cache(scored: Path, served: Server) -> None:
    pool, client = Pool.open(scored / "pool"), Client(served)
    row = pool.rows("00001").slice(5, 1).to_pylist()[0]
    status, headers, body = client.ask(f"/thumbnail/{row['key']}", cookie=client.cookie)
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert body == pool.tar("00001").read_bytes()[row["offset"] :][: row["num_bytes"]]
    assert "immutable" in headers["cache-control"] and headers["x-content-type-options"] == "nosniff"
    again = client.ask(f"/thumbnail/{row['key']}", cookie=client.cookie, if_none_match=headers["etag"])
    assert (again[0], again[2]) == (304, b"")


def test_mistakes_are_one_sentence(home: Path, served: Server) -> None:
    def refused(*arguments: str, code: int = 1) -> str:
        done = curate("review", "--no-open", *arguments, cwd=home)
        assert done.returncode == code and "Traceback" not in done.stderr and not done.stdout
        return done.stderr

    assert "Choose another port, or 0 for any free one" in refused("--port", str(served.port), code=2)
    assert "run `curate score` first" in refused("--run", "nowhere", "--port", "0")
    (home / "run" / "marks.jsonl").write_text("nonsense\n")
    assert "line 1 is not a mark" in refused("--port", "0")
