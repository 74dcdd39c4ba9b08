"""What is said of labels: by labeled images that the classifier has not seen, and by the pool."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelines.errors import CorruptShard
from pipelines.run import calibration, labels
from pipelines.run.calibration import Evidence
from pipelines.run.labels import OfPool

CLASSES = ("cat", "dog", "eel")


def evidence(num: int = 90, wrong: int = 0) -> Evidence:
    """Evidence of images of which the last `wrong` are called another class."""
    rng = torch.Generator().manual_seed(0)
    truth = torch.arange(num) % len(CLASSES)
    called = truth.clone()
    called[num - wrong :] = (called[num - wrong :] + 1) % len(CLASSES)
    logits = 4 * torch.eye(len(CLASSES))[called] + torch.randn(num, len(CLASSES), generator=rng)
    near = torch.randn(num, 16, generator=rng) + 3
    distances = calibration.calibration.nearest(near, near, themselves=True)
    return Evidence(logits, truth, tuple(map(str, range(num))), near, distances, "cross-fitted")


def pool(found: Evidence, embeddings: Tensor) -> OfPool:
    probs = found.calibration.probs(found.logits)[torch.arange(len(embeddings)) % len(found.labels)]
    return OfPool(probs, probs.amax(1), found.typicality(embeddings))


def test_right_labels_give_no_warning_and_wrong_ones_do() -> None:
    good, bad = labels.measure(evidence(), CLASSES), labels.measure(evidence(wrong=45), CLASSES)
    assert good.accuracy_interval[0] > 0.9 and not good.warning
    assert bad.accuracy == pytest.approx(0.5, abs=0.03)
    assert "do not train on them" in bad.warning
    assert "50% are right" in bad.statements[0] or "49% are right" in bad.statements[0]
    assert labels.warning(None) == labels.UNMEASURED and not labels.warning(None, has_classes=False)


def test_a_class_of_few_labeled_images_is_named() -> None:
    found = evidence(94)
    few = replace(found, labels=torch.where(torch.arange(94) < 90, found.labels % 2, 2))
    assert "Too few labeled images to learn: eel (4). Label more of them." in labels.measure(few, CLASSES).warning
    assert "Too few" not in labels.measure(found, CLASSES).warning
    held_out = replace(few, method="held-out")  # a fifth of each class alone is judged
    assert "Too few" not in labels.measure(held_out, CLASSES).warning


def test_images_unlike_all_labeled_ones_are_counted_as_at_least() -> None:
    found, rng = evidence(), torch.Generator().manual_seed(1)
    alike = torch.randn(400, 16, generator=rng) + 3
    others = torch.randn(100, 16, generator=rng) - 3
    said = labels.measure(found, CLASSES, pool(found, torch.cat((alike, others))))
    assert said.none_at_least is not None and said.none_estimate is not None
    assert 0.08 < said.none_at_least <= 0.2 <= said.none_estimate + 0.08
    assert labels.measure(found, CLASSES, pool(found, alike)).none_at_least == 0


def test_a_classifier_that_always_says_the_same_is_not_flattered_by_the_mix_that_it_sees() -> None:
    found = evidence()
    constant = torch.tensor([2.0, 0.0, 0.0]).expand(len(found.labels), -1).contiguous()
    found = replace(found, logits=constant)
    of_pool = pool(found, found.references)
    assert labels.measure(found, CLASSES, of_pool).accuracy < 0.5


def test_what_was_measured_is_read_again_and_damage_is_said(tmp_path: Path) -> None:
    found = labels.measure(
        evidence(wrong=9),
        CLASSES,
        suspects=[labels.Suspect(file="a.jpg", given="cat", suggested="eel", probability=0.9)],
    )
    labels.save(tmp_path, found)
    assert labels.load(tmp_path) == found
    assert "a.jpg (eel?)" in " ".join(found.statements)
    (tmp_path / labels.FILE).write_text("{}")
    with pytest.raises(CorruptShard, match="damaged"):
        labels.load(tmp_path)
    labels.save(tmp_path, None)
    assert labels.load(tmp_path) is None


def test_evidence_is_read_again_and_typicality_is_a_p_value(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    found = evidence()
    calibration.save(tmp_path / "model", found)
    again = calibration.load(tmp_path)
    assert again is not None and torch.equal(again.logits, found.logits) and again.sha256 == found.sha256
    assert float((found.typicality_of_own <= 0.2).float().mean()) == pytest.approx(0.2, abs=0.03)
    (tmp_path / "model" / calibration.FILE).write_bytes(b"nothing")
    with pytest.raises(CorruptShard, match="damaged"):
        calibration.load(tmp_path)
