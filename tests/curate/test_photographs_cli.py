"""Photographs larger than 64 pixels, from the crawl to the export, as a person types it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from models.calibration import Calibration
from pipelines.images.photo import PhotoDecoder
from pipelines.pool.manifest import Pool
from pipelines.run.evaluation import auroc
from pipelines.run.scorer import Scorer
from pipelines.run.scores import ScoredPool
from tests import photographs, warm
from tests.warm import Process, answer

pytestmark = pytest.mark.slow

SMALL = ("--device", "cpu", "--image-size", "96", "--tiles", "2", "--num-steps", "12")
TIMEOUT_S = 600


def patient(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return Process(("-m", "curate", *arguments), cwd).wait(TIMEOUT_S)


def run(*arguments: str, cwd: Path) -> dict[str, Any]:
    return answer(patient(*arguments, "--json", cwd=cwd))


def stored(home: Path) -> dict[Path, tuple[int, int]]:
    """Files of features of the pool, with their inodes and times: a file that is written again has others."""
    found = sorted((home / "pool" / "features").rglob("0*.safetensors"))
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
    card = " ".join((home / "run" / "model" / "README.md").read_text().split())
    assert "AUROC on this pool" in card and f"{quality['auroc_interval'][1]:.2f} with 95 % confidence" in card


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


def test_two_ranks_share_the_reading_and_come_to_the_same_panel(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "pool", tmp_path / "pool", ignore=shutil.ignore_patterns("features"))
    train = ("-m", "curate", "train", "--labeled", str(home / "seed"), *SMALL, "--json")
    done = warm.ranks(train, 2, tmp_path, TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    ours, theirs = stored(tmp_path), stored(home)
    assert [path.name for path in ours] == [path.name for path in theirs] and len(ours) == 2
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(ours, theirs, strict=True))
    panel, alone = (load_file(at / "run" / "model" / "detector.safetensors") for at in (tmp_path, home))
    for name, value in alone.items():
        torch.testing.assert_close(panel[name], value)


def test_an_image_has_the_same_score_wherever_it_lies(home: Path) -> None:
    row = digests(home).index(digests_of(4, synthetic=True)[3])
    alone = Scorer.load(home / "run", "cpu").score([photographs.jpeg(3, synthetic=True)]).prob_synthetic
    assert alone is not None and alone[0] == pytest.approx(scores(home)[0][row], abs=0.02)


def test_the_exported_program_gives_the_probabilities_of_the_scores(home: Path) -> None:
    """Up to the precision of the stored features: a CPU may compute them as bfloat16."""
    program = torch.export.load(home / "run" / "model" / "classifier.pt2").module()
    scored, decoder = ScoredPool.open(home / "pool", home / "run"), PhotoDecoder(96, 1)
    rows = pa.concat_tables(scored.rows(shard, ["probs", "raw_confidence"]) for shard in scored.shards).to_pylist()
    expected = [rows[digests(home).index(digest)] for digest in digests_of(12, synthetic=False)]
    images = np.stack([decoder.decode("", photographs.jpeg(i, synthetic=False)).thumbnail for i in range(12)])
    logits = program(torch.from_numpy(images))
    raw = torch.tensor([row["raw_confidence"] for row in expected])
    torch.testing.assert_close(logits.softmax(1).amax(1), raw, rtol=0, atol=5e-3)
    config = json.loads((home / "run" / "model" / "config.json").read_text())
    found = Calibration(config["temperature"], config["uniform"]).probs(logits)
    probs = torch.tensor([row["probs"] for row in expected])
    # A temperature below 1 enlarges all differences.
    torch.testing.assert_close(found, probs, rtol=0, atol=5e-3 / min(1.0, config["temperature"]))
    assert (found[1::2, 1].mean() - found[::2, 1].mean()).item() > 0.01  # red and blue ones


def test_known_synthetic_images_and_scores_from_outside_are_witnesses(home: Path) -> None:
    _, truth = scores(home)
    rng = np.random.default_rng(0)
    lines = [
        f"{digest},{value}" for digest, value in zip(digests(home), truth + 0.3 * rng.normal(size=60), strict=True)
    ]
    (home / "other.csv").write_text("\n".join(("sha256,value", *lines)) + "\n")
    before = stored(home)
    given = ("--known-synthetic", "fakes", "--scores", "other=other.csv", "--run", "known")
    run("train", "--labeled", "seed", *SMALL, *given, cwd=home)
    assert stored(home) == before
    quality = json.loads((home / "known" / "quality.json").read_text())
    assert (quality["num_known"], quality["known_by"]) == (16, "given") and quality["known_auroc"] > 0.9
    config = json.loads((home / "known" / "model" / "config.json").read_text())
    assert config["witnesses"]["outside_other"] == 1
    run("score", "--device", "cpu", "--run", "known", cwd=home)
    assert auroc(*scores(home, "known")) > 0.9
    row = digests(home).index(digests_of(4, synthetic=True)[3])
    alone = Scorer.load(home / "known", "cpu").score([photographs.jpeg(3, synthetic=True)]).prob_synthetic
    assert alone is not None and alone[0] == pytest.approx(scores(home, "known")[0][row], abs=0.02)
    exported = run("export", "--run", "known", "--out", "other", "--where", "other < 0.5", "--keep", "all", cwd=home)
    assert exported["kept"] == sum(float(line.split(",")[1]) < 0.5 for line in lines)


def test_a_flat_folder_of_photographs_trains_the_panel_alone(home: Path, tmp_path: Path) -> None:
    photographs.write(home / "photos", range(100, 124), synthetic=False)
    before = stored(home)
    run("train", "--labeled", "photos", *SMALL, "--run", "flat", cwd=home)
    run("score", "--device", "cpu", "--run", "flat", cwd=home)
    assert stored(home) == before and auroc(*scores(home, "flat")) > 0.9
    assert not (home / "flat" / "model" / "classifier.pt2").exists()
    summary = run("export", "--run", "flat", "--out", str(tmp_path / "clean"), cwd=home)
    assert summary["per_class"] == {}
    assert not (home / "flat" / "model" / "detector.pt2").exists()  # it reads whole files
    card = (home / "flat" / "model" / "README.md").read_text()
    assert 'curate.Detector("run").score(["photo.jpg"])' in card and "detector.pt2" not in card


def test_a_backbone_can_be_trained_end_to_end_without_a_gpu(home: Path, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(
        "[recipe]\nnum_steps = 3\nbatch_size = 4\nunlabeled_ratio = 1\n[network]\nimage_size = 64\ntiles = 1\n"
    )
    config = str(tmp_path / "short.toml")
    flags = ("--labeled", "seed", "--config", config, "--no-frozen", "--device", "cpu", "--run", "trained")
    run("train", *flags, cwd=home)
    before = stored(home)
    run("score", "--device", "cpu", "--run", "trained", cwd=home)
    assert stored(home) == before  # the panel scores what training has stored
    assert auroc(*scores(home, "trained")) > 0.8
    saved = json.loads((home / "trained" / "model" / "config.json").read_text())
    assert not saved["frozen"] and saved["is_pretrained"] and saved["witnesses"]
    row = digests(home).index(digests_of(4, synthetic=True)[3])
    alone = Scorer.load(home / "trained", "cpu").score([photographs.jpeg(3, synthetic=True)])
    assert alone.prob_synthetic is not None and alone.probs is not None
    assert alone.prob_synthetic[0] == pytest.approx(scores(home, "trained")[0][row], abs=0.02)


def test_a_training_that_was_killed_resumes_to_the_same_bits(home: Path, tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(
        "[recipe]\nnum_steps = 300\nbatch_size = 8\nunlabeled_ratio = 2\n[network]\nimage_size = 96\ntiles = 2\n"
        "[machine]\ncheckpoint_every = 5\nlog_every = 10\n"
    )
    flags = ("train", "--labeled", "seed", "--config", str(tmp_path / "long.toml"), "--device", "cpu", "--run")
    state = home / "killed" / "checkpoint" / "state.safetensors"
    process = Process(("-m", "curate", *flags, "killed"), home)
    end = time.monotonic() + TIMEOUT_S
    while not state.exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(TIMEOUT_S).returncode != 0
    assert not (home / "killed" / "model").exists()
    assert run(*flags, "killed", cwd=home)["resumed_at"] > 0
    run(*flags, "whole", cwd=home)
    for name in ("classifier", "detector"):
        one, other = ((home / folder / "model" / f"{name}.safetensors").read_bytes() for folder in ("killed", "whole"))
        assert one == other
    one, other = ((home / folder / "metrics.jsonl").read_text() for folder in ("killed", "whole"))
    assert one == other


def test_report_export_and_verify_work_as_on_small_images(home: Path, tmp_path: Path) -> None:
    summary = run("report", "--map", "pca", "--device", "cpu", cwd=home)
    page = (home / summary["out"]).read_text()
    assert "AUROC" in page
    exported = run("export", "--out", str(tmp_path / "clean"), cwd=home)
    assert exported["kept"] + sum(exported["dropped"].values()) == 60
    done = patient("verify", cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
