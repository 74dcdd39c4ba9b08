"""Exports of random scores, and what plain webdataset reads of them."""

import gc
import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

from pipelines import export, ingest, toy
from pipelines.export import ExportConfig
from pipelines.pool.manifest import Pool
from pipelines.run.scores import SCORE_SCHEMA


def _jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


PICTURE = _jpeg()


def write_scores(pool: Pool, run: Path) -> None:
    """Scores as `curate score` would leave them, drawn at random; confidences are rounded, so that there are ties."""
    rng = np.random.default_rng(6)
    (run / "scores").mkdir(parents=True)
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text(json.dumps({"classes": toy.CLASSES, "threshold": 0.5, "pool": "pool"}))
    for shard in pool.shards:
        keys = pool.rows(shard)["key"].to_pylist()
        probs = rng.dirichlet(np.ones(len(toy.CLASSES)), len(keys)).round(1).astype(np.float16)
        prob_synthetic = rng.random(len(keys)).astype(np.float32)
        columns: dict[str, Any] = {
            "key": keys,
            "prob_synthetic": prob_synthetic,
            "synthetic": prob_synthetic >= 0.5,
            "verdict": np.where(prob_synthetic >= 0.5, "synthetic", "real"),
            "pseudo_label": [toy.CLASSES[i] for i in probs.argmax(1)],
            "confidence": probs.max(1).astype(np.float32),
            "probs": list(probs),
            "raw_confidence": probs.max(1).astype(np.float32),
            "typicality": rng.random(len(keys)).astype(np.float32),
        }
        pq.write_table(pa.table(columns, schema=SCORE_SCHEMA), run / "scores" / f"{shard}.parquet")


def settings(out: Path, pool: Path, run: Path, **others: Any) -> ExportConfig:
    return ExportConfig(out=out, pool=pool, run=run, **({"jobs": 1} | others))


def keys(out: Path, table: str = "kept") -> list[str]:
    return pq.read_table(out / f"{table}.parquet")["key"].to_pylist()


def read_plainly(*shards: Path, decode: bool = False) -> list[dict[str, Any]]:
    """What plain webdataset reads, on request decoded; it leaves files for the garbage collector, with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False)
        samples = list(found.decode() if decode else found)
        gc.collect()
    return samples


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def export_one(root: Path, **sidecars: bytes) -> Path:
    """Export a crawl of one image with some files beside it; returns the shard."""
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as tar:
        for suffix, content in {"jpg": PICTURE, **sidecars}.items():
            member = tarfile.TarInfo(f"x.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    ingest.run(ingest.IngestConfig(sources=(str(root / "a.tar"),), pool=root / "pool", jobs=1))
    write_scores(Pool.open(root / "pool"), root / "run")
    export.run(settings(root / "out", root / "pool", root / "run", keep="all"))
    return root / "out" / "00000.tar"
