"""What is said of a detector: never more than the labels show."""

import dataclasses
import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from pipelines import ingest
from pipelines.errors import CorruptShard
from pipelines.pool.manifest import Pool
from pipelines.run import quality
from pipelines.run.marks import Mark, Verdict
from pipelines.run.quality import Quality


def scores(count: int, seed: int, auroc: float = 0.5) -> torch.Tensor:
    shift = math.sqrt(2) * NormalDist().inv_cdf(auroc)
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) + shift


def measured(share: float, auroc: float, num_labeled: int = 300, num_known: int = 0, **more: float) -> Quality:
    count = round(share * 3000)
    pool = torch.cat((scores(count, 1, auroc), scores(3000 - count, 2)))
    known = scores(num_known, 4, auroc) if num_known else None
    return quality.measure(pool, scores(num_labeled, 3), known, **more)


STRONG = measured(0.4, 0.97, num_known=200)
WEAK = measured(0.4, 0.6)
CLEAN = measured(0.0, 0.5)


def test_a_useless_detector_must_not_delete_and_never_calls_a_pool_clean() -> None:
    for found in (WEAK, CLEAN):
        assert "It can hardly tell these images apart: do not delete by it." in found.statements
        assert found.is_weak
        assert "No upper bound of the share is known." in found.statements
        assert "is clean" not in " ".join(found.statements)
    assert CLEAN.share_at_least == 0
    assert CLEAN.share_estimate is None
    assert "That does not make the pool clean" in " ".join(CLEAN.statements)


def test_a_good_detector_with_known_images_is_told_from_a_weak_one() -> None:
    assert not STRONG.is_weak
    assert STRONG.warning == ""
    assert STRONG.auroc is not None
    assert STRONG.auroc == pytest.approx(0.97, abs=0.03)
    assert STRONG.share_at_most is not None
    assert 0.3 < STRONG.share_at_least <= 0.4 <= STRONG.share_at_most < 0.55
    assert any("At most" in statement for statement in STRONG.statements)


def test_where_only_the_lower_end_is_weak_a_person_has_to_look() -> None:
    found = dataclasses.replace(STRONG, auroc=0.85, auroc_interval=(0.74, 0.93))
    assert "look at images before you delete any" in found.warning
    assert dataclasses.replace(found, auroc_interval=(0.75, 0.93)).warning == ""


def test_a_middle_of_a_wide_interval_is_not_quoted() -> None:
    wide = dataclasses.replace(STRONG, auroc=0.8, auroc_interval=(0.6, 0.95))
    assert "0.80" not in wide.brief + wide.statements[0]
    assert "0.60 and 0.95" in wide.statements[0]


def test_the_bound_is_never_below_what_is_declared_and_says_why() -> None:
    found = measured(0.0, 0.5, declared_share=0.047)
    assert found.share_at_least == found.declared_share == 0.047
    assert any("so many images declare it or are marked" in statement for statement in found.statements)
    assert "at least 4.7 %" in found.brief


def test_a_bound_is_rounded_down() -> None:
    assert "At least 19 %" in " ".join(dataclasses.replace(STRONG, share_at_least=0.1999).statements)
    assert "At least 0.1 %" in " ".join(dataclasses.replace(STRONG, share_at_least=0.0019).statements)


def test_declared_images_speak_for_themselves_alone() -> None:
    found = measured(0.4, 0.9, num_known=40, known_by="declared")  # type: ignore[arg-type]
    assert found.share_at_most is None
    assert any("declared synthetic images alone" in statement for statement in found.statements)
    assert any("others may differ" in statement for statement in found.statements)


def test_too_few_labels_say_that_nothing_is_known() -> None:
    found = measured(0.4, 0.9, num_labeled=3)
    assert found.auroc is None
    assert found.is_weak
    assert "Only 3 labeled images" in found.statements[0]
    assert "unknown" in found.brief


@pytest.mark.parametrize("found", [STRONG, WEAK, CLEAN, measured(0.4, 0.9, num_labeled=0)])
def test_it_is_read_back_as_it_was_written(found: Quality, tmp_path: Path) -> None:
    quality.save(tmp_path, found)
    assert quality.load(tmp_path) == found
    assert json.loads((tmp_path / quality.FILE).read_text())["statements"] == list(found.statements)


def test_a_missing_file_is_none_and_a_damaged_one_is_a_sentence(tmp_path: Path) -> None:
    assert quality.load(tmp_path) is None
    for content in ("", "[]", '{"auroc": 0.9}'):
        (tmp_path / quality.FILE).write_text(content)
        with pytest.raises(CorruptShard, match="is damaged"):
            quality.load(tmp_path)


def test_a_mark_goes_before_what_a_file_declares(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    declaring = PngImagePlugin.PngInfo()
    declaring.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1")
    rng = np.random.default_rng(0)
    for i in range(8):
        image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        image.save(crawl / f"{i}.png", pnginfo=declaring if i < 3 else None)
    ingest.run(ingest.IngestConfig(sources=(str(crawl),), pool=tmp_path / "pool", jobs=1))
    pool = Pool.open(tmp_path / "pool")
    assert quality.declared_share(pool, {}) == 3 / 8
    rows = pool.rows(pool.shards[0], ["sha256", "declared"]).to_pylist()
    declared, silent = ([row["sha256"] for row in rows if bool(row["declared"]) is said] for said in (True, False))
    judged: list[tuple[str, Verdict]] = [(declared[0], "real"), (declared[1], "skip"), (silent[0], "synthetic")]
    marks = {sha256: Mark(sha256=sha256, key="000000000", verdict=verdict) for sha256, verdict in judged}
    assert quality.declared_share(pool, marks) == 3 / 8
    assert quality.declared_share(pool, {declared[0]: marks[declared[0]]}) == 2 / 8
