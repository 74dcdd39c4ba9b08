"""Rows of a pool: where the image of each one lies, and its bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import pyarrow as pa

from pipelines.pool.manifest import POOL_SCHEMA, Pool
from pipelines.storage.shards import read_spans_across


@dataclass(frozen=True)
class Rows:
    """Rows of a pool, in its order: shard number, offset and length of the image in bytes, key; all (N,)."""

    pool: Pool
    shard: np.ndarray[tuple[int], np.dtype[np.int32]]
    offset: np.ndarray[tuple[int], np.dtype[np.int64]]
    num_bytes: np.ndarray[tuple[int], np.dtype[np.int64]]
    key: np.ndarray[tuple[int], np.dtype[np.str_]]

    @classmethod
    def of_pool(cls, pool: Pool, without: frozenset[str] = frozenset()) -> Self:
        """List all rows of a pool except the images whose sha256 is in `without`."""
        return cls._listed(pool, range(len(pool.shards)), without)

    @classmethod
    def of_shard(cls, pool: Pool, number: int) -> Self:
        """List the rows of one shard, the `number`-th of the pool."""
        return cls._listed(pool, [number], frozenset())

    @classmethod
    def _listed(cls, pool: Pool, numbers: Iterable[int], without: frozenset[str]) -> Self:
        parts = []
        for number in numbers:
            table = pool.rows(pool.shards[number], ["key", "offset", "num_bytes", "sha256"])
            kept = np.array([digest not in without for digest in table["sha256"].to_pylist()], dtype=bool)
            shard = np.full(int(kept.sum()), number, dtype=np.int32)
            key = np.array(table["key"].to_pylist(), dtype=np.str_)
            parts.append((shard, table["offset"].to_numpy()[kept], table["num_bytes"].to_numpy()[kept], key[kept]))
        shard, offset, num_bytes, key = (np.concatenate(column) for column in zip(*parts, strict=True))
        return cls(pool, shard, offset, num_bytes, key)

    def __len__(self) -> int:
        """N."""
        return len(self.shard)

    def members(self) -> list[str]:
        """Names (N,) of the images in the crawl."""
        names: list[str] = self.columns(["member"])["member"].to_pylist()
        return names

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Read columns of the manifest for these rows (N,), in their order."""
        bounds = [*np.flatnonzero(np.diff(self.shard, prepend=-1)), len(self)]  # a shard's rows stand together
        parts = [POOL_SCHEMA.empty_table().select(list(names))]
        for start, stop in pairwise(bounds):
            table = self.pool.rows(self.pool.shards[self.shard[start]], ["offset", *names])
            found = np.searchsorted(table["offset"].to_numpy(), self.offset[start:stop])  # ascending, as in the tar
            parts.append(table.select(list(names)).take(found))
        return pa.concat_tables(parts)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """Read the original bytes of `rows`. CorruptShard if a shard is truncated or missing."""
        order = np.argsort(self.shard[rows], kind="stable").tolist()  # each shard is opened once
        sorted_rows = [rows[i] for i in order]
        tars = [self.pool.tar(self.pool.shards[number]) for number in self.shard[sorted_rows].tolist()]
        spans = zip(tars, self.offset[sorted_rows].tolist(), self.num_bytes[sorted_rows].tolist(), strict=True)
        result = [b""] * len(rows)
        for i, data in zip(order, read_spans_across(spans), strict=True):
            result[i] = data
        return result
