import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.pool.manifest import Pool
from pipelines.run import neighbors
from pipelines.run.neighbors import Index, choose
from pipelines.run.scores import ScoredPool
from pipelines.score import ScoreConfig
from pipelines.score import run as score
from tests.conftest import save_untrained


@pytest.fixture(scope="module")
def pool(world: Any) -> Path:
    path: Path = world.pool
    return path


@pytest.fixture
def run(untrained: Path, tmp_path: Path) -> Path:
    shutil.copytree(untrained / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def last_aside(pool: Path, run: Path) -> Callable[[], None]:
    """Take the scores of the last shard away; calling puts them back."""
    scores = run / "scores" / f"{Pool.open(pool).shards[-1]}.parquet"
    scores.rename(run / "aside")
    return lambda: (run / "aside").rename(scores) and None  # type: ignore[func-returns-value]


class Opener:
    def __init__(self, pool: Path, run: Path) -> None:
        self.pool, self.run = pool, run

    def __call__(self) -> Index:
        """Open the index; `built` says which of the shards that took."""
        self.built: list[int] = []
        return Index.open(ScoredPool.open(self.pool, self.run), lambda tick: self.built.append(tick.done))


@pytest.fixture
def opened(pool: Path, run: Path) -> Opener:
    return Opener(pool, run)


def all_embeddings(pool: Path, run: Path) -> np.ndarray:
    parts = [np.load(run / "embeddings" / f"{shard}.npy") for shard in Pool.open(pool).shards]
    vectors = np.concatenate(parts).astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_it_is_built_once_extended_by_new_shards_and_rebuilt_for_another_model(
    pool: Path, run: Path, last_aside: Callable[[], None], opened: Opener
) -> None:
    shards = len(Pool.open(pool).shards)
    assert shards > 1
    opened()
    assert opened.built == list(range(1, shards))
    opened()
    assert opened.built == []
    last_aside()
    assert opened().num_images == Pool.open(pool).num_images
    assert opened.built == [shards]
    before = (run / "index" / "faiss.index").read_bytes()
    shutil.rmtree(run / "index")
    opened()
    assert (run / "index" / "faiss.index").read_bytes() == before

    save_untrained(run, seed=1)
    score(ScoreConfig(pool=pool, run=run, device="cpu"))
    rebuilt = opened()
    assert opened.built == list(range(1, shards + 1))
    (nearest,) = rebuilt.search(np.load(run / "embeddings" / "00000.npy")[:1], 1)
    assert (nearest[0].shard, nearest[0].row) == ("00000", 0)


@pytest.mark.parametrize("damage", ["cut", "gone", "marked too early"])
def test_a_damaged_index_is_built_anew(run: Path, last_aside: Callable[[], None], opened: Opener, damage: str) -> None:
    file, marks = run / "index" / "faiss.index", run / "index" / "index.json"
    opened()
    fewer = file.read_bytes()
    last_aside()
    query = np.load(run / "embeddings" / "00000.npy")[:3]
    expected = opened().search(query, 5)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "gone":
        file.unlink()
    else:  # the index of fewer shards than index.json says
        assert json.loads(marks.read_text())["shards"]
        file.write_bytes(fewer)
    assert opened().search(query, 5) == expected
    assert opened.built


@pytest.mark.parametrize("kind", ["SQfp16", "SQ6"])
def test_an_inverted_file_finds_what_it_says_it_does(
    pool: Path, run: Path, opened: Opener, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "EXACT_BELOW", 100)
    monkeypatch.setattr(neighbors, "FULL_BELOW", 100 if kind == "SQ6" else 10**9)
    built = opened()
    assert built.facts.factory == f"IVF16,{kind}"
    assert built.facts.lists_searched is not None and built.facts.lists_searched < 16
    assert built.facts.recall_at_10 >= neighbors.TARGET_RECALL

    vectors = all_embeddings(pool, run)
    similarities = vectors @ vectors.T
    distances, positions = built.search_positions(vectors, 11)
    exact = 1 - np.take_along_axis(similarities, positions, 1)
    assert distances == pytest.approx(exact, abs=1e-5)
    assert (np.diff(distances, axis=1) >= 0).all()
    np.fill_diagonal(similarities, -np.inf)
    tenth = -np.sort(-similarities, axis=1)[:, 9]
    others = positions != np.arange(len(vectors))[:, None]
    found = (others & (1 - distances >= tenth[:, None] - 1e-6)).sum(axis=1).clip(max=10).mean() / 10
    assert found == pytest.approx(built.facts.recall_at_10, abs=0.02)


@pytest.mark.parametrize("exact_below", [100, 10**9])
def test_neighborhoods_are_all_images_once_and_a_rough_search_finds_most_neighbors(
    pool: Path, run: Path, opened: Opener, exact_below: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "EXACT_BELOW", exact_below)
    monkeypatch.setattr(neighbors, "NEIGHBORHOOD", 128)
    built = opened()
    vectors = all_embeddings(pool, run)
    seen = []
    for own in built.neighborhoods():
        assert 0 < len(own) <= 128
        assert built.embeddings(own) == pytest.approx(vectors[own], abs=1e-6)
        seen += own.tolist()
    assert sorted(seen) == list(range(built.num_images))

    monkeypatch.setattr(neighbors, "ROUGH_LISTS", 2)
    (rough, (_, thorough)) = built.search_roughly(vectors, 11), built.search_positions(vectors, 11)
    found = np.mean([len({*few} & {*many}) / 11 for few, many in zip(rough.tolist(), thorough.tolist(), strict=True)])
    assert found == 1 if built.facts.exact else 0.5 < found < 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are looked up in /proc, which is not here")
def test_a_stored_one_stays_on_the_disk_until_it_is_searched(
    run: Path, last_aside: Callable[[], None], opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "EXACT_BELOW", 100)
    query = np.load(run / "embeddings" / "00000.npy")[:5]
    built = opened()
    loaded = opened()
    assert not opened.built
    assert str(run / "index" / "faiss.index") in Path("/proc/self/maps").read_text()
    assert loaded.facts == built.facts
    assert loaded.search(query, 5) == built.search(query, 5)
    last_aside()
    extended = opened()
    assert len(opened.built) == 1
    assert extended.num_images > loaded.num_images
    assert extended.facts.num_queries == neighbors.NUM_QUERIES
    assert loaded.search(query, 5) == built.search(query, 5)  # it has the file that it opened


def test_a_pool_that_outgrows_its_kind_of_index_gets_the_next(
    pool: Path, last_aside: Callable[[], None], opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "EXACT_BELOW", Pool.open(pool).num_images)
    assert opened().facts.exact
    last_aside()
    assert opened().facts.factory == "IVF16,SQfp16"
    assert opened.built == list(range(1, len(Pool.open(pool).shards) + 1))


@pytest.mark.parametrize(
    ("num_images", "factory"),
    [
        (1, "Flat"),
        (49_999, "Flat"),
        (50_000, "IVF256,SQfp16"),
        (1_000_000, "IVF1024,SQfp16"),
        (4**11, "IVF4096,SQ6"),
        (100_000_000, "IVF16384,SQ6"),
    ],
)
def test_the_kind_follows_the_size(num_images: int, factory: str) -> None:
    assert choose(num_images) == factory


def test_more_neighbors_than_a_search_finds_are_left_out(
    opened: Opener, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "EXACT_BELOW", 100)
    built = opened()
    query = np.load(run / "embeddings" / "00000.npy")[:1]
    built.faiss.nprobe = 1
    (found,) = built.search(query, built.num_images)
    assert 0 < len(found) < built.num_images
    assert (found[0].shard, found[0].row) == ("00000", 0)
