"""Commits a sifted unit to the pool as its next shard, without images that earlier shards hold.

The files of a shard are written in a fixed order, `_stats.json` last: the shard is finished once that exists.
"""

import hashlib
import os
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.images.provenance import NOT_READ
from pipelines.images.rejects import Reason
from pipelines.ingest.seen import Digests
from pipelines.ingest.sources import Unit
from pipelines.ingest.worker import Kept, Rejected, Sifted
from pipelines.pool.manifest import KEY_DIGITS, POOL_SCHEMA, REJECT_SCHEMA
from pipelines.storage import locations
from pipelines.storage.atomic import make_folder, publish, replacing, write_json
from pipelines.storage.locations import Location
from pipelines.storage.shards import ShardWriter


def commit(sifted: Sifted, unit: Unit, number: int, pool: Location, digests: Digests) -> Counter[str]:
    """Write shard `number` from a sifted unit, and add its images to `digests`.

    Return counts: "shards", "read", "kept", "rejected:REASON" and "declared:ORIGIN".
    """
    shard = f"{number:0{KEY_DIGITS}d}"
    fresh = [image for image in sifted.kept if digests.add(image.digest, image.key)]
    rejected = list(sifted.rejected)
    tar = sifted.tar
    if len(fresh) < len(sifted.kept):
        is_fresh = {image.row for image in fresh}
        repeated = [image for image in sifted.kept if image.row not in is_fresh]
        rejected += [Rejected(image.row, image.member, Reason.DUPLICATE, "", image.digest) for image in repeated]
        tar, fresh = _without_duplicates(tar, fresh)
    rejected.sort(key=lambda record: record.row)
    assert len(fresh) + len(rejected) == sifted.num_read

    publish(tar, pool / f"{shard}.tar")
    _write_table(pool / f"{shard}.parquet", _manifest(fresh, shard, unit.source))
    make_folder(pool / "rejects")
    _write_table(pool / "rejects" / f"{shard}.parquet", _rejects(rejected, unit.source, digests))
    write_json(pool / f"{shard}_stats.json", _stats(fresh, rejected, unit))
    counts = Counter(f"rejected:{record.reason}" for record in rejected)
    counts.update(f"declared:{image.declared}" for image in fresh if image.declared)
    counts.update(f"declared:{NOT_READ}" for image in fresh if image.declared_by == NOT_READ)
    counts.update({"shards": 1, "read": sifted.num_read, "kept": len(fresh)})
    return counts


def _without_duplicates(tar: Location, fresh: list[Kept]) -> tuple[Location, list[Kept]]:
    """Copy a shard with only the samples in `fresh`; return the copy, and `fresh` with the new positions."""
    path = tar.with_suffix(".fresh.tar")
    moved = []
    with replacing(path) as temporary, locations.opened(tar) as source, ShardWriter(temporary) as target:
        for image in fresh:
            shift = target.position - image.start
            target.copy(source, image.start, image.stop)
            moved.append(
                image._replace(offset=image.offset + shift, start=image.start + shift, stop=image.stop + shift)
            )
    locations.remove(tar)
    return path, moved


def _manifest(images: list[Kept], shard: str, source: str) -> pa.Table:
    rows = [
        {**image._asdict(), "shard": shard, "source": _printable(source), "sha256": image.digest.hex()}
        for image in images
    ]
    return pa.Table.from_pylist(rows, schema=POOL_SCHEMA)


def _rejects(rejected: list[Rejected], source: str, digests: Digests) -> pa.Table:
    rows = [
        {
            "source": _printable(source),
            "member": record.member,
            "reason": record.reason.value,
            "detail": f"duplicate of {digests.key(record.digest)}" if record.digest else record.detail,
        }
        for record in rejected
    ]
    return pa.Table.from_pylist(rows, schema=REJECT_SCHEMA)


def _stats(images: list[Kept], rejected: list[Rejected], unit: Unit) -> dict[str, Any]:
    """Counts of a shard in the format of img2dataset, and what the shard was made from."""
    reasons = Counter(record.reason.value for record in rejected)
    never_arrived = sum(record.reason.never_arrived for record in rejected)
    return {
        "count": len(images) + len(rejected),
        "successes": len(images),
        "failed_to_download": never_arrived,
        "failed_to_resize": len(rejected) - never_arrived,
        "status_dict": {"success": len(images), **dict(sorted(reasons.items()))},
        "unit": unit.identity,
        "sidecars_sha256": hashlib.sha256(b"".join(image.sidecars for image in images)).hexdigest(),
    }


def _write_table(path: Location, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
