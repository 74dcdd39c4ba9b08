"""Small crawls for the tests of ingest, and checks of the pools that are made from them."""

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipelines import ingest
from pipelines.ingest import IngestConfig, Summary
from pipelines.pool.manifest import POOL_SCHEMA, REJECT_SCHEMA, Pool
from pipelines.storage.shards import read_samples, read_spans

Files = list[tuple[str, bytes]]


def picture(seed: int, side: int = 40, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def pack(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def junk() -> Files:
    """One file for each reason that a tar can give; its name is the reason."""
    return [
        ("empty.jpg", b""),
        ("not_an_image.jpg", b"<!doctype html>"),
        ("unsupported_format.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("truncated.jpg", picture(1)[:300]),
        ("corrupt.png", picture(1, kind="PNG")[:60] + bytes(300) + b"IEND\xaeB`\x82"),
        ("too_small.png", picture(1, 15, "PNG")),
        ("too_many_pixels.png", picture(1, 400, "PNG")),
        ("too_many_bytes.jpg", bytes(200_001)),
        ("duplicate.jpg", picture(0)),
        ("../unsafe_name.jpg", picture(2)),
        ("missing.json", b"{}"),
    ]


def make_crawl(root: Path, num_shards: int = 6, per_shard: int = 40) -> Path:
    """Shards with junk, and with duplicates within and across them."""
    rng = random.Random(0)
    for shard in range(num_shards):
        files: Files = []
        for row in range(per_shard):
            key = f"{shard:05d}{row:04d}"
            number = shard * per_shard + row
            seed = rng.randrange(number) if number and rng.random() < 0.2 else number
            content = picture(seed) if rng.random() > 0.1 else b"<html>"
            meta = json.dumps({"key": key, "url": f"https://example.invalid/{key}"}).encode()
            files += [(f"{key}.jpg", content), (f"{key}.json", meta), (f"{key}.txt", b"")]
        pack(root / f"{shard:05d}.tar", files)
    return root


def run(pool: Path, *sources: Path | str, **options: Any) -> Summary:
    options = {"jobs": 1, "max_pixels": 100_000, "max_bytes": 200_000, "shard_size": 50} | options
    return ingest.run(IngestConfig(sources=tuple(map(str, sources)), pool=pool, **options))


def content(pool: Path) -> dict[str, str]:
    """Digest of every file of a pool except the one with times."""
    return {
        str(path.relative_to(pool)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(pool.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def rejects(pool: Path) -> list[dict[str, str]]:
    return [row for path in sorted(pool.glob("rejects/*.parquet")) for row in pq.read_table(path).to_pylist()]


def keys(pool: Path) -> list[str]:
    return [key for table in Pool(pool).tables(["key"]) for key in table["key"].to_pylist()]


def check(pool: Path) -> None:
    """Check what holds in every pool: files, schemas, counts, offsets, digests and samples agree."""
    opened = Pool.open(pool)
    seen = set[str]()
    for shard in opened.shards:
        rows, stats = opened.rows(shard), opened.stats(shard)
        rejected = pq.read_table(pool / "rejects" / f"{shard}.parquet")
        assert rows.schema.equals(POOL_SCHEMA) and rejected.schema.equals(REJECT_SCHEMA)
        assert stats["successes"] == rows.num_rows
        assert stats["count"] == rows.num_rows + rejected.num_rows
        assert stats["count"] == stats["successes"] + stats["failed_to_download"] + stats["failed_to_resize"]
        assert sum(stats["status_dict"].values()) == stats["count"]
        spans = zip(rows["offset"].to_pylist(), rows["num_bytes"].to_pylist(), strict=True)
        images = list(read_spans(opened.tar(shard), spans))
        assert [hashlib.sha256(image).hexdigest() for image in images] == rows["sha256"].to_pylist()
        samples = dict(read_samples(opened.tar(shard)))
        assert list(samples) == rows["key"].to_pylist()
        for row, image in zip(rows.to_pylist(), images, strict=True):
            assert samples[row["key"]][row["format"]] == image
            assert row["shard"] == shard and row["sha256"] not in seen
            seen.add(row["sha256"])
    assert not list(pool.glob(".*")) and not list(pool.rglob("*.tmp"))
