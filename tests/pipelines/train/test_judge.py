"""What a panel says of a pool: by labeled images, and by what else is known."""

import dataclasses
import hashlib

import pytest
import torch
from torch import Tensor

from models.estimates import excess
from models.panel import Panel, fold_of
from pipelines.train.photographs import Evidence, Judged, judge

WIDTHS = {"one": 8, "other": 8}
NUM, SYNTHETIC, LABELED = 600, 200, 150


def features(count: int, shift: float, seed: int) -> Tensor:
    values = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    values[:, 0] += shift
    values[:, 8] += shift
    folds = fold_of([hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in range(count)])
    return torch.cat((values, folds[:, None]), 1)


def evidence(shift: float = 1.5, num_known: int = 0) -> Evidence:
    """A pool whose first images are synthetic."""
    rows = torch.cat((features(SYNTHETIC, shift, 0), features(NUM - SYNTHETIC, 0, 1)))
    nothing = torch.zeros(NUM, dtype=torch.float64)
    known = features(max(1, num_known), shift, 3)[:num_known]
    return Evidence(rows, features(LABELED, 0, 2), known, nothing, nothing.clone(), nothing > 0, LABELED, True)


def judged(given: Evidence) -> tuple[Judged, Panel, float]:
    panel = Panel(WIDTHS)
    found = judge(panel, given)
    return found, panel, 0.5 + excess(found.scores[:SYNTHETIC], found.scores[SYNTHETIC:])


@pytest.mark.parametrize("num_known", [0, 30])
def test_the_threshold_leaves_exactly_the_lower_bound_above_it(num_known: int) -> None:
    found, panel, _ = judged(evidence(num_known=num_known))
    at_least = found.quality.share_at_least
    assert 0.02 < at_least <= SYNTHETIC / NUM + 0.02
    logits = panel(evidence().rows)
    assert int((logits >= 0).sum()) == round(at_least * NUM)
    assert torch.equal(logits, found.scores - panel.threshold.float())
    estimate = found.quality.share_estimate
    assert estimate is not None
    assert int((logits.sigmoid() >= found.unsure_from).sum()) == pytest.approx(round(estimate * NUM), abs=1)
    assert found.unsure_from <= 0.5


def test_a_pool_without_synthetic_images_is_called_real() -> None:
    given = evidence(shift=0)
    found, panel, _ = judged(given)
    assert found.quality.share_at_least <= 0.05
    assert int((panel(given.rows) >= 0).sum()) == round(found.quality.share_at_least * NUM)


def test_held_out_probabilities_are_those_of_the_labeled_images_sorted() -> None:
    given = evidence()
    found, panel, _ = judged(given)
    expected = panel(given.labeled).sigmoid().sort().values
    torch.testing.assert_close(torch.tensor(found.held_out), expected)


def test_known_images_help_and_are_counted() -> None:
    plain, _, without = judged(evidence(shift=0.8))
    found, _, with_known = judged(evidence(shift=0.8, num_known=60))
    assert with_known > without
    assert (plain.quality.num_known, found.quality.num_known, found.quality.known_by) == (0, 60, "given")


def test_rows_that_are_known_teach_and_measure_only_where_they_may() -> None:
    given = evidence(shift=0.8)
    given.synthetic[:60] = 1.0
    given.real[SYNTHETIC : SYNTHETIC + 60] = 1.0
    marked, _, _ = judged(given)
    plain, _, _ = judged(evidence(shift=0.8))
    rest = [(found.scores[60:SYNTHETIC], found.scores[SYNTHETIC + 60 :]) for found in (plain, marked)]
    assert excess(*rest[1]) > excess(*rest[0])
    assert marked.quality.num_known == 0 and marked.quality.share_at_least >= 0.1
    declared = given._replace(measures=given.synthetic > 0, given=False)
    found, _, _ = judged(declared)
    assert (found.quality.num_known, found.quality.known_by) == (60, "declared")
    assert found.quality.declared_share == pytest.approx(60 / NUM)
    assert dataclasses.is_dataclass(found.quality)


def test_images_that_marks_labeled_teach_but_are_no_random_sample() -> None:
    given = evidence()
    extended = given._replace(labeled=torch.cat((given.labeled, features(40, -1, 5))))
    found, _, _ = judged(extended)
    assert len(found.held_out) == found.quality.num_labeled == LABELED
