"""Knows what a pool was made from, so that the same crawl is not read again when it was moved or has grown.

A tar, a row group and a run of files are known by their content's fingerprint, wherever they lie. A loose file is known
by its path, size and time, in `pool/files/SHARD.npy`. What is read again all the same, because it was copied or
touched, is recognized by its content (`ingest.seen`).
"""

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.errors import CorruptShard
from pipelines.pool.manifest import Pool
from pipelines.storage import locations

Identity = Sequence[str]  # source, part, fingerprint
Digests = npt.NDArray[np.uint64]


class Known:
    """The units, rows and files that a pool holds, in memory: 8 bytes for each loose file."""

    def __init__(self, units: Iterable[Identity], files: Sequence[Digests] = ()) -> None:
        self._units = set[str]()
        self._rows = defaultdict[str, list[tuple[int, int]]](list)
        self._files = np.unique(np.concatenate([np.zeros(0, np.uint64), *files]))
        for unit in units:
            self.add(unit)

    def add(self, unit: Identity) -> None:
        """Remember a unit."""
        _, part, fingerprint = unit
        kind, _, rows = part.partition(" ")
        if kind == "rows":
            first, _, last = rows.partition("-")
            self._rows[fingerprint].append((int(first), int(last)))
        else:
            self._units.add(fingerprint)

    def has(self, unit: Identity) -> bool:
        """Whether a unit of the same content is known."""
        _, part, fingerprint = unit
        kind, _, rows = part.partition(" ")
        if kind != "rows":
            return fingerprint in self._units
        first, _, last = rows.partition("-")
        return self.has_rows(fingerprint, int(first), int(last))

    def has_rows(self, fingerprint: str, first: int, last: int) -> bool:
        """Whether rows of a parquet file are known."""
        return any(start <= first and last <= stop for start, stop in self._rows.get(fingerprint, ()))

    def has_file(self, digest: int) -> bool:
        """Whether a loose file is known, by its `file_digest`."""
        at = int(np.searchsorted(self._files, np.uint64(digest)))
        return at < len(self._files) and int(self._files[at]) == digest


NOTHING = Known(())


def file_digest(*parts: object) -> int:
    """Digest of a loose file's path, size and time, and of the names of what belongs to it."""
    text = os.fsencode("\0".join(map(str, parts)))
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def read(pool: Pool) -> tuple[list[Identity], list[Digests]]:
    """Read what the shards of a pool were made from. Raises CorruptShard if one does not say."""
    units, files = list[Identity](), list[Digests]()
    for shard in pool.shards:
        try:
            stats = pool.stats(shard)
            found = [stats["unit"], *stats.get("repeated", ())]
            Known(found)  # checks their form
        except (KeyError, ValueError, TypeError):
            raise CorruptShard(
                f"{pool.root}/{shard}_stats.json: does not say what the shard was made from; "
                f"remove the shard's files and ingest its source again."
            ) from None
        units += found
        if any(part.startswith("files ") for _, part, _ in found):
            files.append(_files(pool, shard))
    return units, files


def _files(pool: Pool, shard: str) -> Digests:
    """Digests of the loose files of a shard; none if they were not recorded: then they are read again."""
    try:
        found = np.load(io.BytesIO(locations.read(pool.files(shard))), allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return np.zeros(0, np.uint64)
    return found if found.dtype == np.uint64 and found.ndim == 1 else np.zeros(0, np.uint64)
