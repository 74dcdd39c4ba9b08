"""Which folder of a run keeps the scores of a pool.

    run/pool.json       the pool that run/ itself keeps the scores of: the one that was trained on, or else scored first
    run/pools/ID/       scores/, embeddings/, index/, thresholds.json, ... of another pool; ID is its identity

A pool is known by its first images, wherever it lies: its identity is the digest of the manifest of its first shard
that holds an image. So it stays the same pool when it is moved and when it grows.
"""

import json
from pathlib import Path

from pipelines.errors import CorruptShard
from pipelines.pool.manifest import Pool
from pipelines.storage.atomic import make_folder, write_json

FILE = "pool.json"


def folder(run: Path, pool: Pool) -> Path:
    """Folder of a run for the scores of a pool, whether it has any or not: `run` itself or run/pools/ID."""
    owner = _owner(run / FILE)
    if owner is None or owner == (identity := pool.identity):
        return run
    return run / "pools" / identity


def claim(run: Path, pool: Pool) -> Path:
    """Make the `folder` of a pool and put on record whose it is; a run without a pool becomes that of this one."""
    chosen = folder(run, pool)
    make_folder(chosen)
    if _owner(chosen / FILE) is None:
        give(chosen, pool)
    return chosen


def give(run: Path, pool: Pool) -> None:
    """Put on record that a folder is that of a pool, whatever it was before."""
    write_json(run / FILE, {"pool": str(pool.root), "identity": pool.identity})


def _owner(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_bytes())["identity"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise CorruptShard(
            f"{path} does not say which pool the run is of. Remove it, and score the pool that was trained on first."
        ) from None
