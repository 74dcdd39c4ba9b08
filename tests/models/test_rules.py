"""Each rule against its paper's formula, written out for a few images."""

import math

import pytest
import torch
from torch import Tensor

from models import rules
from models.recipe import Recipe, RuleName
from models.rules import FixMatch, FlexMatch, FreeMatch, SoftMatch

PROBS = torch.tensor([[0.97, 0.02, 0.01], [0.10, 0.85, 0.05], [0.30, 0.30, 0.40], [0.02, 0.96, 0.02]])
ROWS = torch.arange(4)
ALL = torch.ones(4, dtype=torch.bool)


def weights(rule: FixMatch, probs: Tensor = PROBS, rows: Tensor = ROWS, counted: Tensor = ALL) -> list[float]:
    return rule.weigh(probs, rows, counted).tolist()


def test_fixmatch_is_one_threshold() -> None:
    assert weights(FixMatch(0.95)) == [1, 0, 0, 1]
    assert weights(FixMatch(0.8), counted=torch.tensor([True, True, True, False])) == [1, 1, 0, 0]


def test_flexmatch_lowers_the_threshold_of_classes_little_learned() -> None:
    rule = FlexMatch(0.95, num_classes=3, num_images=10)
    # Nothing learned: 10 unused, so every beta is 0 and every threshold 0.
    assert weights(rule) == [1, 1, 1, 1]
    # Now rows 0 and 3 have confident labels 0 and 1; 8 are unused: beta = (1/8, 1/8, 0).
    beta = 1 / 8
    threshold = 0.95 * beta / (2 - beta)
    probe = torch.tensor([[threshold + 0.001, 0, 0], [0, threshold - 0.001, 0], [0, 0, 0.001]])
    assert weights(rule, probe, torch.tensor([5, 6, 7]), torch.ones(3, dtype=torch.bool)) == [1, 0, 1]
    # All used, four to one: the best learned class has the full threshold, the other 0.95 * (1/4) / (2 - 1/4).
    rule.label.copy_(torch.tensor([0] * 8 + [1] * 2))
    threshold = 0.95 * 0.25 / 1.75
    probe = torch.tensor([[0.949, 0.051, 0], [0.951, 0.049, 0], [0, threshold + 0.001, 0], [0, threshold - 0.001, 0]])
    assert weights(rule, probe) == [0, 1, 1, 0]


def test_flexmatch_remembers_the_images_of_its_own_head_alone() -> None:
    rule = FlexMatch(0.95, num_classes=3, num_images=4)
    rule.weigh(PROBS, ROWS, torch.tensor([True, True, True, False]))
    assert rule.label.tolist() == [0, 3, 3, 3]


def test_freematch_thresholds_follow_the_predictions() -> None:
    rule = FreeMatch(3)
    rule.weigh(PROBS, ROWS, ALL)
    confidence = 0.999 / 3 + 0.001 * PROBS.amax(1).mean().item()
    probs = [0.999 / 3 + 0.001 * value for value in PROBS.mean(0).tolist()]
    assert rule.confidence.item() == pytest.approx(confidence, abs=1e-6)
    assert rule.probs.tolist() == pytest.approx(probs, abs=1e-6)
    rule.confidence.fill_(0.9)
    rule.probs.copy_(torch.tensor([0.6, 0.3, 0.1]))
    probe = torch.tensor([[0.88, 0.06, 0.06], [0.92, 0.04, 0.04], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4]])
    assert weights(rule, probe) == [0, 1, 1, 1]  # thresholds 0.9, 0.45, 0.15


def test_freematch_fairness_compares_the_spread_of_predictions() -> None:
    rule = FreeMatch(2)
    ones = torch.ones(4)
    fair = torch.tensor([[4.0, 0], [4.0, 0], [0, 4.0], [0, 4.0]])
    unfair = torch.tensor([[4.0, 0], [4.0, 0], [4.0, 0], [4.0, 0]])
    # Both even: cross-entropy of (1/2, 1/2) with itself is log 2, and the loss its negative.
    assert rule.penalty(fair, ones).item() == pytest.approx(-rules.FAIRNESS * math.log(2), rel=1e-4)
    assert rule.penalty(unfair, ones) != rule.penalty(fair, ones)
    assert rule.penalty(fair, torch.zeros(4)).item() == 0


def test_softmatch_weighs_by_a_gaussian_below_the_mean() -> None:
    rule = SoftMatch(3)
    rule.mean.fill_(0.8)
    rule.variance.fill_(0.04)
    result = rule.weigh(PROBS, ROWS, ALL)
    mean, variance = rule.mean.item(), rule.variance.item()
    aligned = PROBS / rule.probs
    confidence = (aligned / aligned.sum(1, keepdim=True)).amax(1).tolist()
    for value, weight in zip(confidence, result.tolist(), strict=True):
        expected = 1.0 if value >= mean else math.exp(-((value - mean) ** 2) / (2 * variance / 4))
        assert weight == pytest.approx(expected, rel=1e-4)
    assert result[2] < 0.2
    assert result[0] == 1


def test_softmatch_alignment_raises_rare_classes() -> None:
    rule = SoftMatch(2)
    rule.probs.copy_(torch.tensor([0.9, 0.1]))
    rule.mean.fill_(0.85)
    rule.variance.fill_(0.01)
    common, rare = weights(rule, torch.tensor([[0.8, 0.2], [0.2, 0.8]]), torch.arange(2), torch.ones(2).bool())
    assert rare == 1.0
    assert common < 0.5


@pytest.mark.parametrize("name", ["flexmatch", "freematch", "softmatch"])
def test_images_of_the_other_head_change_nothing(name: RuleName) -> None:
    rule = rules.build(Recipe(rule=name, confidence_threshold=0.95), num_classes=3, num_images=4)
    before = {key: value.clone() for key, value in rule.state_dict().items()}
    assert rule.weigh(PROBS, ROWS, ~ALL).tolist() == [0, 0, 0, 0]
    assert all(torch.equal(value, before[key]) for key, value in rule.state_dict().items())
