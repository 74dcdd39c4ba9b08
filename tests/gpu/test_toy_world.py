"""Training and scoring on a GPU, through the stages: resume, the exported program, and scores against a CPU's."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines import score, train
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.run import model
from pipelines.run.scores import ScoredPool
from pipelines.score import ScoreConfig
from tests.conftest import World
from tests.pipelines.train.runs import config, interrupt_at, metrics

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def trained(device: torch.device, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_into(tmp_path_factory.mktemp("trained"), world, device)


def train_into(run: Path, world: World, device: torch.device, *, stop_at: int | None = None) -> Path:
    """Train in fp32, so that less than rounding to bf16 tells two trainings apart."""
    settings = config(world, run, machine={"device": device.type, "precision": "fp32"})
    if stop_at is not None:
        with pytest.raises(KeyboardInterrupt):
            train.run(settings, interrupt_at(stop_at))
    assert train.run(settings).resumed_at == (stop_at or 0)
    return run


def weights(run: Path) -> Tensor:
    state = load_file(run / "model" / "classifier.safetensors")
    return torch.cat([value.double().flatten() for value in state.values()])


def test_a_resumed_training_ends_where_another_uninterrupted_one_does(
    trained: Path, world: World, tmp_path: Path, device: torch.device
) -> None:
    """A GPU sums in any order, so two equal trainings differ; an interruption must add nothing to that."""
    first = weights(trained)
    again, resumed = (
        weights(train_into(tmp_path / name, world, device, stop_at=stop)) for name, stop in (("a", None), ("b", 13))
    )
    assert (resumed - first).norm() <= 3 * (again - first).norm() + 1e-3 * first.norm()
    lines, others = metrics(tmp_path / "b"), metrics(trained)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    assert lines[-1]["sup_real"] == pytest.approx(others[-1]["sup_real"], rel=0.1, abs=0.01)


def test_the_exported_programs_of_a_gpu_run_on_a_cpu(trained: Path) -> None:
    classifier, detector = (
        torch.export.load(trained / "model" / f"{name}.pt2").module() for name in ("classifier", "detector")
    )
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.load(trained, torch.device("cpu"))
        torch.testing.assert_close(classifier(images), expected.classifier(images).real, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(detector(images), expected.detector(images).sigmoid(), rtol=0, atol=1e-5)


# Scores.


@dataclass(frozen=True)
class Scored:
    """What scoring says of a pool's images."""

    probs: np.ndarray
    verdicts: np.ndarray
    labels: np.ndarray


def scored_on(device: str, trained: Path, world: World, run: Path) -> Scored:
    shutil.copytree(trained, run)
    score.run(ScoreConfig(pool=world.pool, run=run, device=device))  # type: ignore[arg-type]
    pool = ScoredPool.open(world.pool, run)
    rows = pa.concat_tables(pool.rows(shard, ["prob_synthetic", "verdict", "pseudo_label"]) for shard in pool.shards)
    return Scored(*(rows[name].to_numpy() for name in ("prob_synthetic", "verdict", "pseudo_label")))


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort(kind="stable").argsort(kind="stable")


def test_scores_of_a_gpu_are_those_of_a_cpu(trained: Path, world: World, tmp_path: Path, device: torch.device) -> None:
    ours, theirs = (
        scored_on(name, trained, world, tmp_path / place) for name, place in ((device.type, "ours"), ("cpu", "theirs"))
    )
    assert np.abs(ours.probs - theirs.probs).max() < 0.03
    assert np.corrcoef(ranks(ours.probs), ranks(theirs.probs))[0, 1] > 0.99
    assert (ours.verdicts == theirs.verdicts).mean() > 0.98
    assert (ours.labels == theirs.labels).mean() > 0.98


def test_networks_in_bf16_rank_as_in_fp32(trained: Path, world: World, device: torch.device) -> None:
    pool = Pool.open(world.pool)
    rows = Rows.of_shard(pool, 0)
    loaded = model.load(trained, device)
    with torch.no_grad():
        numbers = list(range(min(200, len(rows))))
        files = rows.read(numbers)
        decoded = [loaded.pixels.decode(str(rows.key[i]), files[i]) for i in numbers]
        images, tiles = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*decoded, strict=True))

        def outputs(context: AbstractContextManager[object]) -> tuple[Tensor, Tensor, Tensor]:
            with context:
                embedded = loaded.embed(images)
                return embedded.float(), loaded.classifier.real(embedded).float(), loaded.detector(tiles).float()

        half, full = outputs(torch.autocast(device.type, torch.bfloat16)), outputs(nullcontext())
    assert torch.nn.functional.cosine_similarity(half[0], full[0]).min() > 0.995
    assert (half[1].argmax(1) == full[1].argmax(1)).float().mean() > 0.97
    logits = [each[2].cpu().numpy() for each in (half, full)]
    assert np.corrcoef(ranks(logits[0]), ranks(logits[1]))[0, 1] > 0.99
