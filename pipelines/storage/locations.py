"""Where a folder of ours lies: on a disk, as a Path, or on an object store, as a UPath, which joins and reads like one.

A file for a store is made on the local disk and then put there whole: a store shows an object when all of it has
arrived, and not before. Ranges are read side by side. The drivers of fsspec (s3fs, gcsfs, adlfs) try again what a
network loses, and take endpoint and credentials from the environment; what they give up is one sentence here.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, TypeAlias

import fsspec
from pydantic import AfterValidator, PlainSerializer, PlainValidator
from upath import UPath

from pipelines.errors import BadInput, CurateError

Place: TypeAlias = Path | UPath

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")  # also where a Path has made one slash of two
_BUFFER_BYTES = 1 << 20
_FETCHED_BYTES = 64 << 20  # in memory at once
_MAX_GAP = 64 << 10  # bytes that are read in vain rather than asked for around
_MAX_REQUEST = 8 << 20


def place(text: str | Path | UPath) -> Place:
    """A local path, or the object store that a URL names."""
    if not isinstance(text, str | Path | UPath):
        raise ValueError("Input is no path")
    if isinstance(text, UPath) or "://" not in str(text):
        return text if isinstance(text, UPath) else Path(text)
    url = str(text)
    if url.startswith(("file://", "local://")):
        return Path(fsspec.implementations.local.LocalFileSystem._strip_protocol(url))
    with explained(url):
        # A listing that the driver remembers would hide what other machines write.
        return UPath(url.rstrip("/"), use_listings_cache=False)


def _local(path: Path) -> Path:
    if _URL.match(str(path)):
        url = _URL.sub(lambda start: f"{start[0].rstrip('/')}//", str(path), count=1)
        raise BadInput(
            f"--run {url}: is not on a disk; a run stays local or on a shared file system, only --pool and the --out "
            "of export may be URLs."
        )
    return path


AnyFolder = Annotated[Place, PlainValidator(place), PlainSerializer(str, when_used="json")]
LocalFolder = Annotated[Path, AfterValidator(_local)]


@contextmanager
def explained(where: object) -> Iterator[None]:
    """Turn what a store's driver raises into one sentence: each has kinds of its own for bucket, key and network."""
    try:
        yield
    except (CurateError, FileNotFoundError):
        raise
    except Exception as error:
        hint = "; install curate[s3]" if isinstance(error, ImportError) and str(where).startswith("s3:") else ""
        raise BadInput(
            f"{where}: cannot be reached ({why(error)}){hint}; what is there stays, the same command goes on from here."
        ) from error


def why(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


# Reading


def names(folder: Place) -> list[str]:
    """Names of what lies in a folder, sorted; none where there is no folder."""
    try:
        if not isinstance(folder, UPath):
            return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths
        with explained(folder):
            listed = folder.fs.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    # Some stores list a folder as an empty object within itself.
    inside = (str(name).strip("/") for name in listed)
    return sorted(name.rpartition("/")[2] for name in inside if name != folder.path.strip("/"))


def exists(path: Place) -> bool:
    """Whether there is a file."""
    if not isinstance(path, UPath):
        return path.exists()
    with explained(path):
        return bool(path.fs.exists(path.path))


def size(path: Place) -> int:
    """Bytes of a file; FileNotFoundError where there is none."""
    if not isinstance(path, UPath):
        return path.stat().st_size
    with explained(path):
        return int(path.fs.info(path.path)["size"])


def read(path: Place) -> bytes:
    """All bytes of a small file; FileNotFoundError where there is none."""
    if not isinstance(path, UPath):
        return path.read_bytes()
    with explained(path):
        return bytes(path.fs.cat_file(path.path))


@contextmanager
def opened(path: Place) -> Iterator[BinaryIO]:
    """Open a large file to read it from its beginning on; FileNotFoundError where there is none."""
    if isinstance(path, UPath):
        with explained(path), path.fs.open(path.path, "rb") as file:
            yield file
    else:
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            yield file


def read_all(paths: Sequence[Place]) -> list[bytes]:
    """All bytes of many small files of one folder, in order."""
    if not paths or not isinstance(paths[0], UPath):
        return [path.read_bytes() for path in paths]
    inner, whole = [path.path for path in paths if isinstance(path, UPath)], [None] * len(paths)
    with explained(paths[0]):
        return [bytes(found) for found in paths[0].fs.cat_ranges(inner, whole, whole, on_error="raise")]


def read_ranges(spans: Iterable[tuple[UPath, int, int]]) -> Iterator[bytes]:
    """Yield the bytes at each (file, offset, num_bytes), in the order asked for; fewer where a file ends before.

    Neighbors in a file are asked for at once. FileNotFoundError where a file is not there.
    """
    waiting, num_bytes = list[tuple[UPath, int, int]](), 0
    for span in spans:
        waiting.append(span)
        num_bytes += span[2]
        if num_bytes >= _FETCHED_BYTES:
            yield from _fetch(waiting)
            waiting, num_bytes = [], 0
    if waiting:
        yield from _fetch(waiting)


def _fetch(spans: Sequence[tuple[UPath, int, int]]) -> Iterator[bytes]:
    requests = list[tuple[UPath, int, int]]()  # file, start, stop
    places = list[tuple[int, int]]()  # of each span: its request, and where in that
    for path, offset, num_bytes in spans:
        stop = offset + num_bytes
        if requests:
            last, first, end = requests[-1]
            if path == last and end <= offset <= end + _MAX_GAP and stop - first <= _MAX_REQUEST:
                requests[-1] = (last, first, stop)
                places.append((len(requests) - 1, offset - first))
                continue
        requests.append((path, offset, stop))
        places.append((len(requests) - 1, 0))
    with explained(spans[0][0]):
        files, starts, stops = (list(column) for column in zip(*requests, strict=True))
        found = files[0].fs.cat_ranges([file.path for file in files], starts, stops, on_error="raise")
    for (number, start), (_, _, num_bytes) in zip(places, spans, strict=True):
        yield bytes(found[number][start : start + num_bytes])


# Writing


def put(file: Path, path: UPath) -> None:
    """Put a local file on a store, whole."""
    try:
        with explained(path):
            path.fs.put_file(str(file), path.path)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: cannot be written ({why(error)}); make the bucket first.") from None


def move(source: UPath, path: UPath) -> None:
    """Rename an object within its store, which copies it; FileNotFoundError where it is gone."""
    with explained(path):
        path.fs.cp_file(source.path, path.path)
        path.fs.rm_file(source.path)


def remove(path: Place) -> None:
    """Remove a file, or a folder of a store with all that is in it, if it is there."""
    if not isinstance(path, UPath):
        path.unlink(missing_ok=True)
        return
    with explained(path):
        if path.fs.exists(path.path):
            path.fs.rm(path.path, recursive=True)
