from pathlib import Path

import numpy as np
from PIL import Image

from pipelines import benchmark
from tests.conftest import World
from tests.pipelines.benchmark.matrices import config, lines


def test_of_a_clean_pool_it_says_what_the_detector_invents(world: World, sources: Path, tmp_path: Path) -> None:
    benchmark.run(config(world, sources, tmp_path, methods=("rsmatch",), alphas=(0.0,)))
    (record,) = lines(tmp_path)
    assert {"detector_flagged", "share_synthetic", "share_interval", "held_out_auroc"} <= set(record)
    assert "detector_auroc" not in record


def test_photographs_are_judged_by_how_they_were_scaled(world: World, sources: Path, tmp_path: Path) -> None:
    photographs = tmp_path / "photographs" / "any"
    photographs.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(photographs / f"{i}.png")
    settings = config(world, sources, tmp_path / "out", methods=("rsmatch",), photographs=photographs.parent)
    benchmark.run(settings)
    (record,) = lines(tmp_path / "out")
    assert set(record["scaled_photographs"]) == {"lanczos", "bicubic", "box", "bilinear"}
    assert all(share in (0, 0.3333, 0.6667, 1) for share in record["scaled_photographs"].values())
