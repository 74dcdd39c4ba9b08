"""Commits a sifted unit to the pool as its next shard, without images that earlier shards hold.

The files of a shard are written in a fixed order, `_stats.json` last: the shard is finished once that exists.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.images.provenance import NOT_READ
from pipelines.ingest.facts import column, kinds
from pipelines.ingest.listing import shown
from pipelines.ingest.seen import Digests, Records
from pipelines.ingest.sources import FilesUnit, Unit
from pipelines.ingest.worker import Kept, Rejected, Sifted, duplicate
from pipelines.pool.manifest import FACT_TYPES, KEY_DIGITS, POOL_SCHEMA, REJECT_SCHEMA, Pool
from pipelines.storage import locations
from pipelines.storage.atomic import make_folder, publish, replacing, write_json
from pipelines.storage.locations import Location
from pipelines.storage.shards import ShardWriter


class Committer:
    """Commits units to a pool, one after the other, and knows what it holds by then."""

    def __init__(self, pool: Location, digests: Digests) -> None:
        self._pool = pool
        self._digests = digests
        self._records = Records(Pool(pool))
        self.repeated: list[Unit] = []  # units since the last shard in which nothing was new

    def commit(self, sifted: Sifted, unit: Unit, number: int) -> Counter[str]:
        """Write shard `number` from a sifted unit, unless the pool has every record of it already.

        Return counts: "shards", "read", "kept", "again", "rejected:REASON" and "declared:ORIGIN". Records of the same
        name and content as in the pool are counted as "again", and are neither read nor rejected.
        """
        fresh = [image for image in sifted.kept if self._digests.add(image.digest, image.key)]
        known, rejected = self._known(sifted, {image.row for image in fresh})
        if not fresh and not rejected:
            locations.remove(sifted.tar)
            self.repeated.append(unit)
            return Counter({"again": known})
        tar = sifted.tar
        if len(fresh) < len(sifted.kept):
            tar, fresh = _without_duplicates(tar, fresh)
        assert len(fresh) + len(rejected) + known == sifted.num_read
        self._write(number, tar, unit, fresh, rejected)
        counts = Counter(f"rejected:{record.reason}" for record in rejected)
        counts.update(f"declared:{image.declared}" for image in fresh if image.declared)
        counts.update(f"declared:{NOT_READ}" for image in fresh if image.declared_by == NOT_READ)
        counts.update({"shards": 1, "read": sifted.num_read - known, "kept": len(fresh), "again": known})
        return counts

    def _known(self, sifted: Sifted, fresh: set[int]) -> tuple[int, list[Rejected]]:
        """Number of records that the pool has, and the others that are rejected, in order."""
        repeated = [image for image in sifted.kept if image.row not in fresh]
        found = [
            *sifted.rejected,
            *(duplicate(image.row, image.member, image.digest, image.facts, image.metadata) for image in repeated),
        ]
        found.sort(key=lambda record: record.row)
        if repeated:  # else nothing of the unit was read before
            found = [record for record in found if not self._is_known(record)]
        for image in sifted.kept:
            if image.row in fresh:
                self._records.add(image.member, image.digest.hex(), image.facts.caption, image.facts.url)
        for record in found:
            self._records.add(record.member, record.reason.value, self._detail(record), record.caption)
        return sifted.num_read - len(fresh) - len(found), found

    def _is_known(self, record: Rejected) -> bool:
        if record.digest and self._records.has(record.member, record.digest.hex(), record.caption, record.url):
            return True
        return self._records.has(record.member, record.reason.value, self._detail(record), record.caption)

    def _detail(self, record: Rejected) -> str:
        return f"duplicate of {self._digests.key(record.digest)}" if record.digest else record.detail

    def _write(
        self, number: int, tar: Location, unit: Unit, images: Sequence[Kept], rejected: Sequence[Rejected]
    ) -> None:
        shard, pool = f"{number:0{KEY_DIGITS}d}", self._pool
        others = kinds(image.facts for image in images)
        publish(tar, pool / f"{shard}.tar")
        _write_table(pool / f"{shard}.parquet", _manifest(images, shard, shown(unit.source), others))
        make_folder(pool / "rejects")
        _write_table(pool / "rejects" / f"{shard}.parquet", self._rejects(rejected, shown(unit.source)))
        units = [unit, *self.repeated]
        if files := [file.digest for each in units if isinstance(each, FilesUnit) for file in each.files]:
            make_folder(pool / "files")
            with replacing(Pool(pool).files(shard)) as temporary, temporary.open("wb") as file:
                np.save(file, np.array(files, np.uint64), allow_pickle=False)
        repeated = [recorded(each) for each in self.repeated]
        write_json(pool / f"{shard}_stats.json", _stats(images, rejected, unit, others) | {"repeated": repeated})
        self.repeated = []

    def _rejects(self, rejected: Iterable[Rejected], source: str) -> pa.Table:
        rows = [
            {
                "source": _printable(source),
                "member": record.member,
                "reason": record.reason.value,
                "detail": self._detail(record),
                "duplicate_of": self._digests.key(record.digest) if record.digest else None,
                "caption": record.caption,
                "metadata": record.metadata,
            }
            for record in rejected
        ]
        return pa.Table.from_pylist(rows, schema=REJECT_SCHEMA)


def recorded(unit: Unit) -> tuple[str, str, str]:
    """The identity of a unit as it is put on record."""
    source, part, fingerprint = unit.identity
    return shown(source), part, fingerprint


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


def _manifest(images: Sequence[Kept], shard: str, source: str, others: Mapping[str, tuple[str, int]]) -> pa.Table:
    rows = [
        {
            **image._asdict(), **image.facts.columns,
            "shard": shard, "source": _printable(source), "sha256": image.digest.hex(),
        }
        for image in images
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    facts = [image.facts for image in images]
    for name, (kind, _) in others.items():
        table = table.append_column(name, pa.array(column(name, kind, facts), FACT_TYPES[kind]))
    return table


def _stats(
    images: Sequence[Kept], rejected: Sequence[Rejected], unit: Unit, others: Mapping[str, tuple[str, int]]
) -> dict[str, Any]:
    """Counts of a shard in the format of img2dataset, and what the shard was made from."""
    reasons = Counter(record.reason.value for record in rejected)
    never_arrived = sum(record.reason.never_arrived for record in rejected)
    return {
        "count": len(images) + len(rejected),
        "successes": len(images),
        "failed_to_download": never_arrived,
        "failed_to_resize": len(rejected) - never_arrived,
        "status_dict": {"success": len(images), **dict(sorted(reasons.items()))},
        "unit": recorded(unit),
        "facts": others,  # further columns of the manifest, with type and number of values
        "sidecars_sha256": hashlib.sha256(b"".join(image.sidecars for image in images)).hexdigest(),
    }


def _write_table(path: Location, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
