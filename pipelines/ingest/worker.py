"""Sift one unit of the crawl: what can be kept goes into a tar, what cannot is listed with its reason.

This is the part of ingest that runs in parallel; it knows one unit only, so duplicates of other units are still in.

Decoders are C on foreign bytes: one may crash, or never come back, and nothing within its process can stop it. So a
timer ends the process (`signal.setitimer`: the system's, which needs no turn of the interpreter), a mark in a file says
where it was, and the unit is sifted again by another process. Only what ends two in a row is at fault: a
computer that was asleep, or neighbors that took the memory, cost no image.
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
from pipelines.ingest.records import Record, read, unread
from pipelines.ingest.sources import Unit
from pipelines.pool.manifest import key_of
from pipelines.storage.locations import Location
from pipelines.storage.shards import ShardWriter, digest_of_sidecars

_SUFFIX = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")  # of a sidecar that can be a member of a tar of ours
# What `webdataset` and its like would unpickle, and so run, for whoever reads our shards: it stays out.
_PICKLES = {"pkl", "pickle", "pyd", "pth", "pt", "joblib", "dill"}
_UNREADABLE = "reading on from here ends the process, tried twice"


class Kept(NamedTuple):
    """A row of the manifest in the making, and where its sample lies in the tar."""

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


class Rejected(NamedTuple):
    """A row of the rejects in the making."""

    row: int
    member: str
    reason: Reason
    detail: str
    digest: bytes = b""  # of a duplicate, to name the image that it repeats


class Sifted(NamedTuple):
    """A unit as a shard that waits to be committed: the tar, its rows and its rejects, kept + rejected = read."""

    tar: Location
    num_read: int
    kept: list[Kept]
    rejected: list[Rejected]


class Task(NamedTuple):
    """A unit to be sifted as shard `number`, with what is known of it from processes that it has ended."""

    number: int
    unit: Unit
    lost: Mapping[int, Reject]  # rows not to decode, and why
    stop: int | None = None  # the row from which on the source cannot be read
    has_ended: bool = False  # a process, once
    ended_at: int | None = None  # where in the unit, as `_Mark` says it; None before its beginning


def sift(task: Task, work: Path, limits: Limits, max_seconds: float) -> Sifted:
    """Read one unit and write what can be kept of it, to a tar below `work`.

    SIGALRM ends this process if one image takes more than `max_seconds`; `after_the_end` then says what to do.
    """
    kept: list[Kept] = []
    rejected: list[Rejected] = []
    digests = set[bytes]()
    lost = dict[bytes, Reject]()
    num_read = 0
    path = work / f"{task.number:05d}.tar"
    with ShardWriter(path) as tar, foreign_images(), _silence(), _Mark(_mark_of(work, task.number)) as mark:
        for row, (member, content, sidecars) in mark.over(islice(read(task.unit, limits.max_bytes), task.stop)):
            num_read += 1
            if isinstance(content, Reject):
                rejected.append(Rejected(row, member, *content))
                continue
            digest = hashlib.sha256(content).digest()
            if digest in digests:
                rejected.append(Rejected(row, member, Reason.DUPLICATE, "", digest))
                continue
            if row in task.lost:
                lost[digest] = task.lost[row]  # for its copies, too
            mark.examining(row)
            found = lost.get(digest) or _examine_in_time(content, sidecars.get("json"), limits, max_seconds)
            if isinstance(found, Reject):
                rejected.append(Rejected(row, member, *found))
                continue
            digests.add(digest)
            key, start = key_of(task.number, row), tar.position
            offset = tar.add(f"{key}.{found.format}", content)
            beside = [(suffix, text) for suffix, text in sidecars.items() if _may_stand_beside(suffix)]
            for suffix, text in beside:
                tar.add(f"{key}.{suffix}", text)
            place = (offset, len(content), start, tar.position)
            kept.append(Kept(row, key, member, *found, digest, *place, digest_of_sidecars(beside)))
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
    """Keep what C libraries print away from the terminal: libtiff has a line for each bad code word of a file."""
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


# Where a process ended, and what is to be done about it


class _Mark:
    """Where in its unit this process is, in a file, so that it is known should the process end there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._map = mmap(file.fileno(), 8)
        self._word = memoryview(self._map).cast("q")  # the row that is decoded, or ~ the row that is read

    def examining(self, row: int) -> None:
        self._word[0] = row

    def over(self, records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        """Number the records, with the mark on each while it is read."""
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


def _mark_of(work: Path, number: int) -> Path:
    return work / f"{number:05d}.mark"


def after_the_end(work: Path, max_seconds: float, task: Task, exit_code: int) -> Task:
    """Say how to go on where `task` has ended its process: once as before, the second time without what ended it.

    Raises CurateError where it ended before it came to anything, twice.
    """
    path = _mark_of(work, task.number)
    ended_at = int.from_bytes(path.read_bytes(), byteorder, signed=True) if path.exists() else None
    path.unlink(missing_ok=True)
    if not task.has_ended or ended_at != task.ended_at:
        return task._replace(has_ended=True, ended_at=ended_at)
    again = task._replace(has_ended=False, ended_at=None)
    if ended_at is None:
        raise CurateError(
            f"{task.unit.source}: the process that was to read it died twice ({_how(exit_code)}); "
            f"the same command goes on from here, with fewer --jobs it takes less memory."
        )
    if ended_at < 0:
        return again._replace(stop=~ended_at)
    if exit_code == -SIGALRM:
        reject = Reject(Reason.TOO_SLOW, f"not decoded within {max_seconds:g} s, tried twice")
    else:
        reject = Reject(Reason.CRASHED, f"decoding it ends the process ({_how(exit_code)}), tried twice")
    return again._replace(lost={**task.lost, ended_at: reject})


def _how(exit_code: int) -> str:
    if exit_code == NO_MEMORY:
        return "no memory left"
    return Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
