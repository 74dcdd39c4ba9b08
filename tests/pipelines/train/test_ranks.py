"""Two real processes under torchrun come to what one process comes to with the same global batch."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines import train
from pipelines.errors import BadInput
from pipelines.report.history import toml
from pipelines.storage import locks
from pipelines.train import TrainConfig
from tests import warm
from tests.conftest import World
from tests.pipelines.train import runs
from tests.pipelines.train.runs import metrics

# fp32 and small steps: sums in another order are not equal to the bit, and training makes such differences grow.
SETTINGS: dict[str, Any] = {
    "recipe": {
        "num_steps": 12,
        # The detector starts at once: after some steps, one pseudo-label that rounding turned would give it others.
        "warmup": 0.0,
        "learning_rate": 0.003,
        "confidence_threshold": 0.6,  # above 0.5, which is what a detector that has not settled says of all images
    },
    "machine": {"checkpoint_every": 4, "evaluate_every": 1000, "precision": "fp32"},
}


def config(world: World, run: Path, **changes: Any) -> TrainConfig:
    return runs.config(world, run, SETTINGS, changes)


def command(settings: TrainConfig) -> list[str]:
    recipe = settings.run.with_suffix(".toml")
    recipe.write_text(toml(settings.model_dump(mode="json")))
    return ["-m", "curate", "train", "--config", str(recipe), "--json"]


def torchrun(settings: TrainConfig, count: int) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run([*launcher, *command(settings)], capture_output=True, text=True, timeout=300)


def forks(settings: TrainConfig, count: int) -> subprocess.CompletedProcess[str]:
    """Start the same processes as forks: torchrun starts three fresh interpreters."""
    return warm.ranks(command(settings), count, settings.run.parent)


@pytest.mark.parametrize(("detector_init", "start"), [("features", torchrun), ("random", forks)])
def test_two_ranks_come_to_what_one_process_comes_to(
    world: World, tmp_path: Path, detector_init: str, start: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    train.run(config(world, tmp_path / "one", controls={"detector_init": detector_init}))
    done = start(config(world, tmp_path / "two", controls={"detector_init": detector_init}), 2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_steps"] == 12  # one rank speaks for all
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in two] == [4, 8, 12]
    assert "detector_sup" in two[-1]
    assert two[0] == pytest.approx(one[0], rel=2e-3, abs=2e-4)
    # Later an image at the edge of two pseudo-classes may fall to the other side, and so another one into the queue.
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=0.1, abs=0.04)
    weights = [load_file(tmp_path / run / "model" / "classifier.safetensors") for run in ("one", "two")]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key].float(), value.float(), rtol=0.1, atol=0.02)


def test_baselines_on_two_ranks_share_the_batch_norm_of_timm(world: World, tmp_path: Path) -> None:
    """Which goes on to an activation that must not get lost."""
    baseline = {
        "network": {"backbone": "timm:test_efficientnet", "image_size": 32},
        "recipe": {"method": "fixmatch", "learning_rate": 0.0003},
    }
    train.run(config(world, tmp_path / "one", **baseline))
    done = forks(config(world, tmp_path / "two", **baseline), 2)
    assert done.returncode == 0, done.stderr
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert two[0] == pytest.approx(one[0], rel=2e-3, abs=2e-4)


def test_routes_have_the_statistics_of_one_process_on_two_ranks(world: World, tmp_path: Path) -> None:
    """One process passes each route through the network by itself; ranks share sums over masks (models.norms)."""
    routed = {"controls": {"routing": "oracle"}, "truth": world.truth}
    train.run(config(world, tmp_path / "one", **routed))
    done = forks(config(world, tmp_path / "two", **routed), 2)
    assert done.returncode == 0, done.stderr
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert 0 < one[0]["dummy_share"] < 1
    assert two[0] == pytest.approx(one[0], rel=2e-3, abs=2e-4)
    ours, theirs = (load_file(tmp_path / run / "model" / "classifier.safetensors") for run in ("two", "one"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key].float(), value.float(), rtol=0.1, atol=0.02)


def test_a_checkpoint_is_resumed_with_another_number_of_ranks(world: World, tmp_path: Path) -> None:
    train.run(config(world, tmp_path / "one"))

    def interrupt(tick: Any) -> None:
        if tick.unit == "steps" and tick.done == 6:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train.run(config(world, tmp_path / "two"), interrupt)
    done = forks(config(world, tmp_path / "two"), 2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed_at"] == 6
    assert metrics(tmp_path / "two")[-1] == pytest.approx(metrics(tmp_path / "one")[-1], rel=0.1, abs=0.04)


def test_a_run_that_another_writes_into_is_refused_and_no_rank_waits_for_ever(world: World, tmp_path: Path) -> None:
    with locks.held(tmp_path / "run"):
        done = torchrun(config(world, tmp_path / "run"), 2)
    assert done.returncode != 0
    assert f"process {os.getpid()} " in done.stderr and "is writing into it" in done.stderr


def test_a_batch_that_the_ranks_cannot_share_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(BadInput, match="batch_size = 8 cannot be shared by 3 ranks"):
        train.run(config(world, tmp_path))
