"""Labeled images, unlabeled rows and the truth of a training, and batches of them."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines import ingest, train
from pipelines.errors import BadInput
from pipelines.pool.manifest import Pool, read_parquet
from pipelines.train.data import Batches, Data
from tests.conftest import World
from tests.pipelines.train.runs import config

CPU = torch.device("cpu")


def test_seeds_that_lie_in_the_pool_are_taken_out(world: World, tmp_path: Path) -> None:
    pool = Pool.open(world.pool)
    rows = pool.rows(pool.shards[0]).slice(0, 6).to_pylist()
    truth = {row["key"]: row["cls"] for row in read_parquet(world.truth).to_pylist()}
    seed = tmp_path / "seed"
    shutil.copytree(world.seed, seed)
    tar = pool.tar(pool.shards[0]).read_bytes()
    for row in rows:
        data = tar[row["offset"] : row["offset"] + row["num_bytes"]]
        label = sorted(path.name for path in world.seed.iterdir())[max(0, truth[row["member"].split(".")[0]])]
        (seed / label / f"also-in-the-pool-{row['key']}.jpg").write_bytes(data)
    summary = train.run(config(world, tmp_path / "run", labeled=seed, recipe={"num_steps": 2}))
    assert summary.labeled_in_pool == 6
    assert summary.num_unlabeled == pool.num_images - 6


@pytest.mark.parametrize("memory", ["memory", "stream"])
def test_a_truth_of_other_images_is_refused(world: World, tmp_path: Path, memory: str) -> None:
    (tmp_path / "truth.csv").write_text("key,is_synthetic\nelsewhere,1\n")
    with pytest.raises(BadInput, match=r"--truth covers no image of .*\. Its keys must be"):
        train.run(config(world, tmp_path / "run", truth=tmp_path / "truth.csv", machine={"memory": memory}))


@pytest.mark.parametrize("controls", [{"routing": "oracle"}, {"detector_examples": "truth"}])
def test_an_oracle_needs_a_truth_of_every_image(world: World, tmp_path: Path, controls: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"--truth: an oracle .* that covers every image"):
        train.run(config(world, tmp_path / "run", controls=controls))
    pq.write_table(read_parquet(world.truth).slice(0, 400), tmp_path / "part.parquet")
    with pytest.raises(BadInput, match=r"part\.parquet: an oracle .* that covers every image"):
        train.run(config(world, tmp_path / "run", controls=controls, truth=tmp_path / "part.parquet"))


def test_a_pool_of_one_image_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "crawl" / "one.png")
    ingest.run(ingest.IngestConfig(sources=(str(tmp_path / "crawl"),), pool=tmp_path / "pool", jobs=1))
    with pytest.raises(
        BadInput, match=r"pool: only 1 of its images are outside the labeled set\. Training needs 2 or more"
    ):
        train.run(config(world, tmp_path / "run", pool=tmp_path / "pool"))


def test_batches_are_functions_of_the_step_and_hold_what_the_detector_may_see(world: World, tmp_path: Path) -> None:
    settings = config(world, tmp_path, controls={"routing": "oracle"}, truth=world.truth)
    data = Data.read(settings, CPU)
    images = data.pixels(settings, CPU, lambda tick: None)
    batches = Batches(settings, data, CPU)
    (rows,) = batches.unlabeled_rows(range(3, 4))
    (views,) = images.stream([rows])
    batch, again = batches.batch(3, views), Batches(settings, data, CPU).batch(3, views)
    assert torch.equal(batch.rows, rows)
    assert len(batch.labeled) == len(batch.labels) == len(batch.labeled_tiles) == 8
    assert len(batch.unlabeled) == len(batch.unlabeled_tiles) == 16
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch, again, strict=True))
    assert data.facts is not None and batch.synthetic is not None
    assert batch.synthetic.tolist() == (data.facts[0][rows] == 1).tolist()

    assert (len(batches.shown_tiles), len(batches.held_out_tiles)) == (32, 8)
    shown, kept = (
        {tile.numpy().tobytes() for tile in tiles} for tiles in (batches.shown_tiles, batches.held_out_tiles)
    )
    assert not shown & kept
    seen = {tile.numpy().tobytes() for step in range(8) for tile in batches.batch(step, views).labeled_tiles}
    assert seen == shown
