import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import Incompatible, MissingArtifact
from pipelines.inspect import disagreement
from pipelines.inspect.config import DisagreementConfig
from pipelines.pool.manifest import Pool
from pipelines.run import neighbors, verdicts
from pipelines.run.scores import SCORE_SCHEMA


@pytest.fixture(scope="module")
def pool(world: Any) -> Path:
    path: Path = world.pool
    return path


@pytest.fixture(scope="module")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings in three directions, and a verdict for each."""
    run = tmp_path_factory.mktemp("disagreement") / "run"
    for folder in ("scores", "embeddings", "model"):
        (run / folder).mkdir(parents=True)
    (run / "model" / "config.json").write_text(json.dumps({"classes": ["a"]}))
    verdicts.save(run, verdicts.choose([], None))
    rng = np.random.default_rng(0)
    for shard in Pool.open(pool).shards:
        keys = Pool.open(pool).rows(shard, ["key"])["key"].to_pylist()
        side = rng.integers(0, 3, len(keys))
        embeddings = np.eye(3, 16)[side] + 0.05 * rng.standard_normal((len(keys), 16))
        np.save(run / "embeddings" / f"{shard}.npy", embeddings.astype(np.float16))
        write(run, shard, keys, np.where(side == 0, 0.9, 0.1) + rng.uniform(-0.05, 0.05, len(keys)))
    return run


def write(run: Path, shard: str, keys: list[str], prob: np.ndarray | None) -> None:
    columns = {
        "key": keys,
        "prob_synthetic": [None] * len(keys) if prob is None else prob.astype(np.float32),
        "synthetic": [None] * len(keys) if prob is None else prob >= 0.5,
        "verdict": [None] * len(keys) if prob is None else np.where(prob >= 0.5, "synthetic", "real"),
        "pseudo_label": ["a"] * len(keys),
        "confidence": np.ones(len(keys), np.float32),
        "probs": [np.ones(1, np.float16)] * len(keys),
        "raw_confidence": np.ones(len(keys), np.float32),
        "typicality": np.ones(len(keys), np.float32),
    }
    pq.write_table(pa.table(columns, schema=SCORE_SCHEMA), run / "scores" / f"{shard}.parquet")


def turn(run: Path, probs: dict[str, float]) -> None:
    """Give images another probability."""
    for path in sorted((run / "scores").glob("*.parquet")):
        scores = pq.read_table(path)
        keys = scores["key"].to_pylist()
        prob = np.array([probs.get(key, p) for key, p in zip(keys, scores["prob_synthetic"].to_pylist(), strict=True)])
        write(run, path.stem, keys, prob)


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_images_whose_neighbors_contradict_them_come_first_the_least_sure_of_them_before(
    pool: Path, own_run: Path
) -> None:
    shards = Pool.open(pool).shards
    first, last = (Pool.open(pool).rows(shard, ["key"])["key"].to_pylist() for shard in (shards[0], shards[-1]))
    keys = [first[3], first[40], last[7]]
    scores = {k: p for s in shards for k, p in rows_of(own_run, s)}
    off = dict(zip(keys, (0.3, 0.01, 0.45), strict=True))  # how far on the other side
    turn(own_run, {key: 0.5 - off[key] if scores[key] > 0.5 else 0.5 + off[key] for key in keys})

    ticks: list[int] = []
    found = disagreement.run(
        DisagreementConfig(pool=pool, run=own_run, top=5, html=own_run / "sheet.html"),
        lambda tick: ticks.append(tick.done),
    )
    assert [inspection.query.key for inspection in found.inspections[:3]] == [keys[1], keys[0], keys[2]]
    assert found.contradicted == 3
    assert found.num_images == Pool.open(pool).num_images == ticks[-1]
    for inspection in found.inspections[:3]:
        assert inspection.other_verdict >= 8  # of 10: the three may be each other's neighbors
        assert inspection.query.key not in [item.key for item in inspection.neighbors]
    page = (own_run / "sheet.html").read_text()
    assert all(key in page for key in keys)


def rows_of(run: Path, shard: str) -> list[tuple[str, float]]:
    scores = pq.read_table(run / "scores" / f"{shard}.parquet")
    return list(zip(scores["key"].to_pylist(), scores["prob_synthetic"].to_pylist(), strict=True))


@pytest.mark.parametrize("exact_below", [100, 10**9])
def test_the_ranking_is_that_of_a_plain_computation(
    pool: Path, own_run: Path, exact_below: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "EXACT_BELOW", exact_below)
    shards = Pool.open(pool).shards
    rows = [row for shard in shards for row in rows_of(own_run, shard)]
    prob = dict(zip((key for key, _ in rows), np.random.default_rng(1).random(len(rows)), strict=True))
    turn(own_run, prob)
    vectors = np.concatenate([np.load(own_run / "embeddings" / f"{shard}.npy") for shard in shards]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    nearest = (-similarities).argsort(axis=1)[:, :7]
    probs = np.array([p for shard in shards for _, p in rows_of(own_run, shard)], np.float32)
    others = ((probs[nearest] >= 0.5) != (probs >= 0.5)[:, None]).sum(axis=1)
    expected = np.lexsort((np.abs(probs - 0.5), -others))[:20]

    found = disagreement.run(DisagreementConfig(pool=pool, run=own_run, top=20, neighbors=7))
    assert [inspection.other_verdict for inspection in found.inspections] == others[expected].tolist()
    assert [inspection.query.key for inspection in found.inspections] == [rows[i][0] for i in expected]
    assert found.contradicted == (others > 3).sum()


def test_where_all_agree_nothing_is_listed(pool: Path, own_run: Path) -> None:
    turn(own_run, {key: 0.1 for shard in Pool.open(pool).shards for key, _ in rows_of(own_run, shard)})
    found = disagreement.run(DisagreementConfig(pool=pool, run=own_run, html=own_run / "sheet.html"))
    assert (found.inspections, found.contradicted) == ((), 0)
    assert (own_run / "sheet.html").exists()


def test_without_a_detector_it_says_so(pool: Path, own_run: Path) -> None:
    for shard in Pool.open(pool).shards:
        write(own_run, shard, [key for key, _ in rows_of(own_run, shard)], None)
    with pytest.raises(Incompatible, match="no detector"):
        disagreement.run(DisagreementConfig(pool=pool, run=own_run))


def test_without_scores_it_says_so(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="run `curate score` first"):
        disagreement.run(DisagreementConfig(pool=pool, run=tmp_path))
