"""Divides a crawl of folders, tars and parquet files into units, each of which becomes one shard of the pool.

The order of the units depends on names alone. Each unit has a fingerprint of its content, so that a later run knows
which units are in the pool already. Nothing but listings and parquet footers is read here.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import braceexpand
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import BadInput, why
from pipelines.ingest.listing import Entry, join, list_folder, local_entry, look_up, open_source
from pipelines.pool.manifest import MAX_SHARDS
from pipelines.storage.locations import Location, without_file_scheme

SIDECARS = (".txt", ".json")
_ARCHIVES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".rar", ".7z")
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes", "content")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A piece of the crawl that becomes one shard of the pool; units of equal `identity` have equal content."""

    source: str  # the tar, the parquet file or the folder: an absolute path or a URL
    part: str  # which part of the source; empty for all of it
    fingerprint: str
    num_bytes: int

    @property
    def identity(self) -> tuple[str, str, str]:
        """What a pool records about the units it is made from."""
        return self.source, self.part, self.fingerprint


class TarUnit(Unit):
    """A tar, with the parquet and `_stats.json` of img2dataset if these are beside it."""

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
"""A unit, or a sentence about something that is skipped."""


def find(sources: Sequence[str], *, shard_size: int, pool: Location) -> Iterator[Find]:
    """Yield the units of all sources in order, and notes on what is skipped; never anything within `pool`.

    A source is a folder, a tar, a parquet file, a brace pattern of these, or @FILE with one of these per line. Each may
    be a local path or an fsspec URL. Folders and parquet files are divided into units of about `shard_size` images.
    Raises BadInput for a source that cannot be used.
    """
    inside = str(pool.resolve())
    for source in _expand(sources):
        if not source.strip():
            raise BadInput("The name of a source is empty; give a folder, a .tar or .parquet file, or @FILE.")
        entry = look_up(source)
        if entry.path == inside or entry.path.startswith(inside + "/"):
            raise BadInput(f"{source}: is the pool itself; name the crawl to be ingested.")
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
            raise BadInput(f"{source}: is compressed; unpack it, or give uncompressed .tar shards.")
        else:
            raise BadInput(f"{source}: is neither a folder nor a .tar or .parquet file; name the folder that holds it.")


def has_changed(unit: Unit) -> bool:
    """Whether the source of a unit has changed or disappeared since the unit was found.

    Files below a remote folder are not checked: that would take one request per file.
    """
    try:
        if not isinstance(unit, FilesUnit):
            entry = look_up(unit.source)
            return unit.fingerprint != f"{entry.num_bytes}-{entry.stamp}"
        if "://" in unit.source:
            return False
        now = [(file, local_entry(Path(join(unit.source, file.name)))) for file in unit.files]
        return unit.fingerprint != _fingerprint((file, entry.num_bytes, entry.stamp) for file, entry in now)
    except (OSError, BadInput):
        return True


# Sources


def _expand(sources: Sequence[str]) -> Iterator[str]:
    for source in sources:
        if not source.startswith("@"):
            yield from _expand_braces(source)
            continue
        try:
            with open_source(without_file_scheme(source[1:])) as file:
                lines = file.read().decode("utf-8-sig").splitlines()  # some editors start files with a BOM
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
        raise BadInput(f"{source}: names more than {MAX_SHARDS} files, and a pool holds at most that many shards.")
    yield from names


# Units


def _tar_unit(entry: Entry) -> TarUnit:
    return TarUnit(
        source=entry.path, part="", fingerprint=f"{entry.num_bytes}-{entry.stamp}", num_bytes=entry.num_bytes
    )


def _parquet_units(entry: Entry, shard_size: int) -> Iterator[Find]:
    """Yield runs of row groups of about `shard_size` rows, or one note if the file holds no images."""
    try:
        with open_source(entry.path) as file:
            parquet = pq.ParquetFile(file)
            column = image_column(parquet.schema_arrow)
            rows = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:  # the last two for names that are not UTF-8
        yield f"{entry.path}: skipped, it cannot be read as parquet ({why(error)})."
        return
    if column is None:
        yield f"{entry.path}: skipped, it has no column of image bytes ({', '.join(_IMAGE_COLUMNS[:4])}, ...)."
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
    """Name of the column with image bytes: Hugging Face's struct of bytes and path, or plain binary; None without one.

    A name that two columns share is ignored, because it is ambiguous.
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
    """Fingerprint of files with their sizes, stamps and sidecars."""
    digest = hashlib.sha256()
    for file, num_bytes, stamp in files:
        digest.update(os.fsencode("\0".join((file.name, str(num_bytes), stamp, *file.sidecars, "\n"))))
    return digest.hexdigest()[:32]


def _walk(root: str, below: str, shard_size: int, pool: str) -> Iterator[Find | tuple[File, str]]:
    """Yield the content of a folder, depth first by name: units, notes, and (candidate, stamp) for loose files."""
    try:
        entries = list_folder(join(root, below) if below else root)
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
                yield f"{entry.path}: skipped, it is a link to a folder; name its target as another source."
                continue
            yield from _walk(root, f"{name}/", shard_size, pool)
        elif _suffix(entry.name) == ".tar":
            yield _tar_unit(entry)
        elif _is_metadata(entry.name, files, folders):
            continue
        elif _suffix(entry.name) == ".parquet":
            yield from _parquet_units(entry, shard_size)
        elif _suffix(entry.name) in _ARCHIVES:
            yield f"{entry.path}: skipped, it is compressed; unpack it first."
        elif entry.name not in sidecars:
            own = sorted({_stem(entry.name) + end for end in SIDECARS} | {entry.name + end for end in SIDECARS})
            found = tuple(below + sidecar for sidecar in own if sidecar in sidecars)
            yield File(name, entry.num_bytes, found), entry.stamp


def _is_metadata(name: str, files: set[str], folders: set[str]) -> bool:
    """Whether a file is img2dataset's record of a shard: X.parquet or X_stats.json beside X.tar or folder X."""
    for end in ("_stats.json", ".parquet"):
        shard = name.removesuffix(end)
        if shard != name and (f"{shard}.tar" in files or shard in folders):
            return True
    return name.endswith("_stats.json") and name.replace("_stats.json", ".parquet") in files


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path for each file takes longer than its listing


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122
