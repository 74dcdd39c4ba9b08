"""`curate generate` as a person types it, killed in the middle and started again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from curate.app import app
from pipelines import generate
from pipelines.errors import BadInput

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_killed_and_started_again_it_gives_the_same_bytes(tiny_models: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("shard_size = 2\nprompts_per_class = 3\n")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [
        "generate", "--config", str(recipe), "--classes", "disc,cross", "--per-class", "8", "--steps", "5",
        "--prompt-model", str(tiny_models.prompts), "--image-model", str(tiny_models.images), "--device", "cpu",
        "--out", str(killed), "--json",
    ]  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "curate", *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (killed / "00001_stats.json").exists():
            assert child.poll() is None
            time.sleep(0.002)
    finally:
        child.kill()
        child.wait()
    done = len(list(killed.glob("*_stats.json")))
    assert 2 <= done < 8

    again = CliRunner().invoke(app, command, catch_exceptions=False)
    summary = json.loads(again.stdout)
    assert (summary["images"], summary["shards"], summary["num_done_before"]) == (16, 8, done)

    config = generate.GenerateConfig(
        classes=("disc", "cross"), per_class=8, steps=5, out=whole, prompt_model=str(tiny_models.prompts),
        image_model=str(tiny_models.images), shard_size=2, prompts_per_class=3, device="cpu",
    )  # fmt: skip
    generate.run(config)
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }

    shown = CliRunner().invoke(app, command[:-1], catch_exceptions=False)
    assert "cross" in shown.stdout and "8" in shown.stdout
    assert f"curate ingest '{killed}/{{00000..00007}}.tar'" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--classes is missing"),
        (("--classes", "disc,cross", "--per-class", "3"), "--out is missing"),
        (("--classes", "a,a", "--per-class", "3", "--out", "o"), "class names must be distinct"),
        (("--classes", "no.txt", "--per-class", "3", "--out", "o"), r"no\.txt cannot be read"),
        (
            ("--classes", "a,b", "--per-class", "3", "--out", "o", "--size", "30"),
            "--size 30: Input should be a multiple of 8",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=sentence):
        CliRunner().invoke(app, ["generate", *arguments], catch_exceptions=False)
    assert not list(tmp_path.iterdir())
