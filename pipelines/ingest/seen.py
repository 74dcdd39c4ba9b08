"""Remembers which images a pool holds, by digest: on disk, so that memory does not grow with the pool.

And which records, so that a crawl that is read again because it was copied leaves no second record of itself.
"""

import errno
import hashlib
import os
import sqlite3
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from pipelines.pool.manifest import Pool, read_parquet

_DIGEST_BYTES = 16  # of SHA-256's 32: with probability 2^-65, two different images of a pool of 2^32 share these
_CACHE_KIB = 16 * 1024
_ERRNO = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}


class Digests:
    """Maps the SHA-256 of an image to the key of the first one with it. A scratch file, rebuilt from the manifests."""

    def __init__(self, path: Path) -> None:
        # No other process reads it, nor does any run after a crash, so it needs no journal and no sync.
        self._database = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE images (digest BLOB PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID")
        self._database.execute("BEGIN")  # one transaction, never committed: six times as fast as one per image

    def add(self, digest: bytes, key: str) -> bool:
        """Remember an image; return False if its bytes are known under another key."""
        row = (digest[:_DIGEST_BYTES], key)
        return self._database.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", row).rowcount == 1

    def add_all(self, digests: Iterable[bytes], keys: Iterable[str]) -> None:
        """Remember many images at once; of equal ones, the first is kept."""
        rows = ((digest[:_DIGEST_BYTES], key) for digest, key in zip(digests, keys, strict=True))
        self._database.executemany("INSERT OR IGNORE INTO images VALUES (?, ?)", rows)

    def key(self, digest: bytes) -> str:
        """Key of the first image with this digest, which must be known."""
        found = self._database.execute("SELECT key FROM images WHERE digest = ?", (digest[:_DIGEST_BYTES],)).fetchone()
        return str(found[0])

    def __enter__(self) -> Self:
        """Start looking up."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file. An error of SQLite that the disk caused is raised as OSError."""
        self._database.close()
        if isinstance(error, sqlite3.OperationalError) and (number := _ERRNO.get(error.sqlite_errorcode & 0xFF)):
            raise OSError(number, os.strerror(number)) from error


_KEPT = ("member", "sha256", "caption", "url")
_REJECTED = ("member", "reason", "detail", "caption")


class Records:
    """The records that a pool holds, kept or rejected, by a digest of 8 bytes; read when they are first asked for."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._later: list[int] = []  # added before they were asked for

    @cached_property
    def _digests(self) -> set[int]:
        found = set(self._later)
        for shard in self._pool.shards:
            rejects = read_parquet(self._pool.root / "rejects" / f"{shard}.parquet")
            for rows, columns in ((self._pool.rows(shard, _KEPT), _KEPT), (rejects, _REJECTED)):
                found.update(self._digest(*row) for row in zip(*_columns(rows, columns), strict=True))
        return found

    @staticmethod
    def _digest(*parts: str | None) -> int:
        text = "\0".join(part or "" for part in parts)
        return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())

    def has(self, *parts: str | None) -> bool:
        """Whether a record is known: (member, sha256, caption, url) or (member, reason, detail, caption)."""
        return self._digest(*parts) in self._digests

    def add(self, *parts: str | None) -> None:
        """Remember a record, given as to `has`."""
        digest = self._digest(*parts)
        if "_digests" in self.__dict__:
            self._digests.add(digest)
        else:
            self._later.append(digest)


def _columns(rows: pa.Table, names: Iterable[str]) -> list[list[str | None]]:
    empty: list[str | None] = [None] * rows.num_rows
    found: list[list[str | None]] = []
    for name in names:
        found.append(rows[name].to_pylist() if name in rows.column_names else empty)
    return found
