"""Divides a crawl of folders, tars and parquet files into units, each of which becomes one shard of the pool.

The order of the units depends on names alone. Each unit has a fingerprint of its content, so that a later run knows
which units are in the pool already. Nothing but listings and parquet footers is read here.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import braceexpand
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import BadInput, why
from pipelines.ingest import clutter
from pipelines.ingest.columns import IMAGE_COLUMNS, image_columns, text_column
from pipelines.ingest.known import NOTHING, Known, file_digest
from pipelines.ingest.listing import (
    Entry,
    compression,
    fingerprint,
    join,
    list_folder,
    local_entry,
    look_up,
    open_source,
    shown,
)
from pipelines.ingest.metadata import complaint
from pipelines.ingest.sidecars import METADATA, TABLES, composed, owners, split
from pipelines.pool.labeled_files import NOT_OURS
from pipelines.pool.manifest import MAX_SHARDS
from pipelines.storage.locations import Location, without_file_scheme

_ARCHIVES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".rar", ".7z")
_FEW = 8  # files whose names, sizes and times may be those of others by chance


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
    """Whole row groups of a parquet file that holds images in `columns`."""

    columns: tuple[str, ...]
    row_groups: tuple[int, ...]
    first_row: int
    num_rows: int


class File(NamedTuple):
    """A candidate image in a folder, with the files that belong to it; names are relative to the source."""

    name: str
    num_bytes: int
    sidecars: tuple[str, ...]
    metadata: str = ""  # the table that may list it
    digest: int = 0  # of the file as it is listed, with its path (`known.file_digest`)


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesUnit(Unit):
    """A run of files below a folder."""

    files: tuple[File, ...]


class Skipped(NamedTuple):
    """Files or rows that are in the pool already, as a number of units."""

    num_units: int


Find = Unit | Skipped | str
"""A unit, what is in the pool already, or a sentence about something that is skipped."""


class Look(NamedTuple):
    """How sources are looked at."""

    shard_size: int
    pool: str  # its path, to be left out
    image_column: str | None
    known: Known


def find(
    sources: Sequence[str],
    *,
    shard_size: int,
    pool: Location,
    image_column: str | None = None,
    known: Known = NOTHING,
) -> Iterator[Find]:
    """Yield the units of all sources in order, and notes on what is skipped; never anything within `pool`.

    A source is a folder, a tar, a parquet file, a brace pattern of these, or @FILE with one of these per line. Each may
    be a local path or an fsspec URL. Folders and parquet files are divided into units of about `shard_size` images,
    without the files and rows that are `known`. Raises BadInput for a source that cannot be used.
    """
    look = Look(shard_size, str(pool.resolve()), image_column, known)
    for source in _expand(sources):
        if not source.strip():
            raise BadInput("The name of a source is empty; give a folder, a .tar or .parquet file, or @FILE.")
        entry = look_up(source)
        if entry.path == look.pool or entry.path.startswith(look.pool + "/"):
            raise BadInput(f"{source}: is the pool itself; name the crawl to be ingested.")
        if entry.is_folder:
            yield from _folder_units(entry.path, look)
        elif _suffix(entry.name) in (".tar", ".parquet"):
            units = _tar_units(entry) if _suffix(entry.name) == ".tar" else _parquet_units(entry, look)
            for found in units:
                if isinstance(found, str):
                    raise BadInput(found)
                yield found
        elif _suffix(entry.name) in _ARCHIVES:
            raise BadInput(f"{source}: is compressed; unpack it, or give uncompressed .tar shards.")
        elif container := clutter.kind(entry.name):
            raise BadInput(f"{source}: is not read. {clutter.what_to_do(container)}")
        else:
            raise BadInput(f"{source}: is neither a folder nor a .tar or .parquet file; name the folder that holds it.")


def has_changed(unit: Unit) -> bool:
    """Whether the source of a unit has changed or disappeared since the unit was found.

    Files below a remote folder are not checked: that would take one request per file.
    """
    try:
        if not isinstance(unit, FilesUnit):
            return unit.fingerprint != fingerprint(look_up(unit.source))
        if "://" in unit.source:
            return False
        now = [(file, local_entry(Path(join(unit.source, file.name)))) for file in unit.files]
        listed = [(file, entry.num_bytes, entry.stamp) for file, entry in now]
        return unit.fingerprint != _fingerprint(unit.source, listed)
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


def _tar_units(entry: Entry) -> Iterator[Find]:
    """Yield a tar, or one note if it is none."""
    if "://" not in entry.path and not Path(entry.path).is_file():
        if not os.path.lexists(entry.path):  # it was listed a moment ago
            raise BadInput(
                f"{shown(entry.path)}: cannot be read (No such file or directory). Once the source is complete, run "
                "the same command again to resume."
            )
        yield f"{entry.path}: skipped, it is a link to nowhere, a pipe or a device."
    elif kind := compression(entry.path):
        yield f"{entry.path}: skipped, it is compressed by {kind} although it is called .tar; unpack it first."
    else:
        yield TarUnit(source=entry.path, part="", fingerprint=fingerprint(entry), num_bytes=entry.num_bytes)


def _parquet_units(entry: Entry, look: Look) -> Iterator[Find]:
    """Yield runs of row groups of about `shard_size` rows, or one note if the file holds no images."""
    found = _footer(entry, look.image_column)
    if isinstance(found, str):
        yield f"{shown(entry.path)}: skipped, {found}."
        return
    columns, rows = found
    mark = fingerprint(entry)
    start, groups, first_row, num_known = 0, list[int](), 0, 0
    for group, num_rows in enumerate(rows):
        if look.known.has_rows(mark, start, start + num_rows - 1):
            num_known += num_rows
        else:
            first_row = first_row if groups else start
            groups.append(group)
        start += num_rows
        is_last = group == len(rows) - 1 or look.known.has_rows(mark, start, start + rows[group + 1] - 1)
        if groups and (start - first_row >= look.shard_size or is_last):
            yield ParquetUnit(
                source=entry.path,
                part=f"rows {first_row}-{start - 1}",
                fingerprint=mark,
                num_bytes=entry.num_bytes * len(groups) // len(rows),
                columns=columns,
                row_groups=tuple(groups),
                first_row=first_row,
                num_rows=start - first_row,
            )
            groups = []
    if num_known:
        yield Skipped(-(-num_known // look.shard_size))


def _footer(entry: Entry, named: str | None) -> tuple[tuple[str, ...], list[int]] | str:
    """Columns with images and the number of rows of each row group, or why the file cannot be read."""
    try:
        with open_source(entry.path) as file:
            parquet = pq.ParquetFile(file)
            columns = image_columns(parquet.schema_arrow, named)
            if not columns:
                return _no_images(parquet.schema_arrow, named)
            return columns, [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:  # the last two for names that are not UTF-8
        return f"it cannot be read as parquet ({why(error)})"


def _no_images(schema: pa.Schema, named: str | None) -> str:
    if named is not None:
        return f"it has no column {named!r} of image bytes"
    if (text := text_column(schema)) is not None:
        return f"its column {text!r} is text (paths, URLs or base64), and curate reads images from columns of bytes"
    return f"it has no column of image bytes ({', '.join(IMAGE_COLUMNS[:4])}, ...); name it by --image-column"


class _Clutter(NamedTuple):
    name: str
    kind: str  # see `clutter.kind`


def _folder_units(root: str, look: Look) -> Iterator[Find]:
    """Yield all tars and parquet files below a folder, and its loose files in runs of `shard_size`."""
    run: list[tuple[File, str]] = []
    left_out = clutter.LeftOut()
    start = num_files = num_known = 0
    for found in _walk(root, "", "", look):
        if isinstance(found, _Clutter):
            left_out.add(*found)
        elif not isinstance(found, tuple) or isinstance(found, Skipped):
            yield found
        else:
            num_files += 1
            if look.known.has_file(found[0].digest):
                num_known += 1
                continue
            start = start if run else num_files - 1
            run.append(found)
            if len(run) == look.shard_size:
                yield _files_unit(root, f"files {start}-{num_files - 1}", run)
                run = []
    if run:
        yield _files_unit(root, f"files {start}-{num_files - 1}", run)
    if num_known:
        yield Skipped(-(-num_known // look.shard_size))
    yield from left_out.notes(root)


def _files_unit(root: str, part: str, run: list[tuple[File, str]]) -> FilesUnit:
    return FilesUnit(
        source=root,
        part=part,
        fingerprint=_fingerprint(root, [(file, file.num_bytes, stamp) for file, stamp in run]),
        num_bytes=sum(file.num_bytes for file, _ in run),
        files=tuple(file for file, _ in run),
    )


def _fingerprint(root: str, files: Sequence[tuple[File, int, str]]) -> str:
    """Fingerprint of files with their sizes, stamps and sidecars; with their folder if they are few."""
    digest = hashlib.sha256(os.fsencode(root) if len(files) < _FEW else b"")
    for file, num_bytes, stamp in files:
        digest.update(os.fsencode("\0".join((file.name, str(num_bytes), stamp, *file.sidecars, file.metadata, "\n"))))
    return digest.hexdigest()[:32]


def _walk(root: str, below: str, table: str, look: Look) -> Iterator[Find | _Clutter | tuple[File, str]]:
    """Yield the content of a folder, depth first by name: units, notes, and (candidate, stamp) for loose files.

    `table` lists the images of this folder and those below it, unless they have a table of their own.
    """
    try:
        entries = list_folder(join(root, below) if below else root)
    except OSError as error:
        raise BadInput(f"{join(root, below)}: cannot be listed ({why(error)}).") from None
    files = {entry.name for entry in entries if not entry.is_folder}
    folders = {entry.name for entry in entries if entry.is_folder}
    table = next((below + name for name in TABLES if name in files), table)
    sidecars, taken = _sidecars(files)
    for entry in entries:
        if below + entry.name == table and (note := complaint(entry.path, entry.stamp)):
            yield note
        name, suffix = below + entry.name, _suffix(entry.name)
        if entry.is_folder:
            if entry.path == look.pool or entry.name in NOT_OURS:
                continue
            if "://" not in entry.path and Path(entry.path).is_symlink():
                yield f"{entry.path}: skipped, it is a link to a folder; name its target as another source."
                continue
            yield from _walk(root, f"{name}/", table, look)
        elif suffix == ".tar":
            yield from _tar_units(entry)
        elif suffix == ".parquet" and not _is_record(entry, files, folders, look):
            yield from _parquet_units(entry, look)
        elif suffix == ".parquet" or _is_statistics(entry.name, files, folders) or name == table:
            continue
        elif suffix in _ARCHIVES:
            yield f"{entry.path}: skipped, it is compressed; unpack it first."
        elif entry.name not in taken:
            if (kind := clutter.kind(entry.name)) is not None:
                yield _Clutter(name, kind)
                continue
            own = {*sidecars.get(split(entry.name)[0], ()), *sidecars.get(composed(entry.name), ())}
            file = File(name, entry.num_bytes, tuple(below + each for each in sorted(own)), table)
            digest = file_digest(root, name, entry.num_bytes, entry.stamp, *file.sidecars, table)
            yield file._replace(digest=digest), entry.stamp


def _sidecars(files: set[str]) -> tuple[dict[str, list[str]], set[str]]:
    """Sidecars of a folder's files by the name that owns them, and all of them (`ingest.sidecars`)."""
    described = {name for name in files if split(name)[1] in METADATA}
    images = files - described
    names = {split(name)[0] for name in images} | {composed(name) for name in images}
    owned: dict[str, list[str]] = {}
    for sidecar in described:
        owner = next((name for name, _ in owners(sidecar) if name in names), None)
        if owner is not None:
            owned.setdefault(owner, []).append(sidecar)
    return owned, {sidecar for found in owned.values() for sidecar in found}


def _is_statistics(name: str, files: set[str], folders: set[str]) -> bool:
    """Whether a file is img2dataset's X_stats.json, beside X.tar, X.parquet or the folder X."""
    shard = name.removesuffix("_stats.json")
    return shard != name and (f"{shard}.tar" in files or f"{shard}.parquet" in files or shard in folders)


def _is_record(entry: Entry, files: set[str], folders: set[str], look: Look) -> bool:
    """Whether a parquet file only describes what is beside it: X.parquet of X.tar or the folder X, or a table.

    img2dataset leaves X_stats.json as well; without that the file is opened, because it may hold images.
    """
    shard = entry.name.removesuffix(".parquet")
    if entry.name not in TABLES and f"{shard}.tar" not in files and shard not in folders:
        return False
    if f"{shard}_stats.json" in files:
        return True
    found = _footer(entry, look.image_column)
    return isinstance(found, str)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path for each file takes longer than its listing
