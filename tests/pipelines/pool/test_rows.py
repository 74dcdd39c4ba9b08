import shutil
from pathlib import Path

import pytest

from pipelines.errors import CorruptShard
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from tests.conftest import World


def test_labeled_images_are_left_out_by_their_digest(world: World) -> None:
    pool = Pool.open(world.pool)
    digests = frozenset(pool.rows(pool.shards[0])["sha256"].to_pylist()[:7])
    rows = Rows.of_pool(pool, without=digests)
    assert len(rows) == pool.num_images - 7
    assert len(rows.members()) == len(rows)


def test_a_cut_or_missing_shard_is_one_sentence(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.pool, tmp_path / "pool")
    rows = Rows.of_pool(Pool.open(tmp_path / "pool"))
    tar = tmp_path / "pool" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(CorruptShard, match=r"00000\.tar"):
        rows.read(list(range(100)))
    tar.unlink()
    with pytest.raises(CorruptShard, match=r"00000\.tar"):
        rows.read([0])


def test_the_rows_of_the_shards_are_those_of_the_pool(world: World) -> None:
    pool = Pool.open(world.pool)
    parts = [Rows.of_shard(pool, number) for number in range(len(pool.shards))]
    whole = Rows.of_pool(pool)
    assert [key for part in parts for key in part.key.tolist()] == whole.key.tolist()
    assert [name for part in parts for name in part.shard.tolist()] == whole.shard.tolist()
    last = parts[-1]
    assert last.read([0, len(last) - 1]) == whole.read([len(whole) - len(last), len(whole) - 1])
