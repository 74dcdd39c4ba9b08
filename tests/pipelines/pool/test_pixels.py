import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.images.views import Decoder
from pipelines.pool import pixels
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.progress import ignore
from tests.conftest import World

CPU = torch.device("cpu")


@pytest.mark.parametrize("decoder", [Decoder(32, 32), Decoder(24, 20)])
def test_memory_and_stream_give_the_same_pixels(world: World, decoder: Decoder) -> None:
    rows = Rows.of_pool(Pool.open(world.pool))
    loaded = pixels.load(rows, decoder, CPU, 2, ignore)
    streamed = pixels.Streamed(rows, decoder, CPU, 2)
    assert len(loaded) == len(streamed) == len(rows)
    rng = torch.Generator().manual_seed(0)
    picked = [torch.randperm(len(rows), generator=rng)[:64] for _ in range(16)]
    for ours, theirs in zip(loaded.stream(picked), streamed.stream(picked), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.tiles, theirs.tiles)
    assert torch.equal(loaded.tiles(picked[0]), streamed.tiles(picked[0]))


def test_pixels_are_those_of_the_tar(world: World) -> None:
    pool = Pool.open(world.pool)
    rows = Rows.of_pool(pool)
    row = len(rows) - 3
    table = pool.rows(pool.shards[-1])
    with Image.open(io.BytesIO(rows.read([row])[0])) as picture:
        expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    tiles = pixels.Streamed(rows, Decoder(32, 32), CPU, 1).tiles(torch.tensor([row]))
    assert table["key"][-3].as_py() == rows.key[row]
    assert np.array_equal(tiles[0].numpy(), expected)


def test_memory_is_chosen_where_it_fits() -> None:
    assert pixels.fits(1000, Decoder(32, 32), CPU)
    assert not pixels.fits(10**9, Decoder(224, 96), CPU)
