"""Read a shard of an export back as those who train on it will: a tar with plain `webdataset`, parquet with pyarrow."""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptShard, why
from pipelines.export.sample import IMAGE
from pipelines.export.shape import OURS
from pipelines.storage import locations
from pipelines.storage.locations import Location


def check(shard: Location, rows: pa.Table) -> None:
    """Compare the samples that a reader finds in a shard with its rows of kept.parquet.

    They must agree in number, order, keys, bytes of the image, class and metadata, and have the same members. Raises
    CorruptShard at the first difference.
    """
    difference = ""
    reader, samples = ("pyarrow", _parquet) if shard.name.endswith(".parquet") else ("webdataset", _tar)
    listed = rows.select(["key", "cls", "sha256"]).to_pylist()
    try:
        first: Mapping[str, Any] | None = None
        for row, sample in zip_longest(listed, samples(shard)):
            first = first or sample
            if difference := _difference(row, sample, first):
                break
    except (ValueError, tarfile.TarError, pa.ArrowException) as error:
        # webdataset adds the stream and the URL to the arguments
        difference = f"cannot read it ({error.args[0] if error.args else why(error)})"
    if difference:
        raise CorruptShard(
            f"{shard}: {reader} {difference}. The export is not complete. Run the same command again, and report a "
            "bug if it fails again."
        )


def _tar(shard: Location) -> Iterator[Mapping[str, Any]]:
    from webdataset import tariterators  # imports torch, which an export does without until here

    with locations.opened(shard) as stream:
        members = tariterators.tar_file_expander([{"url": str(shard), "stream": stream}])
        yield from tariterators.group_by_keys(members)


def _parquet(shard: Location) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a parquet shard under the names that their members have in a tar."""
    with locations.opened(shard) as stream, pq.ParquetFile(stream) as file:
        for batch in file.iter_batches(64):
            for row in batch.to_pylist():
                label = {"cls": str(row["label"]).encode()} if row.get("label") is not None else {}
                content = {IMAGE: row["image"]["bytes"], "json": row["json"].encode("utf-8", "backslashreplace")}
                yield {"__key__": row["key"], **content, **label}


def _difference(
    row: Mapping[str, Any] | None, sample: Mapping[str, Any] | None, first: Mapping[str, Any] | None
) -> str:
    """What differs between a row of kept.parquet and a sample of a reader; empty if nothing does."""
    if row is None or sample is None or row["key"] != sample["__key__"]:
        found, listed = sample["__key__"] if sample else "no sample", row["key"] if row else "none"
        return f"finds {found} where kept.parquet lists {listed}"
    key = row["key"]
    if hashlib.sha256(sample.get(IMAGE, b"")).hexdigest() != row["sha256"]:
        return f"does not find the image of {key} that kept.parquet lists"
    if sample.get("cls") != (None if row["cls"] is None else str(row["cls"]).encode()):
        return f"finds the class {sample.get('cls')!r} of {key} where kept.parquet lists {row['cls']}"
    if json.loads(sample.get("json", b"{}")).get(OURS, {}).get("key") != key:
        return f"finds no metadata of {key}"
    if first is not None and first.keys() != sample.keys():
        return f"finds other members of {key} than of {first['__key__']}"
    return ""
