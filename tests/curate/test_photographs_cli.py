"""Photographs larger than 64 pixels, from the crawl to the export, as a person types it."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.pool.manifest import Pool
from pipelines.run.evaluation import auroc
from pipelines.run.scorer import Scorer
from pipelines.run.scores import ScoredPool
from tests import photographs
from tests.warm import Process

pytestmark = pytest.mark.slow

SMALL = ("--device", "cpu", "--image-size", "96", "--tiles", "2", "--num-steps", "12")
TIMEOUT_S = 600


def patient(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return Process(("-m", "curate", *arguments), cwd).wait(TIMEOUT_S)


def run(*arguments: str, cwd: Path) -> dict[str, Any]:
    done = patient(*arguments, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert isinstance(summary, dict)
    return summary


def stored(home: Path) -> dict[Path, tuple[int, int]]:
    """Files of features, with their inodes and times: a file that is written again has others."""
    found = sorted((home / "pool" / "features").rglob("*.safetensors"))
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def scores(home: Path, folder: str = "run") -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """prob_synthetic of the pool's images, and which are synthetic."""
    scored = ScoredPool.open(home / "pool", home / folder)
    probs = pa.concat_tables(scored.rows(shard, ["prob_synthetic"]) for shard in scored.shards)
    return probs["prob_synthetic"].to_numpy(), np.isin(digests(home), digests_of(30, synthetic=True))


def digests(home: Path) -> list[str]:
    """The sha256 of the pool's images, in the order of its rows."""
    return [str(each) for each in pa.concat_tables(Pool.open(home / "pool").tables(["sha256"]))["sha256"].to_pylist()]


def digests_of(count: int, *, synthetic: bool) -> list[str]:
    return [hashlib.sha256(photographs.jpeg(i, synthetic=synthetic)).hexdigest() for i in range(count)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crawl of 60 photographs, half of them synthetic, ingested, trained on 24 real ones of two classes, scored."""
    home = tmp_path_factory.mktemp("photographs")
    photographs.write(home / "crawl" / "real", range(30), synthetic=False)
    photographs.write(home / "crawl" / "synthetic", range(30), synthetic=True)
    photographs.write(home / "seed", range(100, 124), synthetic=False, classes=True)
    photographs.write(home / "fakes", range(200, 216), synthetic=True)
    run("ingest", "crawl", "--jobs", "1", "--shard-size", "40", cwd=home)
    done = patient("train", "--labeled", "seed", *SMALL, cwd=home)
    assert done.returncode == 0, done.stderr
    (home / "train.err").write_text(done.stderr)
    run("score", "--device", "cpu", cwd=home)
    return home


def test_training_says_what_it_chose_and_why(home: Path) -> None:
    said = (home / "train.err").read_text()
    assert "recipe `photographs`" in said
    assert "tf_efficientnet_lite0" in said and "frozen, 96 px, up to 2 tiles" in " ".join(said.split())
    config = json.loads((home / "run" / "model" / "config.json").read_text())
    assert config["frozen"] and config["backbone"] == "timm:tf_efficientnet_lite0"
    assert config["num_tiles"] == 2 and "native_residual" in config["witnesses"]


def test_the_panel_finds_images_that_were_upsampled(home: Path) -> None:
    assert auroc(*scores(home)) > 0.9
    quality = json.loads((home / "run" / "quality.json").read_text())
    assert (quality["num_labeled"], quality["num_known"]) == (24, 0)


def test_scoring_reads_what_training_has_stored(home: Path) -> None:
    before = stored(home)
    assert len(before) == 2
    shutil.rmtree(home / "run" / "scores")
    run("score", "--device", "cpu", cwd=home)
    assert stored(home) == before


def test_a_second_training_computes_no_features_of_the_pool(home: Path) -> None:
    before = stored(home)
    run("train", "--labeled", "seed", *SMALL, "--run", "again", "--seed", "1", cwd=home)
    assert stored(home) == before
    for name in ("detector", "frozen"):  # nothing in them is drawn
        one, other = ((home / folder / "model" / f"{name}.safetensors").read_bytes() for folder in ("run", "again"))
        assert one == other


def test_an_image_has_the_same_score_wherever_it_lies(home: Path) -> None:
    row = digests(home).index(digests_of(4, synthetic=True)[3])
    alone = Scorer.load(home / "run", "cpu").score([photographs.jpeg(3, synthetic=True)]).prob_synthetic
    assert alone is not None and alone[0] == pytest.approx(scores(home)[0][row], abs=0.02)


def test_report_export_and_verify_work_as_on_small_images(home: Path, tmp_path: Path) -> None:
    summary = run("report", "--map", "pca", "--device", "cpu", cwd=home)
    page = (home / summary["out"]).read_text()
    assert "AUROC" in page
    exported = run("export", "--out", str(tmp_path / "clean"), cwd=home)
    assert exported["kept"] + sum(exported["dropped"].values()) == 60
    done = patient("verify", cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
