"""Exports whose labels are promised to be right."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipelines import export, toy
from pipelines.errors import Incompatible
from pipelines.run import calibration, labels
from pipelines.run.calibration import Evidence
from tests.pipelines.export.exports import read_plainly, settings


def learn(run: Path, num: int) -> None:
    """Evidence of `num` labeled images: those of a confidence of .5 and more are right, others are wrong."""
    truth = torch.arange(num) % len(toy.CLASSES)
    sure = torch.arange(num) % 3 > 0
    probs = torch.full((num, len(toy.CLASSES)), 0.01)
    called = torch.where(sure, truth, (truth + 1) % len(toy.CLASSES))
    probs[torch.arange(num), called] = torch.where(sure, 0.9, 0.25)
    near = torch.randn(num, 4, generator=torch.Generator().manual_seed(0))
    distances = torch.rand(num, generator=torch.Generator().manual_seed(1))
    found = Evidence(probs.log(), truth, tuple(map(str, range(num))), near, distances, "cross-fitted")
    calibration.save(run / "model", found)
    labels.save(run, labels.measure(found, toy.CLASSES))


def test_without_images_that_the_classifier_has_not_seen_nothing_is_promised(
    pool: Path, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(Incompatible, match="too few labeled images that its classifier has not seen"):
        export.run(settings(tmp_path / "out", pool, run, label_precision=0.9))


def test_labels_below_the_limit_go_out_without_a_class_or_not_at_all(pool: Path, run: Path, tmp_path: Path) -> None:
    learn(run, 150)
    kept = export.run(settings(tmp_path / "kept", pool, run, keep="all", label_precision=0.9))
    assert 0 < kept.labeled < kept.kept == kept.pool
    assert "90% of the labels are right, with 90% confidence" in kept.labels
    at = float(kept.labels.split("confidence of ")[1].split(" on")[0])
    rows = pq.read_table(tmp_path / "kept" / "kept.parquet").to_pylist()
    assert sum(row["cls"] >= 0 for row in rows) == kept.labeled
    assert all(row["confidence"] >= at - 1e-3 for row in rows if row["cls"] >= 0)
    samples = read_plainly(tmp_path / "kept" / "00000.tar")
    assert sum(sample["cls"] == b"-1" for sample in samples) == len(rows) - kept.labeled
    dropped = export.run(settings(tmp_path / "drop", pool, run, keep="all", label_precision=0.9, unlabeled="drop"))
    assert dropped.kept == dropped.labeled == kept.labeled
    assert dropped.dropped == {"unsure_label": kept.pool - kept.labeled}


def test_what_cannot_be_promised_is_said_with_what_would_help(pool: Path, run: Path, tmp_path: Path) -> None:
    learn(run, 15)
    summary = export.run(settings(tmp_path / "out", pool, run, keep="all", label_precision=0.95))
    assert summary.labeled == 0 and summary.kept == summary.pool
    assert "cannot be promised. It takes 45 labeled images or more" in summary.labels
