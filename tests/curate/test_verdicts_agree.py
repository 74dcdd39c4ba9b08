"""Every command says the same of the same run: an image is called synthetic where its verdict is synthetic."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import pytest
from safetensors.torch import load_file, save_file

import curate
from pipelines.review.filters import Filter
from pipelines.review.gallery import Gallery
from pipelines.run import marks
from pipelines.run.scores import ScoredPool
from tests import warm

VERDICTS: tuple[Literal["real", "unsure", "synthetic"], ...] = ("real", "unsure", "synthetic")


@pytest.fixture
def divided(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run whose detector calls two fifths real, a fifth unsure, up to both sides of 0.5, and two fifths synthetic."""
    monkeypatch.chdir(home)
    model = home / "run" / "model"
    weights = load_file(model / "detector.safetensors")
    prob = curate.Scores().table(["prob_synthetic"])["prob_synthetic"].to_numpy().astype(np.float64)
    logit = np.log(prob / (1 - prob))
    weights["head.bias"] -= float(np.median(logit))
    save_file(weights, model / "detector.safetensors")
    low, high = (float(1 / (1 + np.exp(np.median(logit) - np.quantile(logit, share)))) for share in (0.4, 0.6))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"held_out": [high] * 40, "unsure_from": low}))
    yield home


def command(*arguments: str) -> dict[str, Any]:
    done = warm.curate(*arguments, "--json", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_score_report_inspect_review_and_export_agree(divided: Path) -> None:
    scored = command("score", "--device", "cpu")
    table = curate.Scores().table(["key", "sha256", "verdict", "synthetic", "prob_synthetic"])
    verdicts, number = Counter(table["verdict"].to_pylist()), len(table)
    assert len(verdicts) == 3 and min(verdicts.values()) > number / 10
    unsure = table.filter(pc.equal(table["verdict"], "unsure"))["prob_synthetic"].to_numpy()
    assert unsure.min() < 0.5 < unsure.max()
    called = verdicts["synthetic"]
    assert table["synthetic"].to_pylist() == [verdict == "synthetic" for verdict in table["verdict"].to_pylist()]

    assert (scored["verdicts"], scored["called_share"]) == (dict(verdicts), called / number)
    stored = json.loads(Path("run/scores.json").read_text())["summary"]
    assert (stored["verdicts"], stored["called_share"]) == (dict(verdicts), called / number)
    reported = command("report", "--map", "pca", "--device", "cpu")
    assert reported["synthetic_share"] == called / number
    assert reported["unsure_share"] == verdicts["unsure"] / number
    queries = [inspection["query"] for inspection in inspections(table["key"].to_pylist())]
    assert Counter(item["verdict"] for item in queries) == verdicts
    assert sum(item["synthetic"] for item in queries) == called
    by_review(verdicts)
    by_export(verdicts)
    assert not curate.verify(run="run").problems

    # A person is right, wherever single images are shown or chosen.
    wrong = next(row for row in table.to_pylist() if row["verdict"] == "unsure")
    mark = marks.Mark(key=wrong["key"], sha256=wrong["sha256"], verdict="synthetic")
    marks.append(Path("run"), [mark])
    changed = verdicts + Counter({"synthetic": 1, "unsure": -1})
    (found,) = inspections([wrong["key"]])
    assert (found["query"]["verdict"], found["query"]["synthetic"]) == ("synthetic", True)
    by_review(changed)
    by_export(changed)
    # What is said of the detector stays.
    assert command("score", "--device", "cpu")["verdicts"] == dict(verdicts)
    assert command("report", "--map", "pca", "--device", "cpu")["synthetic_share"] == called / number


def inspections(keys: list[str]) -> list[dict[str, Any]]:
    return list(command("inspect", *keys, "-k", "1")["inspections"])


def by_review(verdicts: Counter[str]) -> None:
    gallery = Gallery(ScoredPool.open(Path("pool"), Path("run")))
    for verdict in VERDICTS:
        assert len(gallery.view(Filter(verdict=verdict, marked="any"))) == verdicts[verdict]


def by_export(verdicts: Counter[str]) -> None:
    left = command("export", "--out", "clean")
    assert left["dropped"] == {"synthetic": verdicts["synthetic"]}
    assert left["kept"] == verdicts["real"] + verdicts["unsure"]
    assert command("export", "--out", "fakes", "--keep", "synthetic")["kept"] == verdicts["synthetic"]
    assert command("export", "--out", "sure", "--where", "verdict = 'real'")["kept"] == verdicts["real"]
