"""Read the records of a unit of the crawl: each is an image's bytes with its sidecars, or why there are none.

Archives are not trusted to be whole: what img2dataset's own metadata promise and the tar does not hold is a reject too.
"""

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

from pipelines.candidate import sniff
from pipelines.crawl import File, FilesUnit, ParquetUnit, TarUnit, Unit, join, open_source
from pipelines.errors import BadInput
from pipelines.reject import Reason, Reject
from pipelines.shards import is_unsafe, read_tar

_IMAGE_SUFFIXES = {
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif"),
    *("jp2", "j2k", "jxl", "ico", "svg", "ppm", "pgm", "pbm", "psd"),
}
_METADATA_SUFFIXES = {"json", "txt", "cls"}
_NOTES = re.compile(r"__[^/]*__($|/)")  # members that WebDataset keeps for itself
_ROWS_AT_ONCE = 64


class Record(NamedTuple):
    """One image of the crawl: its name in the source, its bytes or a Reject, and its sidecars by suffix."""

    member: str
    content: bytes | Reject
    sidecars: Mapping[str, bytes]


def read(unit: Unit, max_bytes: int) -> Iterator[Record]:
    """Yield the records of a unit, in its own order; BadInput where the source as a whole cannot be reached."""
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
            f"{unit.source}: cannot be read ({error.strerror or error}); "
            f"what is in the pool stays, and the same command goes on from here."
        ) from error


# Tars


class _Sample:
    """The members of one WebDataset sample while they pass by."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.images: list[tuple[str, bytes | Reject]] = []
        self.sidecars: dict[str, bytes] = {}
        self.names: list[str] = []

    def add(self, name: str, suffix: str, content: bytes | Reject) -> None:
        self.names.append(name)
        ending = suffix.rpartition(".")[2]
        if isinstance(content, Reject):
            # A cut caption takes nothing from an image that is there; all else must be on record.
            if ending in _METADATA_SUFFIXES and content.reason is Reason.INCOMPLETE_ARCHIVE:
                return
            self.images.append((name, content))
        elif ending in _METADATA_SUFFIXES or not (ending in _IMAGE_SUFFIXES or sniff(content)):
            self.sidecars.setdefault(suffix, content)
        else:
            self.images.append((name, content))

    def records(self) -> Iterator[Record]:
        for name, content in self.images:
            yield Record(name, content, self.sidecars)
        if not self.images and self.names:
            known = any(suffix.rpartition(".")[2] in _METADATA_SUFFIXES for suffix in self.sidecars)
            reason = Reason.NOT_AN_IMAGE if self.sidecars and not known else Reason.MISSING
            yield Record(self.names[0], Reject(reason, f"a sample of {len(self.names)} files, none an image"), {})


def _read_tar(unit: TarUnit | Unit, max_bytes: int) -> Iterator[Record]:
    sample = _Sample("")
    seen = set[str]()
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
            if key != sample.key:
                for record in sample.records():
                    num_records += 1
                    yield record
                sample = _Sample(key)
            seen.add(stem)
            sample.add(name, suffix.lower(), content)
    for record in sample.records():
        num_records += 1
        yield record
    yield from _missing(unit.source.removesuffix(".tar"), seen, num_records, end)


def _missing(shard: str, seen: set[str], num_records: int, end: Reject | None) -> Iterator[Record]:
    """Yield what img2dataset wrote and the tar does not hold; by key, else by number, else that it was cut at all."""
    keys = _promised_keys(f"{shard}.parquet")
    if keys is not None:
        for key in keys:
            if key not in seen:
                yield Record(key, Reject(Reason.MISSING, "in the shard's parquet, not in its tar"), {})
        return
    count = _promised_count(f"{shard}_stats.json")
    if count is not None:
        for number in range(num_records, count):
            detail = f"sample {number + 1} of the {count} that the shard's stats count is not in its tar"
            yield Record("", Reject(Reason.MISSING, detail), {})
    elif end is not None:
        yield Record("", end, {})


def _promised_keys(path: str) -> list[str] | None:
    """Keys that img2dataset says it wrote into a shard; None where its parquet is not there or was never finished."""
    try:
        with open_source(path) as file:
            table = pq.read_table(file, columns=["key", "status"])
    except (OSError, pa.ArrowException):
        return None
    statuses = table["status"].to_pylist()
    return [str(key) for key, status in zip(table["key"].to_pylist(), statuses, strict=True) if status == "success"]


def _promised_count(path: str) -> int | None:
    try:
        with open_source(path) as file:
            return int(json.loads(file.read())["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# Parquet


def _read_parquet(unit: ParquetUnit) -> Iterator[Record]:
    row = unit.first_row
    last = unit.first_row + unit.num_rows
    with open_source(unit.source) as file:
        try:
            # Buffered, for a whole column of images at once could be more than the memory.
            parquet = pq.ParquetFile(file, buffer_size=1 << 20)
            columns = [unit.column, *_plain_columns(parquet.schema_arrow, unit.column)]
            batches = parquet.iter_batches(_ROWS_AT_ONCE, unit.row_groups, columns, use_threads=False)
            for batch in batches:
                for values in batch.to_pylist():
                    yield _row_record(row, values.pop(unit.column), values)
                    row += 1
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # the disk's, not Arrow's about what it read
            for rest in range(row, last):
                detail = f"the parquet file is damaged: {str(error).splitlines()[0]}"
                yield Record(f"row {rest}", Reject(Reason.INCOMPLETE_ARCHIVE, detail), {})


def _plain_columns(schema: pa.Schema, image: str) -> list[str]:
    """Columns that go into a JSON sidecar: numbers, truth values and text."""
    types = pa.types
    return [
        field.name
        for field in schema
        if field.name != image
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


def _row_record(row: int, image: Any, values: dict[str, Any]) -> Record:
    name = f"row {row}"
    if isinstance(image, dict):
        name = image.get("path") or name
        image = image["bytes"]
    if image is None:
        return Record(name, Reject(Reason.MISSING, "no bytes in the image column"), {})
    # JSON knows neither NaN nor infinity.
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
            if isinstance(text, bytes):
                sidecars.setdefault(sidecar.rpartition(".")[2], text)
        yield Record(name, content, sidecars)


def _read_file(folder: str, file: File, max_bytes: int) -> bytes | Reject:
    """Read one file of a folder; what is wrong with it alone is a Reject, what is wrong with the disk an OSError."""
    if is_unsafe(file.name):
        return Reject(Reason.UNSAFE_NAME, "control characters in the name")
    path = join(folder, file.name)
    if file.num_bytes > max_bytes:
        return Reject(Reason.TOO_MANY_BYTES, f"{file.num_bytes} bytes, over the limit of {max_bytes}")
    try:
        if "://" in path:
            system, inner = fsspec.core.url_to_fs(path)
            return bytes(system.cat_file(inner))
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return Reject(Reason.NOT_A_FILE, "a pipe, a socket or a device")
        with Path(path).open("rb") as stream:
            return stream.read(max_bytes + 1)
    except FileNotFoundError:
        return Reject(Reason.MISSING, "a link to nowhere, or gone since the folder was listed")
    except PermissionError:
        return Reject(Reason.UNREADABLE, "permission denied")
