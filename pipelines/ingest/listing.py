"""Lists and opens what a crawl is made of, by path or fsspec URL; nothing but listings is read here."""

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from pipelines.errors import BadInput, why
from pipelines.storage.locations import driver_hint, without_file_scheme

_STAMPS = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
_DIGEST = re.compile(r"\"?[0-9a-f]{32}(-\d+)?\"?")  # MD5, as an S3 store's ETag
_HTTP = re.compile(r"https?://", re.IGNORECASE)
_BUFFER_BYTES = 1 << 20
_PROBE_BYTES = 16 << 10
_MAGIC = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"PK\3\4": "zip",
    b"\x04\x22\x4d\x18": "lz4", b"Rar!": "rar", b"7z\xbc\xaf": "7-Zip",
}  # fmt: skip


class Entry(NamedTuple):
    """A file or folder of the crawl, as its listing describes it."""

    path: str  # absolute, or a URL
    name: str
    is_folder: bool
    num_bytes: int
    stamp: str  # changes when the content does


def shown(source: str) -> str:
    """A source as it is put on record: an http URL without its query, which may hold a signature."""
    return source.partition("?")[0] if _HTTP.match(source) else source


def beside_tar(tar: str, end: str) -> str:
    """Path or URL of what lies beside a tar under its name: `.parquet` or `_stats.json` instead of `.tar`."""
    path = shown(tar)
    return path[: -len(".tar")] + end + tar[len(path) :]


def join(folder: str, name: str) -> str:
    """Path or URL of `name` below `folder`."""
    return f"{folder.rstrip('/')}/{name}"


def store_of(url: str) -> tuple[Any, str]:
    """The file system of an fsspec URL, and the path in it."""
    from fsspec.core import url_to_fs  # imported here: it takes as long as numpy, and a path on a disk needs none

    system, inner = url_to_fs(url)
    return system, str(inner)


def open_source(path: str) -> BinaryIO:
    """Open a local path or an fsspec URL for reading; never a shell's pipe."""
    if "://" not in path:
        return Path(path).open("rb", buffering=_BUFFER_BYTES)
    system, inner = store_of(path)
    return cast(BinaryIO, system.open(inner, "rb"))


def look_up(source: str) -> Entry:
    """Look up one source, given by path or URL. Raises BadInput if it cannot be read."""
    if source.startswith("pipe:"):
        raise BadInput(f"{source}: curate runs no commands; download the shards first, or give their URL.")
    path = without_file_scheme(source)
    try:
        if "://" not in path:
            return _look_up_local(Path(path).expanduser())
        system, inner = store_of(path)
        return _remote_entry(system, system.info(inner), path)
    except Exception as error:  # each store's driver has its own: no such bucket, no credentials, no driver
        hint = driver_hint(error, path)
        if isinstance(error, FileNotFoundError) and set(path) & set("*?["):
            hint = "; name several by braces, such as {00000..00099}.tar, or leave the pattern to the shell"
        # The message of some drivers is the URL alone; the reason is in the cause.
        reason = why(error.__cause__ if str(error) == path and isinstance(error.__cause__, Exception) else error)
        raise BadInput(f"{source}: cannot be read ({reason}){hint}.") from error


def _look_up_local(path: Path) -> Entry:
    """Describe a file by the name it was given, even if that is a link to another: so does the Hub's cache."""
    whole = path.resolve()
    named = path.parent.resolve() / path.name if path.name not in ("", "..") else whole
    return local_entry(whole if whole.is_dir() else named)


def fingerprint(entry: Entry) -> str:
    """Tell the content of a file by its size, its stamp and some of its bytes, not by its path.

    A file of a store is not opened: a request for each would take too long. There its path counts, unless the stamp is
    a digest of the content.
    """
    size_and_time = f"{entry.num_bytes}-{entry.stamp}"
    if "://" not in entry.path:
        return f"{size_and_time}-{_probe(entry.path)}"
    return size_and_time if _DIGEST.fullmatch(entry.stamp) else f"{size_and_time}-{shown(entry.path)}"


def _probe(path: str) -> str:
    """Digest of a local file's first and last bytes, and some in the middle."""
    digest = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for start in (0, size // 2, size - _PROBE_BYTES):
            digest.update(os.pread(file.fileno(), _PROBE_BYTES, max(start, 0)))
    return digest.hexdigest()[:16]


def compression(path: str) -> str | None:
    """What compresses a local file that is called .tar, or None; a file of a store is not opened."""
    if "://" in path:
        return None
    with Path(path).open("rb", buffering=0) as file:
        head = file.read(8)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def list_folder(folder: str) -> list[Entry]:
    """List the entries of a folder by name, without hidden ones."""
    if "://" not in folder:
        with os.scandir(folder) as listing:
            entries = [local_entry(Path(entry.path), entry) for entry in listing if not entry.name.startswith(".")]
    else:
        system, inner = store_of(folder)
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


def _remote_entry(system: Any, info: dict[str, Any], url: str = "") -> Entry:
    path = url if _HTTP.match(url) and "?" in url else str(system.unstrip_protocol(info["name"])).rstrip("/")
    stamp = next((str(info[name]) for name in _STAMPS if info.get(name)), "")
    return Entry(path, shown(path).rpartition("/")[2], info["type"] == "directory", int(info.get("size") or 0), stamp)
