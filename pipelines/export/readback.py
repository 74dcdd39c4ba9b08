"""Read a shard of an export back with plain `webdataset`, as those who train on it will."""

import hashlib
import json
import tarfile
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from pipelines.errors import CorruptShard
from pipelines.storage import locations
from pipelines.storage.locations import Location


def check(tar: Location, rows: pa.Table) -> None:
    """Compare the samples that `webdataset` finds in a shard with its rows of kept.parquet.

    They must agree in number, order, keys, bytes of the image, class and metadata. Raises CorruptShard at the first
    difference.
    """
    from webdataset import tariterators  # imports torch, which an export does without until here

    difference = ""
    listed = rows.select(["key", "cls", "sha256"]).to_pylist()
    with locations.opened(tar) as stream:
        members = tariterators.tar_file_expander([{"url": str(tar), "stream": stream}])
        try:
            for row, sample in zip_longest(listed, tariterators.group_by_keys(members)):
                if difference := _difference(row, sample):
                    break
        except (ValueError, tarfile.TarError) as error:  # webdataset adds the stream and the URL to the arguments
            difference = f"webdataset cannot read it ({error.args[0]})"
    if difference:
        raise CorruptShard(
            f"{tar}: {difference}. The export is not complete. Run the same command again, and report a bug if it "
            "fails again."
        )


def _difference(row: Mapping[str, Any] | None, sample: Mapping[str, Any] | None) -> str:
    """What differs between a row of kept.parquet and a sample of webdataset; empty if nothing does."""
    if row is None or sample is None or row["key"] != sample["__key__"]:
        found, listed = sample["__key__"] if sample else "no sample", row["key"] if row else "none"
        return f"webdataset finds {found} where kept.parquet lists {listed}"
    key = row["key"]
    digests = {hashlib.sha256(part).hexdigest() for part in sample.values() if isinstance(part, bytes)}
    if row["sha256"] not in digests:
        return f"webdataset does not find the image of {key} that kept.parquet lists"
    if sample.get("cls") != (None if row["cls"] is None else str(row["cls"]).encode()):
        return f"webdataset finds the class {sample.get('cls')!r} of {key} where kept.parquet lists {row['cls']}"
    if json.loads(sample.get("json", b"{}")).get("curate", {}).get("key") != key:
        return f"webdataset finds no metadata of {key}"
    return ""
