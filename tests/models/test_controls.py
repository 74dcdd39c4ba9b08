"""Routes and detector losses that RSMatch is compared with, against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from models import csqueue
from models.batch import Batch
from models.controls import nnpu_risk, true_risk
from models.ranks import Rng
from models.rsmatch import queue_risk
from tests.models import toy

REAL, OTHER = torch.tensor([-2.0, 0.5, -1.0]), torch.tensor([3.0, -1.0, 0.2, 1.0])
bce = F.binary_cross_entropy_with_logits


def test_nnpu_risk_is_the_unbiased_estimate_and_turns_where_that_is_negative() -> None:
    """With positives that are real ones of the pool, and a pool of a known share, it is the supervised risk."""
    pool_real, pool_synthetic = REAL, OTHER
    pool = torch.cat((pool_real, pool_synthetic))
    supervised = (F.softplus(pool_real).sum() + F.softplus(-pool_synthetic).sum()) / 7
    torch.testing.assert_close(nnpu_risk(pool_real, pool, 3 / 7), supervised)

    sure = torch.tensor([8.0], requires_grad=True)  # called synthetic with certainty
    risk = nnpu_risk(torch.full((2,), -8.0), sure, 0.9)  # E_u - 0.9 E_p: about 0 - 7.2
    assert risk.item() == pytest.approx(0.9 * 8.0, abs=0.01)
    (gradient,) = torch.autograd.grad(risk, sure)
    assert gradient > 0  # downhill is to be less sure


def test_true_risk_is_class_balanced_cross_entropy() -> None:
    synthetic = torch.tensor([True, False, True, False])
    expected = bce(torch.cat((REAL, OTHER[~synthetic])), torch.zeros(5)) + bce(OTHER[synthetic], torch.ones(2))
    torch.testing.assert_close(true_risk(REAL, OTHER, synthetic), expected)
    none = torch.zeros(4, dtype=torch.bool)
    torch.testing.assert_close(true_risk(REAL, OTHER, none), bce(torch.cat((REAL, OTHER)), torch.zeros(7)))


def test_each_kind_of_examples_has_its_risk() -> None:
    batch = toy.batch_of(torch.arange(4))
    risks = {
        name: toy.build_rsmatch(detector_examples=name, share_real=0.6).risk(REAL, OTHER[:2], OTHER, batch)
        for name in ("queue", "global-queue", "nnpu", "truth")
    }
    assert batch.synthetic is not None
    assert risks["queue"] == risks["global-queue"] == queue_risk(REAL, OTHER[:2], OTHER, batch)
    assert risks["nnpu"] == nnpu_risk(REAL, OTHER, 0.6)
    assert risks["truth"] == true_risk(REAL, OTHER, batch.synthetic)


def test_controls_route_by_the_truth_or_shuffle_it_and_train_no_detector() -> None:
    rows = [toy.rows_of(step) for step in range(3)]
    truth = torch.stack([(picked % 3 == 0).float().mean() for picked in rows])
    routed = {}
    for routing in ("oracle", "random"):
        model = toy.build_rsmatch(routing=routing)
        before = [value.clone() for value in model.detector.network.parameters()]
        figures = toy.train(model, range(3))
        torch.testing.assert_close(torch.stack([figure["dummy_share"] for figure in figures]), truth)
        assert not any("detector_sup" in figure for figure in figures)
        assert all(
            torch.equal(ours, old) for ours, old in zip(model.detector.network.parameters(), before, strict=True)
        )
        evidence, routed[routing] = model.route(0, toy.batch_of(rows[0]), Rng(torch.Generator().manual_seed(7)))
        assert evidence is None
        assert not model.has_detector
    assert torch.equal(routed["oracle"], rows[0] % 3 == 0)
    assert not torch.equal(routed["random"], routed["oracle"])
    assert routed["random"].sum() == routed["oracle"].sum()


@pytest.mark.parametrize("examples", ["global-queue", "nnpu", "truth"])
def test_other_detector_examples_train(examples: str) -> None:
    model = toy.build_rsmatch(detector_examples=examples, share_real=2 / 3)
    figures = toy.train(model, range(12))
    assert all(figure["detector_sup"].isfinite() for figure in figures)
    assert ("queue_score" in figures[-1]) == (examples == "global-queue")
    queue = model.examples.queue
    if examples == "global-queue":
        assert queue.index.shape == (1, 16)
        assert queue.size.item() == min(16, 12 * 2)  # P * Q a step, as the sub-queues take
    else:
        assert model.bootstrap_step is None
        assert queue.size.sum() == 0
        assert (queue.index == csqueue.EMPTY).all()


@pytest.mark.slow
def test_a_detector_that_is_told_the_truth_finds_it() -> None:
    """Noisy against plain pictures, half of the pool each; the queue's way has to find out by itself."""
    rng = torch.Generator().manual_seed(0)
    plain = (60 + 120 * torch.rand(96, 1, 1, 1, generator=rng)).expand(96, 3, 16, 16)
    noisy = plain[:48] + 40 * torch.randn(48, 3, 16, 16, generator=rng)
    pool = torch.cat((plain[48:], noisy)).clamp(0, 255).to(torch.uint8)
    labeled, labels = plain[:16].to(torch.uint8), torch.arange(16) % 2
    model = toy.build_rsmatch(detector_examples="truth")
    for step in range(60):
        rows = torch.randint(96, (24,), generator=rng)
        batch = Batch(labeled, labeled, labels, pool[rows], pool[rows], rows, synthetic=rows >= 48)
        model.step(step, batch, lambda picked: pool[picked], Rng(rng))
    logits = model.detector.average(pool)
    assert logits[48:].min() > logits[:48].max()
