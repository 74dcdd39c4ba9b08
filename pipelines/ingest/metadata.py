"""Reads the tables that describe the images of a folder: `metadata.jsonl`, `.csv` or `.parquet` of Hugging Face.

A row names its image in `file_name`, relative to the table's folder. Rows are found by a digest of that name, 16 bytes
of memory each, beside the table itself.
"""

import csv
import hashlib
import io
import json
import mmap
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.ingest.columns import as_json, described, values
from pipelines.ingest.listing import open_source
from pipelines.ingest.sidecars import composed

_NAMES = ("file_name", "image_file_name", "image")  # fields that name the image


@lru_cache(maxsize=8)  # the sources are looked at twice
def complaint(path: str, stamp: str) -> str | None:
    """What is wrong with a table: rows that are of no image. The `stamp` tells one version of a table from another."""
    listing = Listing.open(path, stamp)
    if not listing.num_rows:
        return f"{path}: not used, none of its rows names an image in a column file_name."
    folder = os.path.dirname(path)  # noqa: PTH120 - a Path refuses some of the names that a table may hold
    missing = 0 if "://" in path else sum(not os.path.exists(f"{folder}/{name}") for name in listing.names())  # noqa: PTH110
    said = [
        f"{count:,} of {listing.num_lines:,} rows {what}"
        for count, what in (
            (listing.num_lines - listing.num_rows, "name no image"),
            (missing, "name a file that is not there"),
        )
        if count
    ]
    return f"{path}: {' and '.join(said)}." if said else None


class Listing:
    """The rows of one table as lines of JSON, by the name of their image."""

    def __init__(self, text: bytes | mmap.mmap) -> None:
        self._text = text
        digests, starts, start = [], [], 0
        self.num_lines = 0  # that are not empty
        while start < len(text):
            end = text.find(b"\n", start)
            end = len(text) if end < 0 else end
            line = text[start:end]
            self.num_lines += bool(line.strip())
            if name := _name(line):
                digests.append(_digest(name))
                starts.append(start)
            start = end + 1
        order = np.argsort(np.array(digests, np.uint64), kind="stable")
        self._digests: npt.NDArray[np.uint64] = np.array(digests, np.uint64)[order]
        self._starts: npt.NDArray[np.int64] = np.array(starts, np.int64)[order]

    @staticmethod
    @lru_cache(maxsize=4)
    def open(path: str, stamp: str = "") -> "Listing":
        """Open a table, once in each process and for each `stamp`. One that cannot be read has no rows."""
        try:
            return Listing(_lines(path))
        except (ValueError, pa.ArrowException, csv.Error, RecursionError):
            return Listing(b"")

    @property
    def num_rows(self) -> int:
        """Number of rows that name an image."""
        return len(self._starts)

    def names(self) -> Iterator[str]:
        """Names of the images, in no order."""
        for start in self._starts.tolist():
            end = self._text.find(b"\n", start)
            yield _name(self._text[start : end if end >= 0 else len(self._text)]) or ""

    def row(self, name: str) -> bytes | None:
        """The row of an image as JSON, by its name relative to the table's folder; None without one."""
        name = composed(name.lstrip("/"))
        digest = np.uint64(_digest(name))
        at = int(np.searchsorted(self._digests, digest))
        while at < len(self._digests) and self._digests[at] == digest:
            start = int(self._starts[at])
            end = self._text.find(b"\n", start)
            line = self._text[start : end if end >= 0 else len(self._text)]
            if _name(line) == name:
                return line.strip()
            at += 1
        return None


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _name(line: bytes) -> str | None:
    """Name of the image that a line of JSON describes."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    found = next((str(row[key]) for key in _NAMES if isinstance(row.get(key), str)), None)
    return None if found is None else composed(found.removeprefix("./").lstrip("/"))


def _lines(path: str) -> bytes | mmap.mmap:
    with open_source(path) as file:
        if path.endswith(".jsonl"):
            whole = "://" in path or not Path(path).stat().st_size
            return file.read() if whole else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        rows = _parquet(pq.ParquetFile(file)) if path.endswith(".parquet") else _csv(file.read())
        return b"\n".join(map(as_json, rows))


def _csv(text: bytes) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text.decode("utf-8-sig", "backslashreplace"), newline=""))
    return ({key: value for key, value in row.items() if key is not None} for row in reader)


def _parquet(file: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    names = described(file.schema_arrow, ())
    for batch in file.iter_batches(columns=names):
        columns = [values(batch.column(name)) for name in names]
        yield from (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
