"""`curate demo`: the whole of it, and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.warm import ROOT, Process, curate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("notes.txt", "mine", "in use and not by a demo"),
        ("demo.json", "[]", "in use and not by a demo"),
        ("demo.json", '{"seed": 3}', "holds the demo of --seed 3"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, file: str, text: str, says: str) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / file).write_text(text)
    done = curate("demo", cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert [(path.name, path.read_text()) for path in (tmp_path / "demo").iterdir()] == [(file, text)]


def test_the_whole_job_finds_the_synthetic_pictures_and_says_what_it_knows(tmp_path: Path) -> None:
    arguments = ("-m", "curate", "demo", "--json")
    done = Process(arguments, tmp_path, {"COLUMNS": "160", "PYTHONPATH": str(ROOT)}).wait(timeout_s=900)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = {row["what"]: row for row in told["figures"]}
    assert float(found["detector's AUROC"]["found"]) > 0.95
    assert percent(found["synthetic share of the export"]["truth"]) < percent(
        found["synthetic share of the pool"]["truth"]
    )
    assert percent(found["correct pseudo-labels, real images"]["found"]) > 0.9
    assert all(row["files"] == row["found"] > 0 for row in told["junk"])
    quality = json.loads((tmp_path / "demo" / "run" / "quality.json").read_text())
    assert told["statements"] == quality["statements"]
    assert 0 < quality["share_at_least"] <= percent(found["synthetic share of the pool"]["truth"])
    model = json.loads((tmp_path / "demo" / "run" / "model" / "config.json").read_text())
    assert model["frozen"] and model["backbone"] == "timm:tf_efficientnet_lite0" and model["witnesses"]


def percent(text: str) -> float:
    return float(text.removesuffix("%")) / 100
