"""Photographs on a GPU: frozen features, the panel and training end to end, against a CPU."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.backbones import backbone
from models.frozen import Frozen
from models.panel import Examples, Panel, fold_of
from pipelines import ingest, score, train
from pipelines.ingest import IngestConfig
from pipelines.pool.features import FeatureReader
from pipelines.run import weights
from pipelines.run.scores import ScoredPool
from pipelines.score import ScoreConfig
from pipelines.train import TrainConfig
from tests import photographs

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

CPU = torch.device("cpu")


def frozen(name: str, size: int, at: torch.device, precision: str = "fp32") -> Frozen:
    torch.manual_seed(0)
    context = torch.autocast(at.type, torch.bfloat16) if precision == "bf16" else None
    return Frozen(name, backbone(name, size)[0].state_dict(), size, context).to(at)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected.cpu().double()).norm() / expected.cpu().double().norm())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.01), ("bf16", 0.03)])
@pytest.mark.parametrize(
    ("name", "size"),
    [("timm:tf_efficientnet_lite0", 96), ("timm:vit_pe_core_tiny_patch16_384.fb", 96), ("timm:resnet18", 96)],
)
def test_features_are_those_of_a_cpu(
    name: str, size: int, precision: str, tolerance: float, device: torch.device
) -> None:
    images = torch.randint(0, 256, (6, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    on_gpu = frozen(name, size, device, precision)
    ours, theirs = on_gpu(images.to(device)), frozen(name, size, CPU)(images)
    assert distance(ours.low, theirs.low) < tolerance
    assert distance(ours.pooled, theirs.pooled) < tolerance
    assert distance(on_gpu.low(images.to(device)), theirs.low) < tolerance


def test_what_the_witnesses_see_is_what_they_see_on_a_cpu(device: torch.device) -> None:
    files = [photographs.jpeg(i, synthetic=i % 2 == 0) for i in range(6)]
    names = [f"{i}.jpg" for i in range(len(files))]
    with ThreadPoolExecutor(2) as threads:
        ours, theirs = (
            FeatureReader(frozen("timm:test_efficientnet", 96, at), 2, 1).batch(names, files, threads)
            for at in (device, CPU)
        )
    assert ours.images.shape == theirs.images.shape and ours.tiles.shape == theirs.tiles.shape
    assert distance(ours.tiles, theirs.tiles) < 0.01
    assert torch.equal(ours.tiles[:, -1], theirs.tiles[:, -1])  # the folds
    assert distance(ours.images[:, 0], theirs.images[:, 0]) < 0.01  # views are drawn by each device's own generator


def test_a_panel_fitted_on_a_gpu_scores_as_one_on_a_cpu(device: torch.device) -> None:
    rng = torch.Generator().manual_seed(0)
    num_labeled, num_pool = 150, 450
    features = torch.randn(num_labeled + num_pool, 1200, generator=rng)  # the first witness has more than images
    features[num_labeled::3, :3] += 1.5
    folds = fold_of([hashlib.sha256(str(i).encode()).hexdigest() for i in range(len(features))])
    packed = torch.cat((features, folds[:, None]), 1).half()
    is_labeled = torch.arange(len(packed)) < num_labeled
    scores = []
    for at in (device, CPU):
        examples = Examples(~is_labeled, is_labeled, is_labeled.double(), torch.zeros(len(packed)).double())
        panel = Panel({"wide": 1100, "narrow": 100}).to(at)
        panel.fit(packed.to(at), Examples(*(part.to(at) for part in examples)))
        scores.append(panel.score(packed.to(at)))
    torch.testing.assert_close(scores[0].cpu(), scores[1], rtol=1e-3, atol=1e-3)


# End to end.


@pytest.fixture(scope="module")
def home(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of 32 photographs, half of them synthetic, and a labeled set of 12 real ones."""
    home = tmp_path_factory.mktemp("photographs")
    photographs.write(home / "crawl" / "real", range(16), synthetic=False)
    photographs.write(home / "crawl" / "synthetic", range(16), synthetic=True)
    photographs.write(home / "seed", range(100, 112), synthetic=False, classes=True)
    ingest.run(IngestConfig(sources=(str(home / "crawl"),), pool=home / "pool", jobs=1, shard_size=20))
    return home


def probabilities(home: Path, run: Path) -> np.ndarray:
    pool = ScoredPool.open(home / "pool", run)
    return pa.concat_tables(pool.rows(shard, ["prob_synthetic"]) for shard in pool.shards)["prob_synthetic"].to_numpy()


@pytest.mark.parametrize("is_frozen", [False, True], ids=["end to end", "frozen"])
def test_a_pretrained_backbone_is_trained_on_photographs_and_scores_as_on_a_cpu(
    home: Path, tmp_path: Path, device: torch.device, is_frozen: bool
) -> None:
    installed = weights.embedded_weights(weights.EMBEDDED)
    if installed is None:
        pytest.skip(f"needs the package {weights.PACKAGE}")
    run = tmp_path / "run"
    network = {"backbone": weights.EMBEDDED, "pretrained": True, "frozen": is_frozen, "image_size": 96, "tiles": 2}
    recipe = {"num_steps": 4, "batch_size": 4, "unlabeled_ratio": 2, "warmup": 0.25, "held_out": 0.0}
    train.run(
        TrainConfig.model_validate(
            {
                "labeled": home / "seed", "pool": home / "pool", "run": run, "network": network, "recipe": recipe,
                "machine": {"device": device.type, "log_every": 1},
            }
        )
    )  # fmt: skip
    name = "frozen" if is_frozen else "classifier"
    tensors = load_file(run / "model" / f"{name}.safetensors")
    stem = tensors["conv_stem.weight" if is_frozen else "backbone.conv_stem.weight"]
    assert stem.isfinite().all()
    assert torch.equal(stem, installed["conv_stem.weight"]) == is_frozen
    found = []
    for at in (device.type, "cpu"):
        score.run(ScoreConfig(pool=home / "pool", run=run, device=at))  # type: ignore[arg-type]
        found.append(probabilities(home, run))
        (run / "scores").rename(run / f"scores-{at}-{len(found)}")
    assert np.isfinite(found[0]).all() and found[0].std() > 0.01
    assert np.abs(found[0] - found[1]).max() < 0.1
