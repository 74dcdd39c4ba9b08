"""A local stand-in of the Hugging Face Hub's API, as far as `HfFileSystem` uses it for dataset repositories."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from werkzeug.wrappers import Request, Response


@dataclass
class Hub:
    """A WSGI application with repositories in memory, files by path, that have the revision "main" alone."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: int = 0

    def create(self, name: str, files: dict[str, bytes] | None = None) -> None:
        """Make a repository as the Hub does, with a .gitattributes in it."""
        self.repositories[name] = {".gitattributes": b"*.tar filter=lfs\n"} | (files or {})

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ)
        return self._answer(request)(environ, start_response)

    def _answer(self, request: Request) -> Response:
        path = unquote(request.path).strip("/")
        if path == "api/validate-yaml":
            return _json({"warnings": [], "errors": []})
        kind, _, rest = path.removeprefix("api/").partition("/")
        parts = rest.split("/")
        name, action = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision"
        files = self.repositories.get(name)
        if kind != "datasets" or files is None:
            return _error(404, "RepoNotFound", f"Repository Not Found: {name}")
        if len(parts) > 3 and parts[3] != "main":
            return _error(404, "RevisionNotFound", f"Invalid rev id: {parts[3]}")
        where = "/".join(parts[4:])
        match action:
            case "revision":
                return _json({"id": name, "sha": "0" * 40, "tags": [], "siblings": []})
            case "tree":
                return self._tree(files, where)
            case "paths-info":
                asked = request.form.getlist("paths")
                return _json([_file(path, files[path]) for path in asked if path in files])
            case "resolve":
                return _content(request, files, where)
            case "preupload":
                asked = [each["path"] for each in json.loads(request.data)["files"]]
                return _json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]})
            case "commit":
                return self._commit(request, files)
        return _error(404, "NotFound", path)

    def _tree(self, files: dict[str, bytes], where: str) -> Response:
        found = dict[str, dict[str, Any]]()
        for path, content in sorted(files.items()):
            inside = path.removeprefix(f"{where}/") if where else path
            if where and inside == path:
                continue
            first, slash, _ = inside.partition("/")
            child = str(PurePosixPath(where, first))
            folder = {"type": "directory", "oid": hashlib.sha1(child.encode()).hexdigest(), "size": 0, "path": child}
            found[child] = folder if slash else _file(path, content)
        if where and not found:
            return _error(404, "EntryNotFound", f"{where} does not exist")
        return _json(list(found.values()))

    def _commit(self, request: Request, files: dict[str, bytes]) -> Response:
        self.commits += 1
        for line in request.data.splitlines():
            step = json.loads(line)
            path = step["value"].get("path", "")
            if step["key"] == "file":
                files[path] = base64.b64decode(step["value"]["content"])
            elif step["key"] == "deletedFile":
                del files[path]
        return _json({"commitUrl": f"{request.host_url}datasets/a/b/commit/{'0' * 40}", "commitOid": "0" * 40})


def _file(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "oid": blob, "size": len(content), "path": path}


def _content(request: Request, files: dict[str, bytes], path: str) -> Response:
    if path not in files:
        return _error(404, "EntryNotFound", f"{path} does not exist")
    response = Response(files[path], mimetype="application/octet-stream")
    response.headers["ETag"] = f'"{hashlib.sha1(files[path]).hexdigest()}"'
    return response.make_conditional(request, accept_ranges=True, complete_length=len(files[path]))


def _json(value: Any) -> Response:
    return Response(json.dumps(value), mimetype="application/json")


def _error(status: int, code: str, message: str) -> Response:
    response = Response(json.dumps({"error": message}), status=status, mimetype="application/json")
    response.headers["X-Error-Code"], response.headers["X-Error-Message"] = code, message
    return response
