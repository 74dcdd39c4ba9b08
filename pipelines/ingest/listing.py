"""Lists and opens what a crawl is made of, by path or fsspec URL; nothing but listings is read here."""

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import fsspec

from pipelines.errors import BadInput, why
from pipelines.storage.locations import driver_hint, without_file_scheme

_STAMPS = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
_BUFFER_BYTES = 1 << 20


class Entry(NamedTuple):
    """A file or folder of the crawl, as its listing describes it."""

    path: str  # absolute, or a URL
    name: str
    is_folder: bool
    num_bytes: int
    stamp: str  # changes when the content does


def join(folder: str, name: str) -> str:
    """Path or URL of `name` below `folder`."""
    return f"{folder.rstrip('/')}/{name}"


def open_source(path: str) -> BinaryIO:
    """Open a local path or an fsspec URL for reading; never a shell's pipe."""
    if "://" not in path:
        return Path(path).open("rb", buffering=_BUFFER_BYTES)
    system, inner = fsspec.core.url_to_fs(path)
    return cast(BinaryIO, system.open(inner, "rb"))


def look_up(source: str) -> Entry:
    """Look up one source, given by path or URL. Raises BadInput if it cannot be read."""
    if source.startswith("pipe:"):
        raise BadInput(f"{source}: curate runs no commands; download the shards first, or give their URL.")
    path = without_file_scheme(source)
    try:
        if "://" not in path:
            return local_entry(Path(path).expanduser().resolve())
        system, inner = fsspec.core.url_to_fs(path)
        return _remote_entry(system, system.info(inner))
    except Exception as error:  # each store's driver has its own: no such bucket, no credentials, no driver
        hint = driver_hint(error, path)
        if isinstance(error, FileNotFoundError) and set(path) & set("*?["):
            hint = "; name several by braces, such as {00000..00099}.tar, or leave the pattern to the shell"
        # The message of some drivers is the URL alone; the reason is in the cause.
        reason = why(error.__cause__ if str(error) == path and isinstance(error.__cause__, Exception) else error)
        raise BadInput(f"{source}: cannot be read ({reason}){hint}.") from error


def list_folder(folder: str) -> list[Entry]:
    """List the entries of a folder by name, without hidden ones."""
    if "://" not in folder:
        with os.scandir(folder) as listing:
            entries = [local_entry(Path(entry.path), entry) for entry in listing if not entry.name.startswith(".")]
    else:
        system, inner = fsspec.core.url_to_fs(folder)
        entries = [_remote_entry(system, info) for info in system.ls(inner, detail=True)]
        # Object stores may list a folder as an empty object within itself.
        entries = [entry for entry in entries if not entry.name.startswith(".") and entry.path != folder]
    return sorted(entries, key=lambda entry: entry.name)


def local_entry(path: Path, entry: os.DirEntry[str] | None = None) -> Entry:
    """Describe a local file or folder; pass the `entry` of a listing, if there is one, to save a system call."""
    try:
        status = entry.stat() if entry else path.stat()
    except OSError:
        if not path.is_symlink():
            raise
        status = path.lstat()  # a link to nowhere or to itself: a record of the crawl, to be rejected
    return Entry(str(path), path.name, stat.S_ISDIR(status.st_mode), status.st_size, str(status.st_mtime_ns))


def _remote_entry(system: Any, info: dict[str, Any]) -> Entry:
    path = str(system.unstrip_protocol(info["name"])).rstrip("/")
    stamp = next((str(info[name]) for name in _STAMPS if info.get(name)), "")
    return Entry(path, path.rpartition("/")[2], info["type"] == "directory", int(info.get("size") or 0), stamp)
