"""Sift one unit of the crawl: what can be kept goes into a tar, what cannot is listed with its reason.

This is the part of ingest that runs in parallel; it knows one unit only, so duplicates of other units are still in.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from pipelines.candidate import Limits, examine, foreign_images
from pipelines.crawl import Unit
from pipelines.manifest import key_of
from pipelines.places import Place
from pipelines.records import read
from pipelines.reject import Reason, Reject
from pipelines.shards import ShardWriter

_SUFFIX = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")  # of a sidecar that can be a member of a tar of ours


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


class Rejected(NamedTuple):
    """A row of the rejects in the making."""

    row: int
    member: str
    reason: Reason
    detail: str
    digest: bytes = b""  # of a duplicate, to name the image that it repeats


class Sifted(NamedTuple):
    """A unit as a shard that waits to be committed: the tar, its rows and its rejects, kept + rejected = read."""

    tar: Place
    num_read: int
    kept: list[Kept]
    rejected: list[Rejected]


def sift(unit: Unit, number: int, work: Path, limits: Limits) -> Sifted:
    """Read one unit and write what can be kept of it as shard `number`, to a tar below `work`."""
    path = work / f"{number:05d}.tar"
    kept: list[Kept] = []
    rejected: list[Rejected] = []
    digests = set[bytes]()
    num_read = 0
    with ShardWriter(path) as tar, foreign_images():
        for row, (member, content, sidecars) in enumerate(read(unit, limits.max_bytes)):
            num_read += 1
            if isinstance(content, Reject):
                rejected.append(Rejected(row, member, *content))
                continue
            digest = hashlib.sha256(content).digest()
            if digest in digests:
                rejected.append(Rejected(row, member, Reason.DUPLICATE, "", digest))
                continue
            found = examine(content, sidecars.get("json"), limits)
            if isinstance(found, Reject):
                rejected.append(Rejected(row, member, *found))
                continue
            digests.add(digest)
            key, start = key_of(number, row), tar.position
            offset = tar.add(f"{key}.{found.format}", content)
            for suffix, text in sidecars.items():
                if _SUFFIX.fullmatch(suffix):
                    tar.add(f"{key}.{suffix}", text)
            kept.append(Kept(row, key, member, *found, digest, offset, len(content), start, tar.position))
    assert len(kept) + len(rejected) == num_read
    return Sifted(path, num_read, kept, rejected)
