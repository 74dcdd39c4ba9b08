"""Remembers which images a pool holds, by digest: on disk, so that memory does not grow with the pool."""

import errno
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

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
