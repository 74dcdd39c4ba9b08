"""Alarms that a person can act on, and a log that keeps what a checkpoint promises."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.recipe import Recipe
from pipelines import train
from pipelines.train.monitor import MetricsLog, Watch, means
from tests.conftest import World
from tests.pipelines.train.runs import config


def test_a_labeled_class_the_pool_lacks_and_a_collapse_raise_alarms(world: World, tmp_path: Path) -> None:
    """Random noise as a further class: nothing in the pool looks like it."""
    seed = tmp_path / "seed"
    shutil.copytree(world.seed, seed)
    (seed / "zebra").mkdir()
    for i in range(8):
        noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(seed / "zebra" / f"{i}.png")
    heard: list[str] = []
    settings = config(
        world,
        tmp_path / "run",
        labeled=seed,
        recipe={"method": "fixmatch", "num_steps": 60, "norm_momentum": 0.05, "warmup": 0.0, "calibration_share": 0.0},
        machine={"log_every": 20},
    )
    summary = train.run(settings, lambda tick: heard.append(tick.note) if tick.note else None)
    assert any("hardly any image of the labeled class 'zebra'" in alarm for alarm in heard)
    assert tuple(heard) == summary.alarms


def test_finding_nothing_does_not_make_a_pool_clean() -> None:
    watch = Watch(Recipe(num_steps=1000), 0, ("cat", "dog"))
    (alarm,) = watch.check(900, {"dummy_share": 0.001})
    assert "does not show that there are none" in alarm
    assert "the pool is clean, or" not in alarm


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"dummy_share": 0.001}, "Under 1 %"),
        ({"dummy_share": 0.999}, "Over 99 %"),
        (
            {"dummy_share": 0.3, "pseudo_label_share/0": 0.05, "pseudo_label_share/1": 0.95},
            "collapsed to the class 'b'",
        ),
    ],
)
def test_each_alarm_is_raised_once(figures: dict[str, float], words: str) -> None:
    watch = Watch(Recipe(num_steps=1000), 150, ("a", "b"))
    assert list(watch.check(10, figures)) == []  # nothing is routed yet
    assert list(watch.check(250, figures)) == []  # and for a tenth of the steps after that the figures mean little
    assert [words in alarm for alarm in watch.check(900, figures)] == [True]
    assert list(watch.check(950, figures)) == []


def test_the_log_drops_what_was_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4, "a": 1}\n{"step": 8, "a": 2}\n{"step": 12, "a": 3}\n{"step": 1')
    log = MetricsLog(path, keep_until=8)
    assert log.last == {"step": 8, "a": 2}
    log.write({"step": 12, "a": 5})
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 2, 5]
    assert log.last == {"step": 12, "a": 5}


def test_figures_are_means_by_name() -> None:
    sums = {"b": torch.tensor(3.0), "a": torch.tensor([1.0, 0.5])}
    assert list(means(sums, 4).items()) == [("a/0", 0.25), ("a/1", 0.125), ("b", 0.75)]
