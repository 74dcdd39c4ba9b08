import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import ingest, score, toy, train
from pipelines.pool import labeled, truth
from pipelines.pool.manifest import Pool
from pipelines.report.confounds import Audit, audit, read_labeled
from pipelines.report.survey import survey
from pipelines.run.association import WARN_AUROC
from pipelines.run.scorer import Scorer
from pipelines.run.scores import ScoredPool
from pipelines.train import TrainConfig

SETTINGS: dict[str, Any] = {
    "network": {"backbone": "small"},
    "recipe": {
        "num_steps": 30,
        "batch_size": 16,
        "unlabeled_ratio": 2,
        "warmup": 0.2,
        "confidence_threshold": 0.8,
        "ema_decay": 0.98,
        "norm_momentum": 0.1,
    },
    "machine": {"device": "cpu"},
}


def all_of(pool: Path, run: Path, seed: Path | None) -> Audit:
    scored = ScoredPool.open(pool, run)
    sample = survey(scored.pool, scored, scored.classes, sample=5000, gallery=1, per_class=1).sample
    paths = [path for path, _ in labeled.files(seed)] if seed else None
    return audit(scored.pool, sample, paths, Scorer.load(run, "cpu"))


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crawl whose synthetic images are PNG, its real ones JPEG like the labeled; trained and scored."""
    root = tmp_path_factory.mktemp("leaking")
    toy.make(root, num_real=1, alpha=0, labels_per_class=8, num_test=360)
    shutil.rmtree(root / "crawl")
    (root / "crawl").mkdir()
    for i, path in enumerate(sorted((root / "test").glob("*/*.jpg"))):
        if i % 3:
            shutil.copyfile(path, root / "crawl" / f"{i:05d}-real.jpg")
        else:
            with Image.open(path) as real:
                coarse = real.resize((16, 16)).resize((32, 32), Image.Resampling.BICUBIC)
            coarse.save(root / "crawl" / f"{i:05d}.png")
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl"),), pool=root / "pool", jobs=1))
    folders = {"labeled": root / "seed", "pool": root / "pool", "run": root / "run"}
    train.run(TrainConfig(**folders, **SETTINGS))
    score.run(score.ScoreConfig(pool=root / "pool", run=root / "run", device="cpu"))
    return root


def test_a_detector_that_learned_the_file_format_sets_it_off(leaking: Path) -> None:
    found = all_of(leaking / "pool", leaking / "run", leaking / "seed")
    (format_,) = (each for each in found.properties if each.name == "format")
    assert format_.auroc is not None and format_.auroc > WARN_AUROC
    assert any("The format alone predicts the verdict" in warning and "of png" in warning for warning in found.warnings)
    assert any("differ from the pool in format" in warning for warning in found.warnings)
    assert all("\n" not in warning for warning in found.warnings)
    assert found.constant["width"] == "32" and found.constant["JPEG quality"] == "92"
    stable = {each.change: each for each in found.stability}
    assert stable["saved again without loss"].flipped == 0
    assert stable["saved again without loss"].mean_change < 1e-4
    assert stable["saved as JPEG of quality 90"].mean_change > 0.02


def test_files_of_the_labeled_set_that_are_gone_are_counted(leaking: Path, tmp_path: Path) -> None:
    paths = [path for path, _ in labeled.files(leaking / "seed")][:5]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(paths[0].read_bytes()[:200])
    found = read_labeled([*paths, broken, tmp_path / "gone.jpg"], None, lambda tick: None)
    assert len(found.values["format"]) == 5 and not found.probs
    assert found.notes == ("2 of 7 images of the labeled set can no longer be read.",)


def test_verdicts_that_know_the_picture_alone_do_not_set_it_off(world: Any, leaking: Path, tmp_path: Path) -> None:
    """The toy's synthetic images have the format, size and tables of the real ones: the truth as verdict is no leak."""
    shutil.copytree(leaking / "run" / "model", tmp_path / "model")
    score.run(score.ScoreConfig(pool=world.pool, run=tmp_path, device="cpu"))
    known, pool = truth.read(world.truth), Pool.open(world.pool)
    for shard in pool.shards:
        path = tmp_path / "scores" / f"{shard}.parquet"
        table = pq.read_table(path)
        is_synthetic, _ = known.of(pool.rows(shard)["member"].to_pylist())
        for name, values in (("synthetic", is_synthetic == 1), ("prob_synthetic", is_synthetic.astype(np.float32))):
            table = table.set_column(table.column_names.index(name), table.schema.field(name), [values])
        pq.write_table(table, path)
    found = all_of(world.pool, tmp_path, world.seed)
    assert [warning for warning in found.warnings if "flip" not in warning] == []
    assert found.constant["format"] == "jpg" and found.num_labeled == 40
    assert {each.name for each in found.properties} >= {"bytes per pixel", "source"}
