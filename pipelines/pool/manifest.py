"""The layout of a pool and of a run's scores on disk: which files there are, their schemas and how to read them.

pool/00000.tar              WebDataset shard; members are the crawl's own bytes
pool/00000.parquet          POOL_SCHEMA, one row per kept image, in the order of the tar; then columns of FACT_TYPES
pool/00000_stats.json       counts of the shard; written last, its done file
pool/rejects/00000.parquet  REJECT_SCHEMA, one row per rejected image
pool/files/00000.npy        uint64, digests of the loose files that the shard was made from, if it was
pool/run.json               what was ingested, and when
run/scores/00000.parquet    SCORE_SCHEMA, row i for row i of pool/00000.parquet
run/embeddings/00000.npy    float16 (N, D), row i for row i of the scores
run/pools/ID/scores/ ...    the same of further pools (`pipelines.run.belonging`)
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptShard, MissingArtifact, why
from pipelines.storage import locations
from pipelines.storage.locations import Location

KEY_DIGITS = 5  # of the shard in a key; the row follows, in four digits or more
MAX_SHARDS = 10**KEY_DIGITS

POOL_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # shard and row in the source: 000012345
        pa.field("shard", pa.string(), nullable=False),  # 00001
        pa.field("source", pa.string(), nullable=False),  # the crawl's file or folder
        pa.field("member", pa.string(), nullable=False),  # the image's name in it
        pa.field("format", pa.string(), nullable=False),  # jpg, png, webp, ...: from the bytes, not the name
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # of the image's first byte in pool/SHARD.tar
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),  # of the image's bytes, hexadecimal
        pa.field("phash", pa.uint64(), nullable=False),  # perceptual hash; compare by Hamming distance
        pa.field("declared", pa.string()),  # what the file says about itself: synthetic, camera or null
        pa.field("declared_by", pa.string()),  # and where in the file it says so
        # From here on, what the crawl says of the image, in its JSON, parquet or captions; null where it says nothing.
        pa.field("crawl_key", pa.string()),  # the image's name in the crawl, without folder and suffix
        pa.field("url", pa.string()),
        pa.field("domain", pa.string()),  # host of the url, in lower case without www.
        pa.field("caption", pa.string()),
        pa.field("uid", pa.string()),
        pa.field("original_width", pa.int32()),  # before the crawler resized it
        pa.field("original_height", pa.int32()),
        pa.field("similarity", pa.float64()),  # of image and caption, as the crawl's authors measured it
    ]
)

CRAWL_COLUMNS = (
    "crawl_key", "url", "domain", "caption", "uid", "original_width", "original_height", "similarity",
)  # fmt: skip

REJECT_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("member", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # pipelines.images.rejects.Reason
        pa.field("detail", pa.string(), nullable=False),
        # Of a duplicate: the image that stays, and what the crawl says of this one, else null.
        pa.field("duplicate_of", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("metadata", pa.string()),  # its JSON
    ]
)

MAX_FACTS = 32  # columns of further facts
FACT_PREFIX = "crawl_"
FACT_TYPES = {"bool": pa.bool_(), "int64": pa.int64(), "double": pa.float64(), "string": pa.string()}


def common_type(one: str, other: str) -> str:
    """Name of the type that holds the values of two FACT_TYPES."""
    if one == other:
        return one
    return "double" if {one, other} == {"int64", "double"} else "string"


INGESTS = "run.json"  # in a pool: what was ingested, and when; a folder with such a file is a pool


def is_pool(root: Location) -> bool:
    """Whether `root` is a pool, even an empty one."""
    try:
        values = json.loads(locations.read(root / INGESTS))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(values, dict) and "ingests" in values


def key_of(shard: int, row: int) -> str:
    """Key of the image in row `row` of the source of pool shard `shard`: 1, 2345 -> '000012345'."""
    return f"{shard:0{KEY_DIGITS}d}{row:04d}"


def shard_of(key: str) -> str:
    """Name of the shard that holds `key`."""
    return key[:KEY_DIGITS]


@dataclass(frozen=True)
class Pool:
    """The finished shards of a pool, in the order of their names. The pool is on a disk or in an object store."""

    root: Location

    @classmethod
    def open(cls, root: Location) -> "Pool":
        """Open an ingested pool. MissingArtifact if there is none, or it holds no image."""
        pool = cls(root)
        if not pool.shards:
            raise MissingArtifact(
                f"{root} has no finished shard: run `curate ingest CRAWL --pool {quote(str(root))}` first."
            )
        if not pool.num_images:
            raise MissingArtifact(
                f"{root} holds no image: all were rejected. {root}/rejects/ lists the reasons. Ingest another crawl."
            )
        return pool

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """Names of the finished shards, in order."""
        end = "_stats.json"
        return tuple(name.removesuffix(end) for name in locations.names(self.root) if name.endswith(end))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of kept images of each shard."""
        paths = [self._stats(shard) for shard in self.shards]
        found = zip(paths, locations.read_all(paths), strict=True)
        return tuple(int(_parsed(path, content)["successes"]) for path, content in found)

    @property
    def num_images(self) -> int:
        """Number of kept images."""
        return sum(self.counts)

    def tar(self, shard: str) -> Location:
        """Path of a shard's tar."""
        return self.root / f"{shard}.tar"

    def stats(self, shard: str) -> dict[str, Any]:
        """Read a shard's `_stats.json`. CorruptShard if it is not what ingest wrote."""
        return _parsed(self._stats(shard), locations.read(self._stats(shard)))

    def _stats(self, shard: str) -> Location:
        return self.root / f"{shard}_stats.json"

    def digest(self, shard: str) -> str:
        """Fingerprint of a shard: the digest of its manifest, which lists the sha256 of every image.

        Everything computed from the shard records it.
        """
        return hashlib.sha256(locations.read(self.root / f"{shard}.parquet")).hexdigest()[:16]

    @cached_property
    def identity(self) -> str:
        """The digest of the first shard that holds an image: it stays when the pool moves or grows.

        CorruptShard if that cannot be read.
        """
        found = (shard for shard in self.shards if self.rows(shard, ["key"]).num_rows)
        return self.digest(next(found, self.shards[0]))

    def files(self, shard: str) -> Location:
        """Path of the digests of a shard's loose files."""
        return self.root / "files" / f"{shard}.npy"

    @cached_property
    def facts(self) -> pa.Schema:
        """Columns of what else the crawl says of its images, at most MAX_FACTS: those that most images have.

        Each has one type in all shards, one that holds all their values.
        """
        counts, kinds = Counter[str](), dict[str, str]()
        paths = [self._stats(shard) for shard in self.shards]
        for path, content in zip(paths, locations.read_all(paths), strict=True):
            for name, (kind, count) in _parsed(path, content).get("facts", {}).items():
                kinds[name] = common_type(kinds.get(name, kind), kind)
                counts[name] += count
        names = sorted(sorted(counts, key=lambda name: (-counts[name], name))[:MAX_FACTS])
        return pa.schema([pa.field(name, FACT_TYPES[kinds[name]]) for name in names])

    def rows(self, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the manifest of a shard, in the order of its tar: some of its columns and `facts`, or POOL_SCHEMA.

        A column that the shard lacks is null.
        """
        names = POOL_SCHEMA.names if columns is None else list(columns)
        table = read_parquet(self.root / f"{shard}.parquet", names, may_lack=True)
        is_whole = table.column_names == names and set(names) <= set(POOL_SCHEMA.names)
        return table if is_whole else self._completed(table, names)

    def _completed(self, table: pa.Table, names: Sequence[str]) -> pa.Table:
        """The columns `names` of a manifest, each in its type."""
        for name in names:
            field = (POOL_SCHEMA if name in POOL_SCHEMA.names else self.facts).field(name)
            if name not in table.column_names:
                if not field.nullable:
                    raise CorruptShard(f"{self.root} has a manifest without the column {name!r}. Make the pool again.")
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            elif table.schema.field(name).type != field.type:
                column = table[name].cast(field.type)
                table = table.set_column(table.column_names.index(name), field, column)
        return table.select(list(names))

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read the manifests of all shards, in order, one at a time."""
        return (self.rows(shard, columns) for shard in self.shards)


def _parsed(path: Location, content: bytes) -> dict[str, Any]:
    try:
        stats = json.loads(content)
    except ValueError:
        raise CorruptShard(f"{path} is not JSON. Remove the shard's files and ingest its source again.") from None
    if not isinstance(stats, dict) or not isinstance(stats.get("successes"), int):
        raise CorruptShard(f"{path} counts no images. Remove the shard's files and ingest its source again.")
    return stats


def read_parquet(path: Location, columns: Sequence[str] | None = None, *, may_lack: bool = False) -> pa.Table:
    """Read a parquet file of ours. CorruptShard if it is missing or truncated, or lacks a column that it must have."""
    try:
        file = path if isinstance(path, Path) else pa.BufferReader(locations.read(path))
        if columns is not None and may_lack:
            there = pq.read_schema(file).names
            columns = [name for name in columns if name in there]
        return pq.read_table(file, columns=list(columns) if columns is not None else None)
    except FileNotFoundError:
        raise CorruptShard(f"{path} is missing, although its shard has a done file. Make the shard again.") from None
    except pa.ArrowException as error:
        raise CorruptShard(
            f"{path} cannot be read ({why(error)}). Remove the shard's files and make it again."
        ) from None
