import io
import os
import shutil
from contextlib import closing
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.errors import CorruptShard
from pipelines.images.views import Decoder
from pipelines.pool import decoding, pixels
from pipelines.pool.manifest import Pool
from pipelines.pool.pixels import Decoding
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


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [Decoder(32, 32), Decoder(24, 20)])
@pytest.mark.parametrize("num_bytes", [decoding.CHUNK_BYTES, 100_000], ids=["one chunk", "many"])
def test_processes_decode_what_threads_decode(
    world: World, decoder: Decoder, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "CHUNK_BYTES", num_bytes)
    rows = Rows.of_pool(Pool.open(world.pool))
    batches = [(rows, part) for part in torch.arange(len(rows)).split(50)]
    with closing(Decoding(decoder, CPU, 2)) as on_threads, closing(Decoding(decoder, CPU, 2, 2)) as in_processes:
        for ours, theirs in zip(in_processes.stream(batches), on_threads.stream(batches), strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.tiles, theirs.tiles)
            assert (ours.images is ours.tiles) == (theirs.images is theirs.tiles)
        abandoned = in_processes.stream(batches)
        next(abandoned)
        assert active_children()
        abandoned.close()  # type: ignore[attr-defined]
    assert not active_children()


@pytest.mark.slow
def test_processes_name_an_image_that_cannot_be_decoded(world: World, tmp_path: Path) -> None:
    copied = shutil.copytree(world.pool, tmp_path / "pool")
    rows = Rows.of_pool(Pool.open(copied))
    with (copied / "00000.tar").open("r+b") as file:
        file.seek(int(rows.offset[7]))
        file.write(b"\0" * 200)
    with (
        closing(Decoding(Decoder(32, 32), CPU, 2, 2)) as in_processes,
        pytest.raises(CorruptShard, match=f"image {rows.key[7]} cannot be decoded") as raised,
    ):
        list(in_processes.stream((rows, part) for part in torch.arange(len(rows)).split(50)))
    assert "\n" not in str(raised.value)


def test_processes_are_for_many_images_and_no_more_than_a_process_may_have_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    found = [decoding.num_processes(*given) for given in ((10_000, 64), (10_000, 8), (10_000, 2), (100, 64))]
    assert found == [decoding.MOST_PROCESSES, 8, 0, 0]  # a task of Ray and a rank of torchrun have one or two threads


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
