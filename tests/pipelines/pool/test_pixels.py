import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.errors import CorruptShard
from pipelines.images.views import Decoder
from pipelines.pool import pixels
from pipelines.pool.manifest import Pool
from pipelines.progress import ignore
from pipelines.train import batches
from tests.conftest import World

CPU = torch.device("cpu")


def test_order_visits_everything_once_an_epoch_and_is_a_function_of_seed_and_step() -> None:
    order = batches.Order(10, 4, seed=1)
    rows = torch.cat([order.batch(step) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    fresh = batches.Order(10, 4, seed=1)
    assert torch.equal(fresh.batch(3), order.batch(3))
    assert not torch.equal(batches.Order(10, 4, seed=2).batch(0), order.batch(0))


def test_a_batch_may_be_larger_than_what_there_is() -> None:
    rows = batches.Order(3, 8, seed=0).batch(0)
    assert torch.bincount(rows).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_generators_of_different_steps_and_seeds_differ() -> None:
    draws = {
        torch.rand(1, generator=batches.generator(seed, step, CPU)).item() for seed in range(5) for step in range(20)
    }
    assert len(draws) == 100


@pytest.mark.parametrize("decoder", [Decoder(32, 32), Decoder(24, 20)])
def test_memory_and_stream_give_the_same_pixels(world: World, decoder: Decoder) -> None:
    rows = pixels.index(Pool.open(world.pool))
    loaded = pixels.load(rows, decoder, CPU, 2, ignore)
    streamed = pixels.Streamed(rows, decoder, CPU, 2)
    assert len(loaded) == len(streamed) == len(rows)
    order = batches.Order(len(rows), 64, seed=0)
    picked = [order.batch(step) for step in range(16)]
    for ours, theirs in zip(loaded.stream(picked), streamed.stream(picked), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.tiles, theirs.tiles)
    assert torch.equal(loaded.tiles(picked[0]), streamed.tiles(picked[0]))


def test_pixels_are_those_of_the_tar(world: World) -> None:
    pool = Pool.open(world.pool)
    rows = pixels.index(pool)
    row = len(rows) - 3
    table = pool.rows(pool.shards[-1])
    with Image.open(io.BytesIO(rows.read([row])[0])) as picture:
        expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    tiles = pixels.Streamed(rows, Decoder(32, 32), CPU, 1).tiles(torch.tensor([row]))
    assert table["key"][-3].as_py() == rows.key[row]
    assert np.array_equal(tiles[0].numpy(), expected)


def test_labeled_images_are_left_out_by_their_digest(world: World) -> None:
    pool = Pool.open(world.pool)
    digests = frozenset(pool.rows(pool.shards[0])["sha256"].to_pylist()[:7])
    rows = pixels.index(pool, without=digests)
    assert len(rows) == pool.num_images - 7
    assert len(rows.members()) == len(rows)


def test_a_cut_or_missing_shard_is_one_sentence(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.pool, tmp_path / "pool")
    rows = pixels.index(Pool.open(tmp_path / "pool"))
    tar = tmp_path / "pool" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(CorruptShard, match=r"00000\.tar"):
        rows.read(list(range(100)))
    tar.unlink()
    with pytest.raises(CorruptShard, match=r"00000\.tar"):
        rows.read([0])


def test_memory_is_chosen_where_it_fits() -> None:
    assert pixels.fits(1000, Decoder(32, 32), CPU)
    assert not pixels.fits(10**9, Decoder(224, 96), CPU)
