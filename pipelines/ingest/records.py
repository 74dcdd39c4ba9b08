"""Reads the records of a unit of the crawl: each is an image's bytes with its sidecars, or the reason why it has none.

Archives may be incomplete: an image that img2dataset's metadata lists and the tar does not hold is a reject, too.
"""

import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import BadInput, first_line, why
from pipelines.images.formats import sniff
from pipelines.images.rejects import Reason, Reject
from pipelines.ingest.listing import join, open_source
from pipelines.ingest.sources import File, FilesUnit, ParquetUnit, TarUnit, Unit
from pipelines.storage.tar import is_unsafe, read_tar

_IMAGE_SUFFIXES = {
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif"),
    *("jp2", "j2k", "jxl", "ico", "svg", "ppm", "pgm", "pbm", "psd"),
}
_METADATA_SUFFIXES = {"json", "txt", "cls"}
_NOTES = re.compile(r"__[^/]*__($|/)")  # members that WebDataset reserves for itself
_ROWS_AT_ONCE = 64
_MAX_AT_ONCE = 1000  # members of one sample in memory
_MAX_LABEL = 4096  # characters of a path in a parquet file
_MAX_UNREAD = 100_000  # rejects for images that are only listed: numbers in metadata may be absurd


class Record(NamedTuple):
    """One image of the crawl: its name in the source, its bytes or a Reject, and its sidecars by suffix."""

    member: str
    content: bytes | Reject
    sidecars: Mapping[str, bytes]


def read(unit: Unit, max_bytes: int) -> Iterator[Record]:
    """Yield the records of a unit, in its own order. Raises BadInput if the source as a whole cannot be read."""
    try:
        match unit:
            case FilesUnit():
                yield from _read_files(unit, max_bytes)
            case ParquetUnit():
                yield from _read_parquet(unit)
            case _:
                yield from _read_tar(unit, max_bytes)
    except OSError as error:
        raise BadInput(
            f"{unit.source}: cannot be read ({why(error)}). The pool keeps what it has; "
            "run the same command again to resume."
        ) from error


# Tars


class _Sample:
    """The members of one WebDataset sample as they are read, at most `max_bytes` of images and of sidecars at once."""

    def __init__(self, key: str, max_bytes: int) -> None:
        self.key = key
        self.images: list[tuple[str, bytes | Reject]] = []
        self.sidecars: dict[str, bytes] = {}
        self.first = ""
        self.num_members = 0
        self._max_bytes = max_bytes
        self._num_bytes = {"images": 0, "sidecars": 0}
        self._has_records = False

    @property
    def is_full(self) -> bool:
        """Whether to yield the images before the end of the sample. Real samples are never that large."""
        return self._num_bytes["images"] > self._max_bytes or len(self.images) >= _MAX_AT_ONCE

    def add(self, name: str, suffix: str, content: bytes | Reject) -> bool:
        """Add a member; return False if it is truncated and leaves no record."""
        self.first = self.first or name
        self.num_members += 1
        ending = suffix.rpartition(".")[2]
        if isinstance(content, Reject):
            # A truncated caption does not affect the image; any other loss must be on record.
            if ending in _METADATA_SUFFIXES and content.reason is Reason.INCOMPLETE_ARCHIVE:
                return False
            self.images.append((name, content))
        elif ending in _METADATA_SUFFIXES or not (ending in _IMAGE_SUFFIXES or sniff(content)):
            if self._num_bytes["sidecars"] + len(content) <= self._max_bytes and len(self.sidecars) < _MAX_AT_ONCE:
                self._num_bytes["sidecars"] += len(content)
                self.sidecars.setdefault(suffix, content)
        else:
            self._num_bytes["images"] += len(content)
            self.images.append((name, content))
        return True

    def records(self) -> Iterator[Record]:
        """Yield the records so far, and drop their images from memory."""
        for name, content in self.images:
            self._has_records = True
            yield Record(name, content, self.sidecars)
        self.images, self._num_bytes["images"] = [], 0
        if not self._has_records and self.num_members:
            known = any(suffix.rpartition(".")[2] in _METADATA_SUFFIXES for suffix in self.sidecars)
            reason = Reason.NOT_AN_IMAGE if self.sidecars and not known else Reason.MISSING
            yield Record(self.first, Reject(reason, f"a sample of {self.num_members} files, none an image"), {})


def _read_tar(unit: TarUnit | Unit, max_bytes: int) -> Iterator[Record]:
    shard = unit.source.removesuffix(".tar")
    promised = _promised_keys(f"{shard}.parquet")  # minus those found
    sample = _Sample("", max_bytes)
    num_records = 0
    end: Reject | None = None
    with open_source(unit.source) as stream:
        for name, content in read_tar(stream, max_bytes):
            if not name:
                assert isinstance(content, Reject)
                end = content
                continue
            folder, _, base = name.rpartition("/")
            if (base.startswith(".") or _NOTES.match(name)) and isinstance(content, bytes):
                continue
            stem, _, suffix = base.partition(".")
            key = f"{folder}/{stem}"
            if key != sample.key or sample.is_full:
                for record in sample.records():
                    num_records += 1
                    yield record
            if key != sample.key:
                sample = _Sample(key, max_bytes)
            if promised:
                promised.pop(stem, None)
            if not sample.add(name, suffix.lower(), content):
                assert isinstance(content, Reject)
                end = content  # no image is truncated, but the tar is
    for record in sample.records():
        num_records += 1
        yield record
    yield from _missing(shard, promised, num_records, end)


def _missing(shard: str, promised: dict[str, None] | None, num_records: int, end: Reject | None) -> Iterator[Record]:
    """Yield rejects for what img2dataset wrote and the tar lacks: by key, else by number, else one for the tar."""
    if promised is not None:
        for key in promised:
            yield Record(key, Reject(Reason.MISSING, "in the shard's parquet, not in its tar"), {})
        return
    count = _promised_count(f"{shard}_stats.json")
    if count is not None and count - num_records <= _MAX_UNREAD:
        for number in range(num_records, count):
            detail = f"sample {number + 1} of the {count} that the shard's stats count is not in its tar"
            yield Record("", Reject(Reason.MISSING, detail), {})
    elif end is not None:
        yield Record("", end, {})


def _promised_keys(path: str) -> dict[str, None] | None:
    """Keys that img2dataset lists as written to a shard.

    None if its parquet is missing or unfinished, or if the parquet of that name was not written by img2dataset.
    """
    try:
        with open_source(path) as file:
            table = pq.read_table(file, columns=["key", "status"])
        statuses = table["status"].to_pylist()
        keys = zip(table["key"].to_pylist(), statuses, strict=True)
        return {str(key): None for key, status in keys if status == "success"}
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def _promised_count(path: str) -> int | None:
    try:
        with open_source(path) as file:
            return int(json.loads(file.read())["successes"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


# Parquet


def _read_parquet(unit: ParquetUnit) -> Iterator[Record]:
    row = 0
    with open_source(unit.source) as file:
        try:
            # Buffered, because a whole column of images might not fit into memory.
            parquet = pq.ParquetFile(file, buffer_size=1 << 20)
            others = _plain_columns(parquet.schema_arrow, unit.column)
            columns = [unit.column, *others]
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, unit.row_groups, columns, use_threads=False):
                images, paths = _images(batch.column(unit.column))
                values = [_values(batch.column(name)) for name in others]
                for image, path, *rest in zip(images, paths, *values, strict=True):
                    name = path or f"row {unit.first_row + row}"
                    yield _row_record(name, image, dict(zip(others, rest, strict=True)))
                    row += 1
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # an error of the disk, not of Arrow about the content
            yield from unread(unit, row, f"the parquet file is damaged: {first_line(error)}")


def unread(unit: Unit, row: int, detail: str) -> Iterator[Record]:
    """Yield rejects for the unreadable rest of a unit from `row` on: one per row if their number is known, else one."""
    reject = Reject(Reason.INCOMPLETE_ARCHIVE, detail)
    if not isinstance(unit, ParquetUnit):
        yield Record("", reject, {})
        return
    for rest in range(row, min(unit.num_rows, row + _MAX_UNREAD)):
        yield Record(f"row {unit.first_row + rest}", reject, {})


def _plain_columns(schema: pa.Schema, image: str) -> list[str]:
    """Columns that go into a JSON sidecar: numbers, booleans and text."""
    types = pa.types
    return [
        field.name
        for field in schema
        if field.name != image
        and schema.names.count(field.name) == 1
        and any(
            is_kind(field.type)
            for is_kind in (
                types.is_integer,
                types.is_floating,
                types.is_boolean,
                types.is_string,
                types.is_large_string,
            )
        )
    ]


def _images(column: pa.Array) -> tuple[list[bytes | None], list[str | None]]:
    """Bytes and path of each row; the path is only a label, and never opened."""
    if not pa.types.is_struct(column.type):
        return column.to_pylist(), [None] * len(column)
    fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    paths = _values(fields["path"]) if "path" in fields else [None] * len(column)
    return fields["bytes"].to_pylist(), [_in_a_line(path) if isinstance(path, str) else None for path in paths]


def _values(column: pa.Array) -> list[Any]:
    """Values of a column as Python objects; text may be invalid UTF-8, in spite of its type."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.to_pylist()  # type: ignore[no-any-return]
    texts = column.cast(pa.large_binary()).to_pylist()
    return [None if text is None else text.decode("utf-8", "backslashreplace") for text in texts]


def _in_a_line(path: str) -> str:
    return "".join(char if char.isprintable() else " " for char in path)[:_MAX_LABEL]


def _row_record(name: str, image: bytes | None, values: dict[str, Any]) -> Record:
    if image is None:
        return Record(name, Reject(Reason.MISSING, "no bytes in the image column"), {})
    # JSON has neither NaN nor infinity.
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
    return Record(name, image, {"json": json.dumps(clean, ensure_ascii=False).encode()} if clean else {})


# Folders


def _read_files(unit: FilesUnit, max_bytes: int) -> Iterator[Record]:
    for file in unit.files:
        name = os.fsencode(file.name).decode("utf-8", "backslashreplace")
        content = _read_file(unit.source, file, max_bytes)
        if isinstance(content, Reject):
            yield Record(name, content, {})
            continue
        sidecars = dict[str, bytes]()
        for sidecar in file.sidecars:
            text = _read_file(unit.source, File(sidecar, 0, ()), max_bytes)
            if isinstance(text, bytes) and len(text) <= max_bytes:
                sidecars.setdefault(sidecar.rpartition(".")[2], text)
        yield Record(name, content, sidecars)


def _read_file(folder: str, file: File, max_bytes: int) -> bytes | Reject:
    """Read one file of a folder. A fault of the file is returned as a Reject; one of the disk is raised as OSError."""
    if is_unsafe(file.name):
        return Reject(Reason.UNSAFE_NAME, "control characters in the name")
    path = join(folder, file.name)
    if file.num_bytes > max_bytes:
        return Reject(Reason.TOO_MANY_BYTES, f"{file.num_bytes} bytes, over the limit of {max_bytes}")
    try:
        if "://" in path:
            system, inner = fsspec.core.url_to_fs(path)
            if file.num_bytes:
                return bytes(system.cat_file(inner))
            with system.open(inner, "rb") as stream:  # empty, or of unknown size, maybe endless
                return bytes(stream.read(max_bytes + 1))
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return Reject(Reason.NOT_A_FILE, "a pipe, a socket or a device")
        with Path(path).open("rb") as stream:
            return stream.read(max_bytes + 1)
    except FileNotFoundError:
        return Reject(Reason.MISSING, "a link to nowhere, or gone since the folder was listed")
    except PermissionError:
        return Reject(Reason.UNREADABLE, "permission denied")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return Reject(Reason.MISSING, "a link that leads to itself")
