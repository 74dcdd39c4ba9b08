"""Reads the records of a unit of the crawl: each is an image's bytes with its sidecars, or the reason why it has none.

Tars are read by `ingest.samples`, parquet files by `ingest.rows`, loose files here. Archives may be incomplete: an
image that img2dataset's metadata lists and the tar does not hold is a reject, too.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import BadInput, why
from pipelines.images.rejects import Reason, Reject
from pipelines.ingest.listing import join, shown, store_of
from pipelines.ingest.metadata import Listing
from pipelines.ingest.record import Record
from pipelines.ingest.rows import read_rows, unread_rows
from pipelines.ingest.samples import read_samples
from pipelines.ingest.sidecars import beside, composed, owners, split
from pipelines.ingest.sources import File, FilesUnit, ParquetUnit, Unit
from pipelines.storage.tar import is_unsafe


def read(unit: Unit, max_bytes: int) -> Iterator[Record]:
    """Yield the records of a unit, in its own order. Raises BadInput if the source as a whole cannot be read."""
    try:
        match unit:
            case FilesUnit():
                yield from _read_files(unit, max_bytes)
            case ParquetUnit():
                yield from read_rows(unit)
            case _:
                yield from read_samples(unit, max_bytes)
    except OSError as error:
        raise BadInput(
            f"{shown(unit.source)}: cannot be read ({why(error)}). The pool keeps what it has; "
            "run the same command again to resume."
        ) from error


def unread(unit: Unit, row: int, detail: str) -> Iterator[Record]:
    """Yield rejects for the unreadable rest of a unit from `row` on: one per row if their number is known, else one."""
    if isinstance(unit, ParquetUnit):
        yield from unread_rows(unit, row, detail)
    else:
        yield Record("", Reject(Reason.INCOMPLETE_ARCHIVE, detail), {})


def _read_files(unit: FilesUnit, max_bytes: int) -> Iterator[Record]:
    for file in unit.files:
        name = os.fsencode(file.name).decode("utf-8", "backslashreplace")
        content = _read_file(unit.source, file, max_bytes)
        if isinstance(content, Reject):
            yield Record(name, content, {})
            continue
        yield Record(name, content, _beside(unit.source, file, max_bytes))


def _beside(folder: str, image: File, max_bytes: int) -> dict[str, bytes]:
    """What belongs to an image: files of its name, and its row in the `metadata.jsonl` of its folder."""
    base = image.name.rpartition("/")[2]
    names = (split(base)[0], composed(base))
    found = []
    for sidecar in image.sidecars:
        text = _read_file(folder, File(sidecar, 0, ()), max_bytes)
        if isinstance(text, bytes) and len(text) <= max_bytes:
            name = sidecar.rpartition("/")[2]
            suffix = next(suffix for owner, suffix in owners(name) if owner in names)
            found.append((name, suffix, text))
    if image.metadata:
        listed = Listing.open(join(folder, image.metadata)).row(image.name[len(image.metadata.rpartition("/")[0]) :])
        if listed is not None:
            found.append(("listed.metadata.json", "json", listed))
    return beside(found)


def _read_file(folder: str, file: File, max_bytes: int) -> bytes | Reject:
    """Read one file of a folder. A fault of the file is returned as a Reject; one of the disk is raised as OSError."""
    if is_unsafe(file.name):
        return Reject(Reason.UNSAFE_NAME, "control characters in the name")
    path = join(folder, file.name)
    if file.num_bytes > max_bytes:
        return Reject(Reason.TOO_MANY_BYTES, f"{file.num_bytes} bytes, over the limit of {max_bytes}")
    try:
        if "://" in path:
            system, inner = store_of(path)
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
