"""Find what a crawl consists of: folders, tars and parquet files, as units of which each becomes one pool shard.

Units come in an order that depends on the names alone, and carry a fingerprint of what they hold, so that a later
run knows which of them are in the pool already. Nothing but listings and parquet footers is read here.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import braceexpand
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import BadInput
from pipelines.pool.manifest import MAX_SHARDS
from pipelines.storage.locations import Location, why

SIDECARS = (".txt", ".json")
_ARCHIVES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".rar", ".7z")
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes", "content")
_STAMPS = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A piece of the crawl that becomes one pool shard; equal `identity` is equal content."""

    source: str  # the tar, the parquet file or the folder: an absolute path or a URL
    part: str  # which part of it; empty where it is all
    fingerprint: str
    num_bytes: int

    @property
    def identity(self) -> tuple[str, str, str]:
        """What a pool remembers of the units it is made from."""
        return self.source, self.part, self.fingerprint


class TarUnit(Unit):
    """A tar, with the parquet and `_stats.json` of img2dataset where they lie beside it."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetUnit(Unit):
    """Whole row groups of a parquet file that holds images in `column`."""

    column: str
    row_groups: tuple[int, ...]
    first_row: int
    num_rows: int


class File(NamedTuple):
    """A candidate image in a folder, with the text and JSON of the same name; names are relative to the source."""

    name: str
    num_bytes: int
    sidecars: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesUnit(Unit):
    """A run of files below a folder."""

    files: tuple[File, ...]


Find = Unit | str
"""A unit, or a sentence about something that was left aside."""


def find(sources: Sequence[str], *, shard_size: int, pool: Location) -> Iterator[Find]:
    """Yield the units of all sources in order, and notes on what is left aside; never anything of `pool` itself.

    A source is a folder, a tar, a parquet file, a brace pattern of these, or @FILE with one of these a line; local
    or an fsspec URL. Raises BadInput for a source that cannot be used.
    """
    inside = str(pool.resolve())
    for source in _expand(sources):
        if not source.strip():
            raise BadInput("The name of a source is empty; name a folder, a .tar or .parquet file, or @FILE.")
        entry = _look(source)
        if entry.path == inside or entry.path.startswith(inside + "/"):
            raise BadInput(f"{source}: is the pool itself; name the crawl that goes into it.")
        if entry.is_folder:
            yield from _folder_units(entry.path, shard_size, inside)
        elif _suffix(entry.name) == ".tar":
            yield _tar_unit(entry)
        elif _suffix(entry.name) == ".parquet":
            for found in _parquet_units(entry, shard_size):
                if isinstance(found, str):
                    raise BadInput(found)
                yield found
        elif _suffix(entry.name) in _ARCHIVES:
            raise BadInput(f"{source}: is compressed; unpack it, or name uncompressed .tar shards.")
        else:
            raise BadInput(f"{source}: is neither a folder nor a .tar or .parquet file; name the folder that holds it.")


def open_source(path: str) -> BinaryIO:
    """Open a local path or an fsspec URL for reading; never a shell's pipe."""
    if "://" not in path:
        return Path(path).open("rb", buffering=_BUFFER_BYTES)
    system, inner = fsspec.core.url_to_fs(path)
    return cast(BinaryIO, system.open(inner, "rb"))


def has_changed(unit: Unit) -> bool:
    """Whether a unit's source is another by now than when it was found, or gone.

    Of files below a remote folder this is not asked: it would take a request for each of them.
    """
    try:
        if not isinstance(unit, FilesUnit):
            entry = _look(unit.source)
            return unit.fingerprint != f"{entry.num_bytes}-{entry.stamp}"
        if "://" in unit.source:
            return False
        now = [(file, _local_entry(Path(join(unit.source, file.name)))) for file in unit.files]
        return unit.fingerprint != _fingerprint((file, entry.num_bytes, entry.stamp) for file, entry in now)
    except (OSError, BadInput):
        return True


def join(folder: str, name: str) -> str:
    """Path or URL of `name` below `folder`."""
    return f"{folder.rstrip('/')}/{name}"


# Sources


def _expand(sources: Sequence[str]) -> Iterator[str]:
    for source in sources:
        if not source.startswith("@"):
            yield from _expand_braces(source)
            continue
        try:
            with open_source(_local(source[1:])) as file:
                lines = file.read().decode("utf-8-sig").splitlines()  # some editors begin with a mark
        except (OSError, ValueError) as error:
            raise BadInput(f"{source}: the list of sources cannot be read ({why(error)}).") from None
        for line in map(str.strip, lines):
            if line.startswith("@"):
                raise BadInput(f"{source}: lists {line}; a list of sources cannot name another list.")
            if line and not line.startswith("#"):
                yield from _expand_braces(line)


def _expand_braces(source: str) -> Iterator[str]:
    if "{" not in source or ("://" not in source and Path(source).exists()):
        yield source
        return
    try:
        names = list(islice(braceexpand.braceexpand(source), MAX_SHARDS + 1))
    except ValueError as error:
        raise BadInput(f"{source}: is not a brace pattern such as {{00000..00099}}.tar ({error}).") from None
    if len(names) > MAX_SHARDS:
        raise BadInput(f"{source}: names more than {MAX_SHARDS} files, the most a pool has shards for.")
    yield from names


class _Entry(NamedTuple):
    path: str  # absolute, or a URL
    name: str
    is_folder: bool
    num_bytes: int
    stamp: str  # changes when the content does


def _look(source: str) -> _Entry:
    """Find one source, or say in a sentence why not."""
    if source.startswith("pipe:"):
        raise BadInput(f"{source}: curate runs no commands; download the shards first, or give their URL.")
    path = _local(source)
    try:
        if "://" not in path:
            return _local_entry(Path(path).expanduser().resolve())
        system, inner = fsspec.core.url_to_fs(path)
        return _remote_entry(system, system.info(inner))
    except Exception as error:  # each store's driver raises its own kinds: no such bucket, no credentials, no driver
        hint = "; install curate[s3]" if isinstance(error, ImportError) and path.startswith("s3:") else ""
        if isinstance(error, FileNotFoundError) and set(path) & set("*?["):
            hint = "; name several by braces, such as {00000..00099}.tar, or leave the pattern to the shell"
        # Some drivers say the URL alone, and why in what they raised it for.
        reason = why(error.__cause__ if str(error) == path and isinstance(error.__cause__, Exception) else error)
        raise BadInput(f"{source}: cannot be read ({reason}){hint}.") from error


def _local(source: str) -> str:
    """Turn file:// URLs into paths: local files need no file system of fsspec's."""
    if source.startswith(("file://", "local://")):
        return str(fsspec.implementations.local.LocalFileSystem._strip_protocol(source))
    return source


# Listings, local and remote


def _list(folder: str) -> list[_Entry]:
    """Entries of a folder by name, hidden ones left out."""
    if "://" not in folder:
        with os.scandir(folder) as listing:
            entries = [_local_entry(Path(entry.path), entry) for entry in listing if not entry.name.startswith(".")]
    else:
        system, inner = fsspec.core.url_to_fs(folder)
        entries = [_remote_entry(system, info) for info in system.ls(inner, detail=True)]
        # Object stores may list a folder as an empty object within itself.
        entries = [entry for entry in entries if not entry.name.startswith(".") and entry.path != folder]
    return sorted(entries, key=lambda entry: entry.name)


def _local_entry(path: Path, entry: os.DirEntry[str] | None = None) -> _Entry:
    try:
        status = entry.stat() if entry else path.stat()
    except OSError:
        if not path.is_symlink():
            raise
        status = path.lstat()  # a link to nowhere or to itself: a record of the crawl, to be rejected
    return _Entry(str(path), path.name, stat.S_ISDIR(status.st_mode), status.st_size, str(status.st_mtime_ns))


def _remote_entry(system: Any, info: dict[str, Any]) -> _Entry:
    path = str(system.unstrip_protocol(info["name"])).rstrip("/")
    stamp = next((str(info[name]) for name in _STAMPS if info.get(name)), "")
    return _Entry(path, path.rpartition("/")[2], info["type"] == "directory", int(info.get("size") or 0), stamp)


# Units


def _tar_unit(entry: _Entry) -> TarUnit:
    return TarUnit(
        source=entry.path, part="", fingerprint=f"{entry.num_bytes}-{entry.stamp}", num_bytes=entry.num_bytes
    )


def _parquet_units(entry: _Entry, shard_size: int) -> Iterator[Find]:
    """Yield runs of row groups of about `shard_size` rows; or one note, where the file holds no images."""
    try:
        with open_source(entry.path) as file:
            parquet = pq.ParquetFile(file)
            column = image_column(parquet.schema_arrow)
            rows = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:  # the last two from names that are no UTF-8
        yield f"{entry.path}: left aside, it cannot be read as parquet ({why(error)})."
        return
    if column is None:
        yield f"{entry.path}: left aside, it has no column of image bytes ({', '.join(_IMAGE_COLUMNS[:4])}, ...)."
        return
    start, groups, first_row = 0, list[int](), 0
    for group, num_rows in enumerate(rows):
        groups.append(group)
        start += num_rows
        if start - first_row >= shard_size or group == len(rows) - 1:
            yield ParquetUnit(
                source=entry.path,
                part=f"rows {first_row}-{start - 1}",
                fingerprint=f"{entry.num_bytes}-{entry.stamp}",
                num_bytes=entry.num_bytes * len(groups) // len(rows),
                column=column,
                row_groups=tuple(groups),
                first_row=first_row,
                num_rows=start - first_row,
            )
            groups, first_row = [], start


def image_column(schema: pa.Schema) -> str | None:
    """Name of the column that holds image bytes: Hugging Face's struct of bytes and path, or plain binary.

    A name that two columns share is none of theirs: no reader could tell which is meant.
    """

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            index = kind.get_field_index("bytes")
            if index < 0:
                return False
            kind = kind.field(index).type
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    names = [field.name for field in schema if holds_bytes(field.type) and schema.names.count(field.name) == 1]
    known = [name for name in _IMAGE_COLUMNS if name in names]
    structs = [name for name in names if pa.types.is_struct(schema.field(name).type)]
    return next(iter(known + structs), None)


def _folder_units(root: str, shard_size: int, pool: str) -> Iterator[Find]:
    """Yield all tars and parquet files below a folder, and its loose files in runs of `shard_size`."""
    run: list[tuple[File, str]] = []
    start = 0
    for found in _walk(root, "", shard_size, pool):
        if not isinstance(found, tuple):
            yield found
            continue
        run.append(found)
        if len(run) == shard_size:
            yield _files_unit(root, start, run)
            start, run = start + len(run), []
    if run:
        yield _files_unit(root, start, run)


def _files_unit(root: str, start: int, run: list[tuple[File, str]]) -> FilesUnit:
    return FilesUnit(
        source=root,
        part=f"files {start}-{start + len(run) - 1}",
        fingerprint=_fingerprint((file, file.num_bytes, stamp) for file, stamp in run),
        num_bytes=sum(file.num_bytes for file, _ in run),
        files=tuple(file for file, _ in run),
    )


def _fingerprint(files: Iterable[tuple[File, int, str]]) -> str:
    """Digest of files with their sizes and stamps."""
    digest = hashlib.sha256()
    for file, num_bytes, stamp in files:
        digest.update(os.fsencode("\0".join((file.name, str(num_bytes), stamp, *file.sidecars, "\n"))))
    return digest.hexdigest()[:32]


def _walk(root: str, below: str, shard_size: int, pool: str) -> Iterator[Find | tuple[File, str]]:
    """Yield what a folder holds, depth first by name: units, notes, and (candidate, its stamp) for loose files."""
    try:
        entries = _list(join(root, below) if below else root)
    except OSError as error:
        raise BadInput(f"{join(root, below)}: cannot be listed ({why(error)}).") from None
    files = {entry.name for entry in entries if not entry.is_folder}
    folders = {entry.name for entry in entries if entry.is_folder}
    # A sidecar belongs to photo.jpg as photo.txt or as photo.jpg.txt.
    owners = {owner for name in files if not name.endswith(SIDECARS) for owner in (name, _stem(name))}
    sidecars = {name for name in files if name.endswith(SIDECARS) and _stem(name) in owners}
    for entry in entries:
        name = below + entry.name
        if entry.is_folder:
            if entry.path == pool:
                continue
            if "://" not in entry.path and Path(entry.path).is_symlink():
                yield f"{entry.path}: left aside, it is a link to a folder; name its target as a source of its own."
                continue
            yield from _walk(root, f"{name}/", shard_size, pool)
        elif _suffix(entry.name) == ".tar":
            yield _tar_unit(entry)
        elif _is_metadata(entry.name, files, folders):
            continue
        elif _suffix(entry.name) == ".parquet":
            yield from _parquet_units(entry, shard_size)
        elif _suffix(entry.name) in _ARCHIVES:
            yield f"{entry.path}: left aside, it is compressed; unpack it first."
        elif entry.name not in sidecars:
            own = sorted({_stem(entry.name) + end for end in SIDECARS} | {entry.name + end for end in SIDECARS})
            found = tuple(below + sidecar for sidecar in own if sidecar in sidecars)
            yield File(name, entry.num_bytes, found), entry.stamp


def _is_metadata(name: str, files: set[str], folders: set[str]) -> bool:
    """Whether a file is what img2dataset writes about a shard: X.parquet or X_stats.json beside X.tar or folder X."""
    for end in ("_stats.json", ".parquet"):
        shard = name.removesuffix(end)
        if shard != name and (f"{shard}.tar" in files or shard in folders):
            return True
    return name.endswith("_stats.json") and name.replace("_stats.json", ".parquet") in files


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path a file costs more than its listing


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122
