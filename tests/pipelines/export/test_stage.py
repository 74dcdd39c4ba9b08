import gc
import json
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines import export, ingest, toy
from pipelines.errors import CorruptShard, Incompatible, MissingArtifact
from pipelines.images.formats import FORMATS
from pipelines.pool.manifest import Pool
from pipelines.run import quality
from tests.pipelines.export.exports import files, keys, read_plainly, settings, write_scores


def test_kept_images_open_in_plain_webdataset_with_the_crawls_bytes(
    crawl: Path, pool: Path, run: Path, joined: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "clean"
    summary = export.run(settings(out, pool, run, shard_size=300))
    originals: dict[str, dict[str, bytes]] = {}
    for path in crawl.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                originals.setdefault(stem, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    rows = {row["key"]: row for row in joined.to_pylist()}

    samples = read_plainly(*sorted(out.glob("*.tar")))
    assert len(samples) == summary.kept == sum(not row["synthetic"] for row in rows.values())
    assert [sample["__key__"] for sample in samples] == keys(out)
    for sample in samples:
        row = rows[sample["__key__"]]
        original = originals[Path(row["member"]).stem]
        assert sample["jpg"] == original["jpg"]
        assert sample["txt"] == original["txt"]
        assert toy.CLASSES[int(sample["cls"])] == row["pseudo_label"]
        metadata = json.loads(sample["json"])
        ours = metadata.pop("curate")
        own = json.loads(original["json"])
        assert metadata == {name: value for name, value in own.items() if value is not None}  # null in all
        assert ours["prob_synthetic"] == pytest.approx(row["prob_synthetic"], abs=1e-6)
        assert (ours["key"], ours["member"], ours["synthetic"]) == (row["key"], row["member"], False)


def test_an_export_says_how_far_to_trust_the_detector(pool: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    summary = export.run(settings(tmp_path / "out", pool, tmp_path / "run"))
    assert summary.warning == quality.UNMEASURED
    assert json.loads((tmp_path / "out" / "run.json").read_text())["quality"] is None
    rng = torch.Generator().manual_seed(0)
    weak = quality.measure(torch.randn(500, generator=rng), torch.randn(50, generator=rng))
    quality.save(tmp_path / "run", weak)
    summary = export.run(settings(tmp_path / "out", pool, tmp_path / "run"))
    assert summary.warning == "It can hardly tell these images apart: do not delete by it."
    told = json.loads((tmp_path / "out" / "run.json").read_text())["quality"]
    assert told["statements"] == list(weak.statements)
    assert told["auroc_interval"] == list(weak.auroc_interval or ())


def test_shards_are_cut_at_the_size_asked_for(pool: Path, run: Path, tmp_path: Path) -> None:
    summary = export.run(settings(tmp_path / "out", pool, run, keep="all", shard_size=400))
    counts = [json.loads(path.read_text())["count"] for path in sorted((tmp_path / "out").glob("*_stats.json"))]
    assert counts == [400, 400, summary.kept - 800]
    assert summary.shards == 3
    assert pq.read_table(tmp_path / "out" / "kept.parquet")["shard"].to_pylist()[399:401] == ["00000", "00001"]


def test_uids_are_a_sorted_datacomp_list(pool: Path, run: Path, tmp_path: Path) -> None:
    export.run(settings(tmp_path / "out", pool, run))
    uids = np.load(tmp_path / "out" / "uids.npy")
    assert uids.dtype == np.dtype([("f0", "<u8"), ("f1", "<u8")])
    listed = pq.read_table(tmp_path / "out" / "kept.parquet")
    assert [f"{high:016x}{low:016x}" for high, low in uids] == sorted(listed["uid"].to_pylist())
    assert listed["uid"].to_pylist() == [digest[:32] for digest in listed["sha256"].to_pylist()]


def test_the_lines_of_the_page_read_every_format(tmp_path: Path) -> None:
    """By the lines that stand there, but for the name of the shards."""
    (tmp_path / "crawl").mkdir()
    rng = np.random.default_rng(0)
    for name, pillow in FORMATS.items():
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "crawl" / f"x.{name}", format=pillow)
    ingest.run(ingest.IngestConfig(sources=(str(tmp_path / "crawl"),), pool=tmp_path / "pool", jobs=1))
    write_scores(Pool.open(tmp_path / "pool"), tmp_path / "run")
    export.run(settings(tmp_path / "clean", tmp_path / "pool", tmp_path / "run", keep="all"))
    text = (Path(__file__).parents[3] / "docs" / "export.md").read_text()
    lines = [line.strip() for line in text[text.index("    import webdataset as wds") :].split("\n\n")[0].splitlines()]
    code = "\n".join(lines).replace("clean/{00000..00029}.tar", f"{tmp_path}/clean/00000.tar")
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        exec(code, names)
        read = list(names.pop("dataset"))
        gc.collect()
    assert len(read) == len(FORMATS)
    assert all(image.size == (32, 32) and label in range(5) for image, label in read)


def test_the_same_export_is_the_same_bytes_and_another_replaces_it(pool: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.run(settings(out, pool, run, shard_size=200))
    first = files(out)
    export.run(settings(out, pool, run, shard_size=200))
    assert files(out) == first
    export.run(settings(out, pool, run, keep="synthetic"))
    assert "00001.tar" not in files(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_shard_without_scores_and_scores_of_other_images_are_refused(pool: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    write_scores(Pool.open(pool), other)
    (other / "scores" / "00001.parquet").rename(tmp_path / "aside")
    with pytest.raises(MissingArtifact, match="run `curate score` first"):
        export.run(settings(tmp_path / "out", pool, other))
    (other / "scores" / "00001.parquet").write_bytes((other / "scores" / "00000.parquet").read_bytes())
    with pytest.raises(Incompatible, match="other images"):
        export.run(settings(tmp_path / "out", pool, other))
    assert not (tmp_path / "out").exists()


def test_a_cut_shard_of_the_pool_is_said_to_be_cut(pool: Path, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pool"
    copy.mkdir()
    for path in pool.glob("0*"):
        (copy / path.name).write_bytes(path.read_bytes())
    with (copy / "00000.tar").open("r+b") as tar:
        tar.truncate(100_000)
    with pytest.raises(CorruptShard, match=r"00000\.tar"):
        export.run(settings(tmp_path / "out", copy, run))
    assert not (tmp_path / "out").exists()


def test_a_tick_comes_with_every_shard(pool: Path, run: Path, tmp_path: Path) -> None:
    seen = []
    summary = export.run(settings(tmp_path / "out", pool, run, shard_size=100), on_tick=seen.append)
    seen = [tick for tick in seen if tick.unit == "images"]  # before, the samples are looked at
    assert [tick.figures["kept"] for tick in seen] == [*range(100, summary.kept, 100), summary.kept]
    assert [tick.done for tick in seen] == sorted(tick.done for tick in seen)
    assert seen[-1].done == seen[-1].total == summary.pool


def test_the_bytes_do_not_depend_on_the_number_of_processes(pool: Path, run: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "out", tmp_path / "two" / "out"  # the card names the folder
    for out in (one, two):
        out.parent.mkdir()
    choice = {"shard_size": 130, "per_class": 90, "min_confidence": 0.3}
    export.run(settings(one, pool, run, jobs=1, **choice))
    export.run(settings(two, pool, run, jobs=2, **choice))
    assert {**files(one), "run.json": b""} == {**files(two), "run.json": b""}
