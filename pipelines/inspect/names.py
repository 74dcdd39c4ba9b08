"""Finds images of a pool by their names in the crawl: the member's name, its last part, or that without suffix."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import BadInput, MissingArtifact
from pipelines.pool.manifest import Pool, read_parquet
from pipelines.run.scores import ScoredPool

_MOST = 5  # keys that are listed


def find(names: Sequence[str], scored: ScoredPool) -> dict[str, str]:
    """Key of the image of each name that one image has, from one pass over the manifests.

    Raises BadInput for a name that several images have, or a rejected one; MissingArtifact for one without scores.
    """
    if not names:
        return {}
    found: dict[str, list[str]] = {}
    for shard in scored.pool.shards:
        rows = scored.pool.rows(shard, ["key", "member", "crawl_key"])
        for name, row in _matches(rows, names):
            found.setdefault(name, []).append(rows["key"][row].as_py())
    for name, keys in found.items():
        if len(keys) > 1:
            listed = ", ".join(keys[:_MOST]) + (", ..." if len(keys) > _MOST else "")
            raise BadInput(f"{name}: {len(keys)} images have this name in the crawl ({listed}). Give one of the keys.")
        if keys[0][:5] in scored.unscored:
            raise MissingArtifact(f"{name}: its shard has no scores in {scored.run} yet; run `curate score` first.")
    for name in names:
        if name not in found and (why := _rejected(name, scored.pool)):
            raise BadInput(f"{name}: {why}.")
    return {name: keys[0] for name, keys in found.items()}


def _matches(rows: pa.Table, names: Sequence[str]) -> list[tuple[str, int]]:
    """(name, row) of the rows that one of the names fits."""
    wanted = pa.array(names, pa.string())
    last = pc.replace_substring_regex(rows["member"], r".*/", "")
    columns = [rows["member"], last, *([rows["crawl_key"]] if "crawl_key" in rows.column_names else [])]
    masks = [pc.is_in(column, value_set=wanted) for column in columns]
    hits = (
        [row for row in range(rows.num_rows) if any(mask[row].as_py() for mask in masks)]
        if any(pc.any(mask).as_py() for mask in masks)
        else []
    )
    return [(name, row) for row in hits for name in names if any(column[row].as_py() == name for column in columns)]


def _rejected(name: str, pool: Pool) -> str | None:
    """Why an image of the crawl is not in the pool."""
    for shard in pool.shards:
        rows = read_parquet(pool.root / "rejects" / f"{shard}.parquet", ["member", "reason", "detail"])
        for _, row in _matches(rows, [name]):
            reason, detail = rows["reason"][row].as_py(), rows["detail"][row].as_py()
            return f"was rejected: {reason.replace('_', ' ')}" + (f" ({detail})" if detail else "")
    return None
