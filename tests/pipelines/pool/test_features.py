"""Features of a pool that are computed once and kept beside it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from models.frozen import Frozen
from pipelines import ingest
from pipelines.errors import CorruptShard
from pipelines.images.views import Views
from pipelines.pool.features import FeatureReader, FeatureStore, FileStore, Wait
from pipelines.pool.manifest import Pool
from pipelines.progress import Tick
from tests import photographs
from tests.pipelines.storage.test_object_store import bucket, server  # noqa: F401  (fixtures)

pytestmark = pytest.mark.slow

NAME = "timm:tf_efficientnet_lite0"


class Refuses(FeatureReader):
    """The same network, of which nothing may be read any more."""

    def batch(self, *_: Any, **__: Any) -> Views:
        raise AssertionError("these features were stored")


def refusing(reader: FeatureReader) -> FeatureReader:
    return Refuses(reader.frozen, reader.num_tiles, reader.num_views)


@pytest.fixture(scope="module")
def reader() -> FeatureReader:
    torch.manual_seed(0)
    return FeatureReader(Frozen(NAME, timm.create_model("tf_efficientnet_lite0").state_dict(), 64), 1, 1)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    crawl = tmp_path_factory.mktemp("crawl")
    photographs.write(crawl, range(10), synthetic=False)
    return crawl


def ingested(crawl: Path, pool: Path | str) -> Pool:
    ingest.run(ingest.IngestConfig(sources=(str(crawl),), pool=pool, jobs=1, shard_size=6))
    return Pool.open(ingest.IngestConfig(sources=(str(crawl),), pool=pool).pool)


@pytest.fixture
def pool(crawl: Path, tmp_path: Path) -> Pool:
    return ingested(crawl, tmp_path / "pool")


def read(store: FeatureStore) -> list[Views]:
    return [views for _, views in store.shards()]


def assert_equal(found: Sequence[Views], expected: Sequence[Views]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.tiles, other.tiles)


def test_what_was_read_once_is_not_read_again(pool: Pool, reader: FeatureReader) -> None:
    ticks = list[Tick]()
    first = [views for _, views in FeatureStore(pool, reader).shards(ticks.append)]
    assert ticks[-1].done == ticks[-1].total == pool.num_images == 10
    assert [len(views) for views in first] == list(pool.counts) == [6, 4]
    for views in first:
        assert views.images.shape[1:] == (3, 1280) and views.images.dtype == views.tiles.dtype == torch.float16
        assert views.tiles.shape[1] == sum(reader.widths.values()) + 1
        assert views.images.isfinite().all() and views.tiles.isfinite().all()
    assert_equal(read(FeatureStore(pool, refusing(reader))), first)


def test_the_wait_is_told_once_for_the_images_that_are_missing() -> None:
    wait = Wait([range(500, 1000), range(1000, 1200)])
    assert wait.sentence(400, 60.0) == ""  # these were stored
    assert wait.sentence(600, 4.0) == ""
    assert wait.sentence(570, 60.0) == "Reading 700 images takes about 10 min, once for each pool."
    assert wait.sentence(600, 60.0) == ""
    assert Wait([]).sentence(10, 60.0) == Wait([range(10)]).sentence(10, 60.0) == ""


def test_other_tiles_or_views_are_other_features(pool: Pool, reader: FeatureReader) -> None:
    read(FeatureStore(pool, reader))
    for other in (replace(reader, num_tiles=2), replace(reader, num_views=0)):
        assert other.digest != reader.digest
        with pytest.raises(AssertionError, match="were stored"):
            read(FeatureStore(pool, refusing(other)))


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_a_damaged_file_is_made_again(pool: Pool, reader: FeatureReader, damage: str) -> None:
    first = read(FeatureStore(pool, reader))
    path, other = sorted((Path(str(pool.root)) / "features").rglob("*.safetensors"))
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "other": other.read_bytes()}[damage])
    with pytest.raises(AssertionError, match="were stored"):
        read(FeatureStore(pool, refusing(reader)))
    assert_equal(read(FeatureStore(pool, reader)), first)
    assert_equal(read(FeatureStore(pool, refusing(reader))), first)


def test_features_of_a_shard_that_has_changed_are_made_again(pool: Pool, reader: FeatureReader, tmp_path: Path) -> None:
    read(FeatureStore(pool, reader))
    photographs.write(tmp_path / "others", range(50, 60), synthetic=False)
    changed = ingested(tmp_path / "others", tmp_path / "changed")
    (tmp_path / "pool" / "features").rename(tmp_path / "changed" / "features")
    with pytest.raises(AssertionError, match="were stored"):
        read(FeatureStore(changed, refusing(reader)))


def test_features_do_not_depend_on_the_shards_but_for_what_is_drawn(
    crawl: Path, pool: Pool, reader: FeatureReader, tmp_path: Path
) -> None:
    ingest.run(ingest.IngestConfig(sources=(str(crawl),), pool=tmp_path / "one", jobs=1))
    (whole,) = read(FeatureStore(Pool.open(tmp_path / "one"), reader))
    parts = read(FeatureStore(pool, reader))
    torch.testing.assert_close(torch.cat([part.tiles for part in parts]), whole.tiles, rtol=0.02, atol=0.05)
    assert torch.equal(torch.cat([part.tiles[:, -1] for part in parts]), whole.tiles[:, -1])


def test_a_pool_in_an_object_store_keeps_its_features_there(bucket: str, crawl: Path, reader: FeatureReader) -> None:  # noqa: F811
    pool = ingested(crawl, f"{bucket}/pool")
    first = read(FeatureStore(pool, reader))
    assert_equal(read(FeatureStore(Pool.open(pool.root), refusing(reader))), first)


def test_a_trained_backbone_gets_pixels_with_the_same_tiles(reader: FeatureReader) -> None:
    data = [photographs.jpeg(i, synthetic=False) for i in range(3)]
    with ThreadPoolExecutor(2) as threads:
        features = reader.batch(["a", "b", "c"], data, threads)
        views = replace(reader, gives_pixels=True).batch(["a", "b", "c"], data, threads)
        with pytest.raises(CorruptShard, match="image b"):
            reader.batch(["a", "b"], [data[0], b"nothing"], threads)
    assert views.images.shape == (3, 3, 64, 64) and views.images.dtype == torch.uint8
    assert torch.equal(views.tiles, features.tiles)


def test_features_of_files_are_kept_by_what_the_files_hold(pool: Pool, reader: FeatureReader) -> None:
    data = [photographs.jpeg(i, synthetic=False) for i in range(3)]
    with ThreadPoolExecutor(2) as threads:
        first = FileStore(pool, reader).batch(["a", "b", "c"], data, threads)
        assert_equal([FileStore(pool, refusing(reader)).batch(["x", "y", "z"], data, threads)], [first])
        with pytest.raises(AssertionError, match="were stored"):
            FileStore(pool, refusing(reader)).batch(["a", "b"], data[:2], threads)
