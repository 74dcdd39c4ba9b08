"""Sifts one unit of the crawl: images to keep go into a tar, all other records are listed with their reasons.

This is the part of ingest that runs in parallel. It sees only its unit, so duplicates of other units are still in it.

Decoders are C code on untrusted bytes. One may crash or hang, and Python code in the same process cannot stop it. So
each worker records in a file which row it is decoding, and sets a kernel timer (`signal.setitimer`) that kills the
process if decoding hangs. The unit is then sifted again in a new process. A row is rejected only if it kills two
processes in a row, so that a suspended laptop or a memory shortage costs no image.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from mmap import mmap
from pathlib import Path
from signal import ITIMER_REAL, SIGALRM, Signals, setitimer
from sys import byteorder
from typing import NamedTuple, Self

from pipelines.compute.processes import NO_MEMORY
from pipelines.errors import CurateError
from pipelines.images.check import Accepted, Limits, examine, foreign_images
from pipelines.images.rejects import Reason, Reject
from pipelines.ingest.facts import Facts, facts
from pipelines.ingest.record import Record
from pipelines.ingest.records import read, unread
from pipelines.ingest.sources import Unit
from pipelines.pool.manifest import key_of
from pipelines.storage.locations import Location
from pipelines.storage.shards import ShardWriter, digest_of_sidecars

_SUFFIX = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")  # suffixes of sidecars that may go into a shard
# Kept out, because `webdataset` and similar readers would unpickle these, and so run their code.
_PICKLES = {"pkl", "pickle", "pyd", "pth", "pt", "joblib", "dill"}
_UNREADABLE = "reading on from here ends the process, tried twice"


class Kept(NamedTuple):
    """A future row of the manifest, and where its sample lies in the tar."""

    row: int  # among the unit's records
    key: str
    member: str
    format: str
    width: int
    height: int
    phash: int
    declared: str | None
    declared_by: str | None
    digest: bytes  # SHA-256
    offset: int  # of the image's bytes
    num_bytes: int
    start: int  # of the sample's first header
    stop: int
    sidecars: bytes  # their SHA-256
    facts: Facts
    metadata: bytes  # its JSON


class Rejected(NamedTuple):
    """A future row of the rejects."""

    row: int
    member: str
    reason: Reason
    detail: str
    digest: bytes = b""  # of a duplicate, to find the image that it repeats; this and the next two
    caption: str | None = None
    url: str | None = None
    metadata: str | None = None  # its JSON


def duplicate(row: int, member: str, digest: bytes, facts: Facts, metadata: bytes) -> Rejected:
    """A record with the bytes of another image, with what the crawl says of it."""
    text = metadata.decode("utf-8", "backslashreplace") or None
    return Rejected(row, member, Reason.DUPLICATE, "", digest, facts.caption, facts.url, text)


class Sifted(NamedTuple):
    """A unit as a shard that is not committed yet: its tar, rows and rejects; kept + rejected = read."""

    tar: Location
    num_read: int
    kept: list[Kept]
    rejected: list[Rejected]


class Task(NamedTuple):
    """A unit to be sifted as shard `number`, with what is known from processes that died of it."""

    number: int
    unit: Unit
    fatal: Mapping[int, Reject]  # rows not to decode, because they kill the process
    stop: int | None = None  # the first row that kills the process while it is read
    has_died: bool = False  # a process, once since the last change of `fatal` or `stop`
    died_at: int | None = None  # its row, as in `progress_file`; None before the first row


def sift(task: Task, work: Path, limits: Limits, max_seconds: float, caption_column: str | None = None) -> Sifted:
    """Read one unit and write the images to keep to a tar in the folder `work`.

    SIGALRM kills this process if one image takes longer than `max_seconds`; then run what `after_death` returns.
    """
    kept: list[Kept] = []
    rejected: list[Rejected] = []
    digests = set[bytes]()
    fatal = dict[bytes, Reject]()  # by digest
    num_read = 0
    path = work / f"{task.number:05d}.tar"
    with ShardWriter(path) as tar, foreign_images(), _silence(), _Progress(progress_file(work, task.number)) as at:
        for row, (member, content, sidecars) in at.over(islice(read(task.unit, limits.max_bytes), task.stop)):
            num_read += 1
            if isinstance(content, Reject):
                rejected.append(Rejected(row, member, *content))
                continue
            digest = hashlib.sha256(content).digest()
            if digest in digests:
                said = facts(member, sidecars, caption_column)
                rejected.append(duplicate(row, member, digest, said, sidecars.get("json", b"")))
                continue
            if row in task.fatal:
                fatal[digest] = task.fatal[row]  # also rejects its copies
            at.examining(row)
            found = fatal.get(digest) or _examine_in_time(content, sidecars.get("json"), limits, max_seconds)
            if isinstance(found, Reject):
                rejected.append(Rejected(row, member, *found))
                continue
            digests.add(digest)
            key, start = key_of(task.number, row), tar.position
            offset = tar.add(f"{key}.{found.format}", content)
            beside = [(suffix, text) for suffix, text in sidecars.items() if _may_stand_beside(suffix)]
            for suffix, text in beside:
                tar.add(f"{key}.{suffix}", text)
            span = (offset, len(content), start, tar.position)
            said = facts(member, sidecars, caption_column)
            kept.append(
                Kept(
                    row, key, member, *found, digest, *span, digest_of_sidecars(beside), said, sidecars.get("json", b"")
                )
            )
    if task.stop is not None:
        for row, (member, content, _) in enumerate(unread(task.unit, task.stop, _UNREADABLE), num_read):
            num_read += 1
            assert isinstance(content, Reject)
            rejected.append(Rejected(row, member, *content))
    assert len(kept) + len(rejected) == num_read
    return Sifted(path, num_read, kept, rejected)


def _may_stand_beside(suffix: str) -> bool:
    return bool(_SUFFIX.fullmatch(suffix)) and _PICKLES.isdisjoint(suffix.split("."))


@contextmanager
def _silence() -> Iterator[None]:
    """Discard what C libraries print on stderr: libtiff prints a line for each bad code word of a file."""
    before = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _examine_in_time(content: bytes, metadata: bytes | None, limits: Limits, seconds: float) -> Accepted | Reject:
    setitimer(ITIMER_REAL, seconds)
    try:
        return examine(content, metadata, limits)
    finally:
        setitimer(ITIMER_REAL, 0)


# Processes that die


class _Progress:
    """A file with the row that this process is at, which is still there after the process has died."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._map = mmap(file.fileno(), 8)
        self._word = memoryview(self._map).cast("q")  # the row that is decoded, or ~ the row that is read

    def examining(self, row: int) -> None:
        self._word[0] = row

    def over(self, records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        """Number the records, and note each while it is read."""
        row = 0
        self._word[0] = ~row
        for record in records:
            yield row, record
            row += 1
            self._word[0] = ~row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._word.release()
        self._map.close()
        if kind is None:
            self._path.unlink()


def progress_file(work: Path, number: int) -> Path:
    """File that says, as a native 64-bit integer, which row the unit of shard `number` is at: decoded, or ~ read."""
    return work / f"{number:05d}.progress"


def after_death(work: Path, max_seconds: float, task: Task, exit_code: int) -> Task:
    """Return the task to run after `task` has killed its process.

    The first time it is the same task, the second time the task without the row that killed both processes. Raises
    CurateError if both died before the first row.
    """
    path = progress_file(work, task.number)
    died_at = int.from_bytes(path.read_bytes(), byteorder, signed=True) if path.exists() else None
    path.unlink(missing_ok=True)
    if not task.has_died or died_at != task.died_at:
        return task._replace(has_died=True, died_at=died_at)
    again = task._replace(has_died=False, died_at=None)
    if died_at is None:
        raise CurateError(
            f"{task.unit.source}: two processes died before reading it ({_cause_of_death(exit_code)}). "
            "Run the same command again to resume; fewer --jobs take less memory."
        )
    if died_at < 0:
        return again._replace(stop=~died_at)
    if exit_code == -SIGALRM:
        reject = Reject(Reason.TOO_SLOW, f"not decoded within {max_seconds:g} s, tried twice")
    else:
        reject = Reject(Reason.CRASHED, f"decoding it ends the process ({_cause_of_death(exit_code)}), tried twice")
    return again._replace(fatal={**task.fatal, died_at: reject})


def _cause_of_death(exit_code: int) -> str:
    if exit_code == NO_MEMORY:
        return "no memory left"
    return Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
