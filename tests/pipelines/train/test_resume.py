"""A training that was interrupted ends with the numbers of an uninterrupted one, or refuses to resume."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines import train
from pipelines.errors import CorruptShard, Incompatible
from pipelines.pool.manifest import Pool
from pipelines.run import checkpoint, model
from tests.conftest import World
from tests.pipelines.train.runs import config, interrupt_at, metrics, weights
from tests.warm import Process


@pytest.mark.parametrize("stop_at", [3, 7, 13])
def test_ctrl_c_saves_and_the_rest_is_the_same_numbers(
    uninterrupted: Path, world: World, tmp_path: Path, stop_at: int
) -> None:
    settings = config(world, tmp_path, validation=world.test, truth=world.truth)
    with pytest.raises(KeyboardInterrupt):
        train.run(settings, interrupt_at(stop_at))
    assert not (tmp_path / "model").exists()
    summary = train.run(settings)
    assert summary.resumed_at == stop_at
    assert (tmp_path / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()
    assert weights(tmp_path) == weights(uninterrupted)


def test_kill_9_costs_the_steps_since_the_checkpoint_only(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    settings = config(world, tmp_path, validation=world.test, truth=world.truth)
    script = (
        "import sys\nfrom pipelines.train import TrainConfig, run\nrun(TrainConfig.model_validate_json(sys.argv[1]))"
    )
    log = tmp_path / "metrics.jsonl"
    child = Process(("-c", script, settings.model_dump_json()))
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with log.open("a") as file:
        file.write('{"step": 9')  # what a kill in the middle of a line leaves
    summary = train.run(settings)
    assert summary.resumed_at in (6, 12, 18, 24)
    assert metrics(tmp_path) == metrics(uninterrupted)
    assert weights(tmp_path) == weights(uninterrupted)


def test_a_finished_run_is_not_trained_again(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    summary = train.run(config(world, tmp_path / "run"))
    assert summary.resumed_at == 24
    assert weights(tmp_path / "run") == weights(uninterrupted)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe": {"learning_rate": 0.1}}, "recipe.learning_rate"),
        ({"network": {"image_size": 48}}, "network.image_size"),
        ({"controls": {"split_norms": False}}, "controls.split_norms"),
        ({"machine": {"precision": "bf16"}}, "machine.precision"),
        ({"seed": 1, "recipe": {"momentum": 0.5, "warmup": 0.5}}, "recipe.momentum, recipe.warmup, seed"),
    ],
)
def test_another_configuration_does_not_resume(
    uninterrupted: Path, world: World, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    with pytest.raises(Incompatible, match=f"trained with other {named}\\. Repeat"):
        train.run(config(world, tmp_path / "run", changes))


def test_another_configuration_starts_over_where_it_is_told_to(
    uninterrupted: Path, world: World, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    other = {"learning_rate": 0.1, "num_steps": 2}
    assert train.run(config(world, tmp_path / "run", recipe=other, resume=False)).resumed_at == 0


def test_where_a_training_runs_and_what_it_reports_may_change(
    uninterrupted: Path, world: World, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "elsewhere")
    machine = {"memory": "stream", "checkpoint_every": 5, "evaluate_every": 7}
    assert train.run(config(world, tmp_path / "elsewhere", machine=machine)).resumed_at == 24


def test_a_checkpoint_of_another_version_does_not_resume(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "state.safetensors"
    tensors, state = checkpoint.load(path, torch.device("cpu"))
    del tensors["thresholds/route"]
    checkpoint.save(path, tensors, state)
    with pytest.raises(Incompatible, match="written by another version"):
        train.run(config(world, tmp_path / "run"))


def test_other_images_do_not_resume(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    seed = tmp_path / "seed"
    shutil.copytree(world.seed, seed)
    next(seed.rglob("*.jpg")).unlink()
    with pytest.raises(Incompatible, match="trained with other labeled\\. Repeat"):
        train.run(config(world, tmp_path / "run", labeled=seed))
    _swap_labels(seed)
    with pytest.raises(Incompatible, match="trained with other labeled\\. Repeat"):
        train.run(config(world, tmp_path / "run", labeled=seed))
    smaller = tmp_path / "pool"
    shutil.copytree(world.pool, smaller)
    last = Pool.open(smaller).shards[-1]
    (smaller / f"{last}_stats.json").unlink()
    with pytest.raises(Incompatible, match="trained with other pool\\. Repeat"):
        train.run(config(world, tmp_path / "run", pool=smaller))


def _swap_labels(seed: Path) -> None:
    """Exchange the names of two classes."""
    first, second, *_ = sorted(seed.iterdir())
    first.rename(seed / "between")
    second.rename(first)
    (seed / "between").rename(second)


def test_a_training_resumes_after_pool_and_labeled_set_were_moved(
    uninterrupted: Path, world: World, tmp_path: Path
) -> None:
    moved = {"pool": tmp_path / "b c" / "the pool", "labeled": tmp_path / "b c" / "the seed"}
    shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.copytree(world.pool, moved["pool"])
    shutil.copytree(world.seed, moved["labeled"])
    assert train.run(config(world, tmp_path / "run", **moved)).resumed_at == 24


def test_a_broken_checkpoint_is_one_sentence(world: World, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(CorruptShard, match="not a readable checkpoint"):
        train.run(config(world, tmp_path))


@pytest.mark.parametrize(("method", "head"), [("openmatch", "one_vs_all"), ("iomatch", "open_set")])
def test_open_set_heads_are_resumed_and_then_thrown_away(
    uninterrupted: Path, world: World, tmp_path: Path, method: str, head: str
) -> None:
    recipe = {"method": method, "num_steps": 10}
    once, twice = (config(world, tmp_path / name, recipe=recipe, validation=world.test) for name in ("once", "twice"))
    train.run(once)
    with pytest.raises(KeyboardInterrupt):
        train.run(twice, interrupt_at(5))
    assert train.run(twice).resumed_at == 5
    assert metrics(twice.run) == metrics(once.run)
    assert {"sup_open", "self_open", "inlier_share", "accuracy"} <= set(metrics(once.run)[-1])
    states = [load_file(run / "checkpoint" / "state.safetensors") for run in (once.run, twice.run)]
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)
    assert f"open/{head}.weight" in states[0]
    assert not any(name.startswith(("detector", "queue", "thresholds")) for name in states[0])
    saved = load_file(once.run / "model" / "classifier.safetensors")
    assert saved.keys() == load_file(uninterrupted / "model" / "classifier.safetensors").keys()
    assert not model.load(once.run, torch.device("cpu")).config.has_detector
