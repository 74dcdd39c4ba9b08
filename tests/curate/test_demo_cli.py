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
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}\n')
    browser.chmod(0o755)
    arguments, home = ("-m", "curate", "demo", "--open", "--json"), tmp_path / "demo"
    changes = {"COLUMNS": "160", "PYTHONPATH": str(ROOT), "BROWSER": str(browser)}
    done = Process(arguments, tmp_path, changes).wait(timeout_s=900)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["figures"]["auroc"] > 0.95
    assert told["figures"]["pseudo_label_accuracy_real"] > 0.9
    real, synthetic = told["called"]["real"], told["called"]["synthetic"]
    assert (real["images"], synthetic["images"]) == (200, 100)
    assert synthetic["synthetic"] > 50 > 5 > real["synthetic"]
    assert synthetic["exported"] <= synthetic["real"] < 10 and 100 < real["exported"] <= real["real"]
    assert all(row["files"] == row["found"] > 0 for row in told["junk"])
    quality = json.loads((home / "run" / "quality.json").read_text())
    assert told["statements"] == quality["statements"]
    assert 0 < quality["share_at_least"] <= 1 / 3
    model = json.loads((home / "run" / "model" / "config.json").read_text())
    assert model["frozen"] and model["backbone"] == "timm:tf_efficientnet_lite0" and model["witnesses"]
    assert "Look at the images: curate review --pool demo/pool --run demo/run" in done.stderr
    assert opened.read_text() == (home / "run" / "report.html").as_uri()
    assert told["verdict"][0].startswith(f"curate found {synthetic['synthetic']} of 100 synthetic images")
    assert told["verdict"][1].startswith(f"It lost {real['synthetic']} of 200 real images")
