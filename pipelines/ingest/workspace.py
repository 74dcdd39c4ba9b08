"""Reserves a pool for one ingest, and gives it a folder for unfinished shards.

On a disk the pool is locked, and the folder is `pool/.partial`. An object store has no locks: there each ingest has a
folder of its own below `.partial`, which a later ingest removes, and `Workspace.check` notices that.
"""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from pipelines.errors import Incompatible
from pipelines.pool.manifest import INGESTS, KEY_DIGITS, is_pool
from pipelines.storage import locations, locks
from pipelines.storage.atomic import write_json
from pipelines.storage.locations import Location

if TYPE_CHECKING:
    from upath import UPath

_UNFINISHED = ".partial"
_SHARD_FILE = re.compile(rf"(\d{{{KEY_DIGITS}}})(?:\.tar|\.parquet|\.npy)")
_TEMPORARY = re.compile(r"\.(\d+\.parquet|\d+\.npy|\d+_stats\.json|run\.json)\.tmp")  # not renamed before a kill


class Workspace(NamedTuple):
    """Where shards are before they are committed: a local folder and, for a pool on a store, a folder on the store."""

    scratch: Path
    staging: "UPath | None" = None

    def check(self) -> None:
        """Raise Incompatible if a later ingest has removed this one's folder on the store."""
        if self.staging and not locations.exists(self.staging / INGESTS):
            raise Incompatible(
                f"{self.staging.parent.parent}: another ingest into it has begun, so this one has stopped. Run one at "
                "a time; run the same command again to resume."
            )

    def hand_over(self, tar: Path) -> Location:
        """Move a finished tar from this machine to where the process that commits it finds it."""
        if self.staging is None:
            return tar
        staged = self.staging / tar.name
        locations.put(tar, staged)
        tar.unlink()
        return staged


@contextmanager
def reserved(pool: Location) -> Iterator[Workspace]:
    """Reserve a pool, new or existing, for this process.

    Raises Incompatible if `pool` is another kind of folder, or if another process is writing to it.
    """
    if not isinstance(pool, Path):
        with _staging(pool) as staging, TemporaryDirectory(prefix="curate-") as scratch:
            yield Workspace(Path(scratch), staging)
    else:
        with locks.held(pool), _working_folder(pool) as folder:
            yield Workspace(folder)


@contextmanager
def _staging(pool: "UPath") -> Iterator["UPath"]:
    """Yield a folder of our own on the store, after removing those of earlier ingests."""
    found = locations.names(pool)
    if found and _UNFINISHED not in found and not is_pool(pool):
        raise Incompatible(f"{pool}: is not empty and not a pool; give a new location with --pool.")
    locations.remove(pool / _UNFINISHED)
    staging = pool / _UNFINISHED / f"{platform.node()}-{os.getpid()}-{token_hex(4)}"
    write_json(staging / INGESTS, {"host": platform.node(), "process": os.getpid()})
    try:
        yield staging
    finally:
        locations.remove(staging)


@contextmanager
def _working_folder(pool: Path) -> Iterator[Path]:
    """Yield a new folder for unfinished shards, after checking that the pool is one, or empty."""
    unfinished = pool / _UNFINISHED
    if any(pool.iterdir()) and not unfinished.exists() and not is_pool(pool):
        raise Incompatible(f"{pool}: is not empty and not a pool; give a new folder with --pool.")
    shutil.rmtree(unfinished, ignore_errors=True)
    work = unfinished.absolute() / str(os.getpid())
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_unfinished(pool: Location, first: int) -> None:
    """Remove files that a killed run left of shards from number `first` on, and its temporary files."""
    for folder in (pool, pool / "rejects", pool / "files"):
        for name in locations.names(folder):
            match = _SHARD_FILE.fullmatch(name)
            if (match and int(match[1]) >= first) or _TEMPORARY.fullmatch(name):
                locations.remove(folder / name)
