"""Locations of files and folders: a Path on a disk, or a UPath on an object store, which joins and reads like a Path.

The functions here take either, so that callers need not ask which one they have.

A file for a store is made on the local disk and uploaded as a whole: a store shows an object only when all of it has
arrived. Ranges are read in parallel. The drivers of fsspec (s3fs, gcsfs, adlfs) retry what the network loses, and take
endpoint and credentials from the environment. What they finally raise becomes a one-sentence error.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from errno import ENOENT
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TypeAlias
from urllib.parse import unquote

from pydantic import AfterValidator, PlainSerializer, PlainValidator

from pipelines.distribution import pip_install
from pipelines.errors import BadInput, CurateError, Refused, why

if TYPE_CHECKING:
    from upath import UPath

    Location: TypeAlias = Path | UPath
else:  # importing upath, and fsspec with it, takes half as long as all else that a command line needs
    Location = Path | Any
Range: TypeAlias = tuple[Location, int, int]  # file, offset, number of bytes

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")  # one slash, because a Path merges two into one
_EXTRAS = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}  # of curate, by the scheme that needs it
_OF_STORE = {".gitattributes"}  # in each repository of the Hugging Face Hub
_BUFFER_BYTES = 1 << 20
_FETCHED_BYTES = 64 << 20  # in memory at once
_MAX_GAP = 64 << 10  # bytes between two ranges that are cheaper to read than a second request
_MAX_REQUEST = 8 << 20


def locate(text: "str | Path | UPath") -> Location:
    """Turn a path or URL into a location. A file:// URL becomes a local path.

    Raises ValueError for other types (pydantic turns it into its own error), BadInput for a URL without a driver.
    """
    if isinstance(text, str | Path):
        path_or_url = without_file_scheme(str(text))
        if "://" not in path_or_url:
            return _in_utf8(Path(path_or_url))
    from upath import UPath

    if isinstance(text, UPath):
        return text
    if not isinstance(text, str | Path):
        raise ValueError("Input is no path")
    with explained(path_or_url):
        # Without a cache of listings: it would hide what other machines write.
        return UPath(path_or_url.rstrip("/"), use_listings_cache=False)


def without_file_scheme(source: str) -> str:
    """Turn a file:// URL into a path, for which no driver is needed; return anything else unchanged."""
    if not source.startswith(("file://", "local://")):
        return source
    import fsspec

    path = str(fsspec.implementations.local.LocalFileSystem._strip_protocol(source))
    plain = unquote(path)  # my%20photos, as `Path.as_uri` writes it, unless that is what the folder is called
    return path if os.path.lexists(path) and not os.path.lexists(plain) else plain


def _local(path: Path) -> Path:
    if _URL.match(str(path)):
        url = _URL.sub(lambda start: f"{start[0].rstrip('/')}//", str(path), count=1)
        raise BadInput(
            f"--run {url}: is not on a disk. A run must be on a local disk or a shared file system; only --pool, and "
            "--out of export, may be URLs."
        )
    return _in_utf8(path)


def _in_utf8(path: Path) -> Path:
    """Raise BadInput for a folder that Arrow could not name."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise BadInput(
            f"{shown}: is not a name in UTF-8, or the locale is not. Rename the folder, name a link to it, "
            "or set LC_ALL=C.UTF-8."
        ) from None
    return path


AnyFolder = Annotated[Location, PlainValidator(locate), PlainSerializer(str, when_used="json")]
LocalFolder = Annotated[Path, AfterValidator(_local)]


@contextmanager
def explained(where: object) -> Iterator[None]:
    """Turn whatever a store's driver raises into Refused; each driver has its own exceptions for bucket, key, network.

    FileNotFoundError and CurateError pass.
    """
    try:
        yield
    except (CurateError, FileNotFoundError):
        raise
    except Exception as error:
        raise Refused(
            f"{where}: cannot be reached ({why(error)}){driver_hint(error, where)}. What is there is kept; "
            "run the same command again to resume."
        ) from error


def driver_hint(error: Exception, where: object) -> str:
    """Addition to a message about `where`: which extra to install if its driver is missing, else nothing."""
    extra = _EXTRAS.get(str(where).partition(":")[0].lower())
    return f"; {pip_install(extra)}" if isinstance(error, ImportError) and extra else ""


# Reading


def names(folder: Location) -> list[str]:
    """List the names in a folder, sorted, without what a store keeps for itself; empty if there is no such folder."""
    try:
        if isinstance(folder, Path):
            return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths
        with explained(folder):
            listed = folder.fs.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    # Some stores list a folder as an empty object within itself.
    inside = (str(name).strip("/") for name in listed)
    found = (name.rpartition("/")[2] for name in inside if name != folder.path.strip("/"))
    return sorted(name for name in found if name not in _OF_STORE)


def exists(path: Location) -> bool:
    """Whether a file exists."""
    if isinstance(path, Path):
        return path.exists()
    with explained(path):
        return bool(path.fs.exists(path.path))


def size(path: Location) -> int:
    """Size of a file in bytes. Raises FileNotFoundError."""
    if isinstance(path, Path):
        return path.stat().st_size
    with explained(path):
        return int(path.fs.info(path.path)["size"])


def read(path: Location) -> bytes:
    """Read a small file as a whole. Raises FileNotFoundError."""
    if isinstance(path, Path):
        return path.read_bytes()
    with explained(path):
        return bytes(path.fs.cat_file(path.path))


@contextmanager
def opened(path: Location) -> Iterator[BinaryIO]:
    """Open a large file, to be read from its start to its end. Raises FileNotFoundError."""
    if isinstance(path, Path):
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            yield file
    else:
        with explained(path), path.fs.open(path.path, "rb") as file:
            yield file


def read_all(paths: Sequence[Location]) -> list[bytes]:
    """Read many small files of one folder as a whole, in the order given. Raises FileNotFoundError."""
    if not paths or isinstance(paths[0], Path):
        return [path.read_bytes() for path in paths]
    inner, whole = [path.path for path in paths if not isinstance(path, Path)], [None] * len(paths)
    with explained(paths[0]):
        return [bytes(found) for found in paths[0].fs.cat_ranges(inner, whole, whole, on_error="raise")]


def read_ranges(ranges: Iterable[Range]) -> Iterator[bytes]:
    """Yield the bytes of each range, in the order given; fewer bytes if a file ends before.

    Ranges that follow each other in a file share an open file, or a request to the store. All must be on the same disk
    or store. Raises FileNotFoundError with the name of the missing file.
    """
    for is_local, some in groupby(ranges, key=lambda asked: isinstance(asked[0], Path)):
        read_some = _read_from_disk if is_local else _read_from_store
        yield from read_some(some)


def _read_from_disk(ranges: Iterable[Range]) -> Iterator[bytes]:
    for path, of_file in groupby(ranges, key=itemgetter(0)):
        with path.open("rb") as file:
            for _, offset, num_bytes in of_file:
                yield os.pread(file.fileno(), num_bytes, offset)


def _read_from_store(ranges: Iterable[Range]) -> Iterator[bytes]:
    waiting: list[tuple[UPath, int, int]] = []
    total = 0
    for path, offset, num_bytes in ranges:
        assert not isinstance(path, Path)
        waiting.append((path, offset, num_bytes))
        total += num_bytes
        if total >= _FETCHED_BYTES:
            yield from _fetch(waiting)
            waiting, total = [], 0
    if waiting:
        yield from _fetch(waiting)


def _fetch(ranges: "Sequence[tuple[UPath, int, int]]") -> Iterator[bytes]:
    requests: list[tuple[UPath, int, int]] = []  # file, start, stop
    positions = list[tuple[int, int]]()  # of each range: its request, and the offset within that
    for path, offset, num_bytes in ranges:
        stop = offset + num_bytes
        if requests:
            last, first, end = requests[-1]
            if path == last and end <= offset <= end + _MAX_GAP and stop - first <= _MAX_REQUEST:
                requests[-1] = (last, first, stop)
                positions.append((len(requests) - 1, offset - first))
                continue
        requests.append((path, offset, stop))
        positions.append((len(requests) - 1, 0))
    files, starts, stops = (list(column) for column in zip(*requests, strict=True))
    try:
        with explained(files[0]):
            found = files[0].fs.cat_ranges([file.path for file in files], starts, stops, on_error="raise")
    except FileNotFoundError:
        missing = next((file for file in files if not exists(file)), files[0])
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(missing)) from None
    for (number, start), (_, _, num_bytes) in zip(positions, ranges, strict=True):
        yield bytes(found[number][start : start + num_bytes])


# Writing


def put(file: Path, path: "UPath") -> None:
    """Upload a local file to a store, as a whole."""
    try:
        with explained(path):
            path.fs.put_file(str(file), path.path)
    except FileNotFoundError as error:
        raise Refused(f"{path}: cannot be written ({why(error)}); make the bucket or repository first.") from None


def move(source: "UPath", path: "UPath") -> None:
    """Rename an object within its store, by copying it. Raises FileNotFoundError if it is gone."""
    with explained(path):
        path.fs.cp_file(source.path, path.path)
        path.fs.rm_file(source.path)


def remove(path: Location) -> None:
    """Remove a file if it exists; on a store also a folder with everything in it."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    with explained(path):
        if path.fs.exists(path.path):
            path.fs.rm(path.path, recursive=True)
