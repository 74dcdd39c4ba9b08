"""Scores of a small real pool: one function of image and model, resumed per shard, beside the truth."""

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines import export, ingest, score, train
from pipelines.errors import BadInput, CorruptShard, Incompatible, MissingArtifact
from pipelines.pool.manifest import Pool, read_parquet
from pipelines.run import domains, evaluation, model, quality
from pipelines.run.scorer import Scorer
from pipelines.run.scores import SCORE_SCHEMA, ScoredPool
from pipelines.score import ScoreConfig
from pipelines.train import TrainConfig
from tests.conftest import World

SETTINGS: dict[str, Any] = {
    "network": {"backbone": "small"},
    "recipe": {"num_steps": 12, "batch_size": 8, "unlabeled_ratio": 2},
    "machine": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained")
    train.run(TrainConfig(labeled=world.seed, pool=world.pool, run=run, truth=world.truth, **SETTINGS))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def files(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for folder in ("scores", "embeddings")
        for path in sorted((run / folder).iterdir())
    }


def test_scoring_bounds_the_share_by_domain_and_repeats_how_good_the_detector_is(world: World, run: Path) -> None:
    summary = score.run(ScoreConfig(pool=world.pool, run=run))
    assert summary.quality == quality.load(run) is not None
    assert summary.domains == domains.load(run).to_pylist()
    assert summary.domains is not None
    pool = Pool.open(world.pool)
    sources = Counter(domain for shard in pool.shards for domain in domains.of_shard(pool, shard))
    assert {row["domain"]: row["num_images"] for row in summary.domains} == {
        domain: count for domain, count in sources.most_common(domains.LARGEST) if count >= domains.FEWEST
    }
    part = score.run(ScoreConfig(pool=world.pool, run=run, shard_index=0, num_shards=2))
    assert part.domains is None  # a part of the pool says nothing of the whole


def test_every_image_gets_a_row_in_the_order_of_the_pool(world: World, run: Path) -> None:
    summary = score.run(ScoreConfig(pool=world.pool, run=run))
    pool = Pool.open(world.pool)
    assert summary.num_images == pool.num_images == sum(summary.pseudo_labels.values())
    for shard in pool.shards:
        scores = read_parquet(run / "scores" / f"{shard}.parquet")
        assert scores.schema.equals(SCORE_SCHEMA)
        assert scores["key"].to_pylist() == pool.rows(shard)["key"].to_pylist()
        probs = np.array(scores["probs"].to_pylist(), dtype=np.float32)
        assert probs.sum(1) == pytest.approx(1, abs=5e-3)
        assert probs.max(1) == pytest.approx(scores["confidence"].to_numpy(), abs=1e-3)
        embeddings = np.load(run / "embeddings" / f"{shard}.npy", allow_pickle=False)
        assert embeddings.dtype == np.float16
        assert embeddings.shape == (len(scores), 128)


def test_auroc_of_the_scores_is_what_training_reported(world: World, run: Path) -> None:
    summary = score.run(ScoreConfig(pool=world.pool, run=run, truth=world.truth))
    reported = json.loads((run / "run.json").read_text())["summary"]["metrics"]["detector_auroc"]
    assert summary.truth is not None
    assert summary.truth["auroc"] == pytest.approx(reported, abs=1e-5)
    assert 0 <= summary.truth["pseudo_label_accuracy_real"] <= 1


def test_scores_do_not_depend_on_the_batch(world: World, run: Path) -> None:
    score.run(ScoreConfig(pool=world.pool, run=run, batch_size=256))
    first = {name: read_parquet(run / "scores" / name)["prob_synthetic"].to_numpy() for name in ("00000.parquet",)}
    shutil.rmtree(run / "scores")
    score.run(ScoreConfig(pool=world.pool, run=run, batch_size=7))
    again = read_parquet(run / "scores" / "00000.parquet")["prob_synthetic"].to_numpy()
    assert again == pytest.approx(first["00000.parquet"], abs=1e-4)


def test_images_from_outside_get_the_same_scores(world: World, run: Path) -> None:
    score.run(ScoreConfig(pool=world.pool, run=run))
    pool = Pool.open(world.pool)
    rows = pool.rows("00000").slice(0, 5).to_pylist()
    tar = pool.tar("00000").read_bytes()
    data = [tar[row["offset"] : row["offset"] + row["num_bytes"]] for row in rows]
    scores = Scorer.load(run).score(data, [row["key"] for row in rows])
    table = read_parquet(run / "scores" / "00000.parquet").slice(0, 5)
    assert scores.prob_synthetic is not None
    assert scores.prob_synthetic == pytest.approx(table["prob_synthetic"].to_numpy(), abs=1e-4)
    assert scores.pseudo_label == table["pseudo_label"].to_pylist()


def test_interrupted_scoring_goes_on_to_the_same_bytes(world: World, run: Path) -> None:
    score.run(ScoreConfig(pool=world.pool, run=run))
    whole = files(run)
    (run / "scores" / "00001.parquet").unlink()  # a kill between the embeddings and the scores leaves this
    summary = score.run(ScoreConfig(pool=world.pool, run=run))
    assert summary.num_scored_before == len(Pool.open(world.pool).shards) - 1
    assert files(run) == whole


def test_new_shards_are_scored_alone_and_a_new_model_scores_all(world: World, run: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(world.pool, pool)
    shards = len(Pool.open(pool).shards)
    score.run(ScoreConfig(pool=pool, run=run))
    more = tmp_path / "more"
    more.mkdir()
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(more / f"{i}.png")
    ingest.run(ingest.IngestConfig(sources=(str(more),), pool=pool, jobs=1))
    assert score.run(ScoreConfig(pool=pool, run=run)).num_scored_before == shards
    assert read_parquet(run / "scores" / f"{shards:05d}.parquet").num_rows == 5
    saved = model.load(run, torch.device("cpu"))
    with torch.no_grad():
        saved.detector.head.bias.add_(1.0)
    model.save(run / "model", saved.config, saved.classifier, saved.detector)
    assert score.run(ScoreConfig(pool=pool, run=run)).num_scored_before == 0


def test_calls_that_share_the_shards_make_together_what_one_call_makes(world: World, run: Path, trained: Path) -> None:
    score.run(ScoreConfig(pool=world.pool, run=run))
    shared, pool = run.parent / "shared", Pool.open(world.pool)
    shutil.copytree(trained, shared)
    order = [2, 0, 1, 3]  # they know nothing of each other
    parts = [score.run(ScoreConfig(pool=world.pool, run=shared, shard_index=i, num_shards=4)) for i in order]
    assert files(shared) == files(run)
    assert (shared / "thresholds.json").read_bytes() == (run / "thresholds.json").read_bytes()
    assert sum(part.num_images for part in parts) == pool.num_images
    assert sum(part.num_shards for part in parts) == len(pool.shards) < 4 * 2
    (shared / "scores" / f"{pool.shards[-1]}.parquet").unlink()  # a call that was lost
    assert score.run(ScoreConfig(pool=world.pool, run=shared)).num_scored_before == len(pool.shards) - 1
    assert files(shared) == files(run) and (shared / "scores.json").exists()


def test_a_call_that_was_not_made_is_missed_by_the_next_stage(world: World, run: Path, tmp_path: Path) -> None:
    score.run(ScoreConfig(pool=world.pool, run=run, shard_index=1, num_shards=2))
    with pytest.raises(MissingArtifact, match=r"1 of 2 shards of .* have no scores, among them 00000"):
        export.run(export.ExportConfig(out=tmp_path / "out", pool=world.pool, run=run))
    score.run(ScoreConfig(pool=world.pool, run=run, shard_index=0, num_shards=2))
    saved = model.load(run, torch.device("cpu"))
    with torch.no_grad():
        saved.detector.head.bias.add_(1.0)
    model.save(run / "model", saved.config, saved.classifier, saved.detector)
    score.run(ScoreConfig(pool=world.pool, run=run, shard_index=0, num_shards=2))
    with pytest.raises(Incompatible, match="by two models"):
        export.run(export.ExportConfig(out=tmp_path / "out", pool=world.pool, run=run))


def test_scores_by_two_limits_or_of_an_earlier_model_are_not_read(world: World, run: Path, tmp_path: Path) -> None:
    """As an interrupted `curate score`, or a `curate train` after it, leaves them."""
    wanted = export.ExportConfig(out=tmp_path / "out", pool=world.pool, run=run)
    score.run(ScoreConfig(pool=world.pool, run=run))
    first = Pool.open(world.pool).shards[0]
    before = (run / "scores" / f"{first}.parquet").read_bytes()
    score.run(ScoreConfig(pool=world.pool, run=run, max_false_positive_rate=0.2))
    (run / "scores" / f"{first}.parquet").write_bytes(before)
    with pytest.raises(Incompatible, match="by two sets of thresholds; run `curate score` again"):
        export.run(wanted)
    score.run(ScoreConfig(pool=world.pool, run=run))
    export.run(wanted)
    saved = model.load(run, torch.device("cpu"))
    with torch.no_grad():
        saved.detector.head.bias.add_(1.0)
    model.save(run / "model", saved.config, saved.classifier, saved.detector)
    with pytest.raises(Incompatible, match="was trained again after it was scored"):
        export.run(wanted)


def test_scores_from_outside_stay_with_the_run(world: World, run: Path, tmp_path: Path) -> None:
    pool = Pool.open(world.pool)
    keys = [key for table in pool.tables(["key"]) for key in table["key"].to_pylist()]
    pq.write_table(pa.table({"key": keys[5:], "value": np.arange(len(keys) - 5)}), tmp_path / "a.parquet")
    first = score.run(ScoreConfig(pool=world.pool, run=run, scores=(f"nice={tmp_path / 'a.parquet'}",)))
    again = score.run(ScoreConfig(pool=world.pool, run=run))
    assert first.outside == again.outside == {"nice": len(keys) - 5}
    assert json.loads((run / "scores.json").read_text())["summary"]["outside"] == first.outside
    wrong = (f"nice={tmp_path / 'nowhere.csv'}",)
    shutil.rmtree(run / "scores")
    with pytest.raises(BadInput, match="there is no such file"):
        score.run(ScoreConfig(pool=world.pool, run=run, scores=wrong))
    assert not (run / "scores").exists()  # said before an hour of scoring
    with pytest.raises(BadInput, match="--scores: belong to the whole pool"):
        ScoreConfig(pool=world.pool, run=run, scores=wrong, shard_index=0, num_shards=2)


def test_declared_images_check_the_detector(world: World, run: Path) -> None:
    summary = score.run(ScoreConfig(pool=world.pool, run=run))
    pool = Pool.open(world.pool)
    scored = ScoredPool.open(world.pool, run)
    rows = pa.concat_tables(scored.rows(shard, ["declared", "synthetic"]) for shard in pool.shards).to_pylist()
    camera = [row["synthetic"] for row in rows if row["declared"] == "camera"]
    assert summary.declared is not None and camera
    assert (summary.declared.camera.called, summary.declared.camera.images) == (sum(camera), len(camera))
    stored = json.loads((run / "scores.json").read_text())["summary"]["declared"]["camera"]
    assert stored["interval"] == list(summary.declared.camera.interval)


def test_a_share_is_one_of_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--shard-index 4: the last of 4 calls has index 3"):
        ScoreConfig(shard_index=4, num_shards=4)
    with pytest.raises(BadInput, match="--truth"):
        ScoreConfig(shard_index=0, num_shards=4, truth=tmp_path)


def test_a_baseline_says_nothing_about_synthetic(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train.run(
        TrainConfig(
            labeled=world.seed,
            pool=world.pool,
            run=run,
            network={"backbone": "small"},
            recipe={"method": "supervised", "num_steps": 2, "batch_size": 8},
        )
    )
    summary = score.run(ScoreConfig(pool=world.pool, run=run))
    assert summary.called_share is None
    assert read_parquet(run / "scores" / "00000.parquet")["prob_synthetic"].null_count > 0


def test_before_training_the_sentence_says_what_to_run(world: World, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="Run `curate train"):
        score.run(ScoreConfig(pool=world.pool, run=tmp_path))


def test_broken_weights_are_one_sentence(world: World, run: Path) -> None:
    path = run / "model" / "detector.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptShard, match="cannot be loaded"):
        score.run(ScoreConfig(pool=world.pool, run=run))


def test_an_outside_file_that_is_no_image_is_one_sentence(run: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    with pytest.raises(CorruptShard, match="image bad"):
        Scorer.load(run).score([buffer.getvalue(), b"<html>"], ["good", "bad"])


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1], 0.5),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
    ],
)
def test_auroc_by_hand(scores: list[float], positive: list[int], expected: float) -> None:
    assert evaluation.auroc(scores, positive) == pytest.approx(expected)


def test_bf16_changes_no_verdict_and_hardly_a_label(world: World, run: Path) -> None:
    scored = {}
    for precision in ("fp32", "bf16"):
        summary = score.run(ScoreConfig(pool=world.pool, run=run, precision=precision))
        assert (summary.precision, summary.num_scored_before) == (precision, 0)  # scores of two precisions never mix
        scored[precision] = (
            pa.concat_tables([read_parquet(path) for path in sorted((run / "scores").glob("*.parquet"))]),
            np.concatenate([np.load(path) for path in sorted((run / "embeddings").glob("*.npy"))]).astype(np.float32),
        )
    (full, exact), (half, rounded) = scored["fp32"], scored["bf16"]
    for name in ("key", "prob_synthetic", "synthetic", "verdict"):
        assert full[name].equals(half[name])
    assert half["confidence"].to_numpy() == pytest.approx(full["confidence"].to_numpy(), abs=0.02)
    assert not half["confidence"].equals(full["confidence"])
    assert pc.mean(pc.cast(pc.equal(full["pseudo_label"], half["pseudo_label"]), pa.float32())).as_py() >= 0.99
    cosine = (exact * rounded).sum(1) / (np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1))
    assert cosine.min() > 0.999


def test_auto_is_the_precision_of_the_scores_that_are_there(world: World, run: Path) -> None:
    score.run(ScoreConfig(pool=world.pool, run=run, precision="bf16"))
    whole = files(run)
    (run / "scores" / "00001.parquet").unlink()
    summary = score.run(ScoreConfig(pool=world.pool, run=run))
    assert (summary.precision, summary.num_scored_before) == ("bf16", len(Pool.open(world.pool).shards) - 1)
    assert files(run) == whole
    assert Scorer.load(run, "cpu").precision == "bf16"
    path = run / "scores" / "00000.parquet"
    table = read_parquet(path)
    pq.write_table(table.replace_schema_metadata((table.schema.metadata or {}) | {b"precision": b"fp32"}), path)
    with pytest.raises(Incompatible, match="two precisions"):
        ScoredPool.open(world.pool, run)
