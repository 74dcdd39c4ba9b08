import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import toy
from pipelines.errors import CorruptShard
from pipelines.pool.manifest import Pool, read_parquet
from pipelines.report.survey import MAX_TABLES, Best, Sample, Survey, read_rows, survey
from pipelines.run import domains, marks, outside, verdicts
from pipelines.run.evaluation import DeclaredCheck, Rate
from pipelines.run.scores import SCORE_SCHEMA, ScoredPool
from pipelines.storage.atomic import write_json
from pipelines.storage.shards import read_samples


@pytest.fixture(scope="module")
def scored(world: Any, tmp_path_factory: pytest.TempPathFactory) -> ScoredPool:
    """The pool with scores drawn at random, a few of them equal."""
    run, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    for folder in ("scores", "model"):
        (run / folder).mkdir()
    write_json(run / "model" / "config.json", {"classes": toy.CLASSES})
    verdicts.save(run, verdicts.choose([], None))
    pool = Pool.open(world.pool)
    for shard in pool.shards:
        keys = pool.rows(shard)["key"].to_pylist()
        probs = rng.random((len(keys), len(toy.CLASSES))).round(2)
        prob_synthetic = rng.random(len(keys)).round(2)
        columns = {
            "key": keys,
            "prob_synthetic": prob_synthetic,
            "synthetic": prob_synthetic >= 0.5,
            "verdict": np.select([prob_synthetic >= 0.7, prob_synthetic >= 0.4], ["synthetic", "unsure"], "real"),
            "pseudo_label": [toy.CLASSES[i] for i in probs.argmax(1)],
            "confidence": probs.max(1),
            "probs": [row.astype(np.float16) for row in probs],
            "raw_confidence": probs.max(1),
            "typicality": np.ones(len(probs)),
        }
        arrays = [pa.array(columns[field.name]).cast(field.type) for field in SCORE_SCHEMA]
        pq.write_table(pa.table(arrays, schema=SCORE_SCHEMA), run / "scores" / f"{shard}.parquet")
    return ScoredPool.open(world.pool, run)


@pytest.fixture(scope="module")
def everything(scored: ScoredPool) -> list[dict[str, Any]]:
    return [row for shard in scored.shards for row in scored.rows(shard).to_pylist()]


@pytest.fixture(scope="module")
def found(scored: ScoredPool) -> Survey:
    return survey(scored.pool, scored, scored.classes, sample=100, gallery=7, per_class=3)


def test_counts_are_those_of_all_rows(found: Survey, everything: list[dict[str, Any]], scored: ScoredPool) -> None:
    assert found.num_images == len(everything) == scored.pool.num_images
    assert found.num_bytes == sum(row["num_bytes"] for row in everything)
    assert found.num_synthetic == sum(row["verdict"] == "synthetic" for row in everything) > 0
    assert found.num_unsure == sum(row["verdict"] == "unsure" for row in everything) > 0
    assert found.scores is not None and found.confidences is not None
    assert found.scores.sum() == found.confidences.sum() == len(everything)
    for name, share in found.classes.items():
        mine = [row for row in everything if row["pseudo_label"] == name]
        assert share.num_images == len(mine)
        called = [row["verdict"] for row in mine]
        counts = [called.count(verdict) for verdict in ("real", "unsure", "synthetic")]
        assert [share.num_real, share.num_unsure, share.num_synthetic] == counts
        assert share.confidence == pytest.approx(sum(row["confidence"] for row in mine))
    assert {kind: share.num_images for kind, share in found.declared.items()} == {
        kind: sum((row["declared"] or "nothing") == kind for row in everything) for kind in ("camera", "nothing")
    }


def test_domains_are_those_of_the_manifest(found: Survey, everything: list[dict[str, Any]], scored: ScoredPool) -> None:
    names = [name for shard in scored.shards for name in domains.of_shard(scored.pool, shard)]
    assert "example.invalid" in found.domains
    for name, share in found.domains.items():
        mine = [row["verdict"] for row, domain in zip(everything, names, strict=True) if domain == name]
        assert (share.num_images, share.num_unsure) == (len(mine), mine.count("unsure"))
    assert sum(share.num_images for share in found.domains.values()) == len(everything)


def test_rejects_are_counted_with_examples(found: Survey, scored: ScoredPool) -> None:
    folder = scored.pool.root / "rejects"
    reasons = [reason for path in folder.iterdir() for reason in read_parquet(path)["reason"].to_pylist()]
    assert {reason: rejected.num_images for reason, rejected in found.rejected.items()} == {
        reason: reasons.count(reason) for reason in set(reasons)
    }
    assert found.num_rejected == len(reasons)
    assert all(0 < len(rejected.examples) <= 3 for rejected in found.rejected.values())


def test_the_sample_is_that_of_the_smallest_digests(found: Survey, everything: list[dict[str, Any]]) -> None:
    smallest = sorted(everything, key=lambda row: row["sha256"])[:100]
    assert found.sample["key"].to_pylist() == [row["key"] for row in smallest]


def test_a_sample_does_not_depend_on_how_rows_come() -> None:
    digests = [f"{value:016x}" for value in np.random.default_rng(0).permutation(5000)]
    samples = []
    for step in (5000, 7, 640):
        sample = Sample(50)
        for start in range(0, len(digests), step):
            sample.add(pa.table({"sha256": digests[start : start + step]}))
        samples.append(sample.rows()["sha256"].to_pylist())
    assert samples == [sorted(digests)[:50]] * 3


def test_a_sample_of_many_shards_waits_in_few_tables() -> None:
    digests = [f"{value:016x}" for value in np.random.default_rng(0).permutation(5000)]
    sample = Sample(1000)
    for digest in digests:
        sample.add(pa.table({"sha256": [digest]}))
        assert len(sample.tables) <= MAX_TABLES + 1
    assert sample.rows()["sha256"].to_pylist() == sorted(digests)[:1000]


def test_galleries_hold_the_ends(found: Survey, everything: list[dict[str, Any]]) -> None:
    def keys(best: Best, group: str = "") -> list[str]:
        rows = best.rows(group)
        return [] if rows is None else list(rows["key"].to_pylist())

    def first(rows: list[dict[str, Any]], value: Any, limit: int) -> list[str]:
        return [row["key"] for row in sorted(rows, key=lambda row: (-np.float32(value(row)), row["sha256"]))[:limit]]

    assert keys(found.most_synthetic) == first(everything, lambda row: row["prob_synthetic"], 7)
    assert keys(found.most_real) == first(everything, lambda row: -row["prob_synthetic"], 7)
    assert keys(found.least_sure) == first(everything, lambda row: -abs(np.float32(row["prob_synthetic"]) - 0.5), 7)
    for name in found.classes:
        for best, called, column in (
            (found.synthetic_of_class, "synthetic", "prob_synthetic"),
            (found.real_of_class, "real", "confidence"),
        ):
            mine = [row for row in everything if row["pseudo_label"] == name and row["verdict"] == called]
            assert keys(best, name) == first(mine, lambda row, column=column: row[column], 3)


def test_without_scores_there_is_what_the_pool_tells(world: Any) -> None:
    pool = Pool.open(world.pool)
    found = survey(pool, None, (), sample=10, gallery=3, per_class=2)
    assert found.num_images == pool.num_images and found.scores is None and not found.classes
    assert found.formats == {"jpg": pool.num_images}
    assert found.sample.num_rows == 10 and found.most_real.rows() is None


def test_a_missing_tar_is_said_to_be_missing(world: Any, tmp_path: Path) -> None:
    shutil.copytree(world.pool, tmp_path / "pool")
    (tmp_path / "pool" / "00000.tar").unlink()
    pool = Pool.open(tmp_path / "pool")
    rows = survey(pool, None, (), sample=10_000, gallery=3, per_class=2).sample
    with pytest.raises(CorruptShard, match=r"00000\.tar: is missing"):
        list(read_rows(pool, rows))


def test_a_row_is_read_as_its_bytes_and_with_what_the_crawl_says(world: Any) -> None:
    pool = Pool.open(world.pool)
    rows = survey(pool, None, (), sample=10_000, gallery=1, per_class=1).sample
    samples = {key: sample for shard in pool.shards for key, sample in read_samples(pool.tar(shard))}
    for row, image in zip(rows.to_pylist(), read_rows(pool, rows), strict=True):
        sample = samples[row["key"]]
        assert image == sample[row["format"]]
        assert row["caption"] == sample["txt"].decode() and row["url"] == json.loads(sample["json"])["url"]


def test_scores_from_outside_and_declarations_are_counted(
    scored: ScoredPool, everything: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(scored.run, run)
    values = {row["key"]: float(i % 7) for i, row in enumerate(everything) if i % 3}
    pq.write_table(pa.table({"key": list(values), "value": list(values.values())}), tmp_path / "a.parquet")
    outside.store(run, outside.read(scored.pool, [f"nice={tmp_path / 'a.parquet'}"]), trained=False)
    # A person's mark changes the verdict on an image, but not how good the detector is.
    camera = [row for row in everything if row["declared"] == "camera"]
    honest = next(row for row in camera if not row["synthetic"])
    marks.append(run, [marks.Mark(sha256=honest["sha256"], key=honest["key"], verdict="synthetic")])
    opened = ScoredPool.open(scored.pool.root, run)
    found = survey(opened.pool, opened, opened.classes, sample=100, gallery=7, per_class=3)
    assert found.check == DeclaredCheck(Rate(0, 0), Rate(sum(row["synthetic"] for row in camera), len(camera)))
    (nice,) = found.outside.values()
    called = {row["key"]: row["synthetic"] or row["key"] == honest["key"] for row in everything}
    assert (nice.num_images, nice.low, nice.high) == (len(values), 0, 6)
    assert nice.mean(False, True) == pytest.approx(np.mean(list(values.values())))
    for verdict in (False, True):
        mine = [value for key, value in values.items() if called[key] == verdict]
        assert nice.mean(verdict) == pytest.approx(np.mean(mine))
