"""IOMatch: each loss against a case computed by hand, the whole against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import iomatch, one_vs_all
from models.iomatch import IOMatch
from tests.models.open_set import TAU, K, Views, build, each, gradients


def test_open_targets_give_the_rest_to_the_outliers() -> None:
    targets = iomatch.open_targets(torch.tensor([[0.7, 0.3]]), torch.tensor([[0.9, 0.2]]))
    torch.testing.assert_close(targets, torch.tensor([[0.63, 0.06, 0.31]]))


def test_soft_loss_averages_over_all_images() -> None:
    logits = torch.tensor([[0.6, 0.4], [0.1, 0.9]]).log()
    targets = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    expected = -(0.5 * math.log(0.6) + 0.5 * math.log(0.4)) / 2
    assert iomatch.soft_loss(logits, targets, torch.tensor([1.0, 0.0])).item() == pytest.approx(expected, rel=1e-5)


def test_alignment_divides_by_the_mean_prediction_of_the_last_batches() -> None:
    heads = IOMatch(4, 2, TAU)
    aligned = heads.align(torch.tensor([[0.8, 0.2], [0.4, 0.6]]))  # mean (0.6, 0.4)
    torch.testing.assert_close(aligned[0], torch.tensor([8 / 11, 3 / 11]))
    torch.testing.assert_close(aligned[1], torch.tensor([4 / 13, 9 / 13]))
    aligned = heads.align(torch.tensor([[0.2, 0.8]]))  # mean of both batches (0.4, 0.6)
    torch.testing.assert_close(aligned[0], torch.tensor([0.5, 4 / 3]) / (0.5 + 4 / 3))
    for _ in range(iomatch.ALIGN_OVER):
        aligned = heads.align(torch.tensor([[0.2, 0.8]]))
    torch.testing.assert_close(aligned[0], torch.tensor([0.5, 0.5]))  # the first two are forgotten


def test_iomatch_is_the_documented_sum() -> None:
    views = Views()
    classifier, heads = build("iomatch")
    assert isinstance(heads, IOMatch)
    predicted = classifier.real(classifier.embed(views.weak)).softmax(1).detach()
    self_real = self_open = 0.0
    weights = []
    for k, (weak_view, strong_view) in enumerate(each(views.weak, views.strong)):
        p = predicted[k] / predicted.mean(0)
        p = p / p.sum()
        outlier, inlier = heads.binary(heads.projection(classifier.embed(weak_view))).view(2, K)
        o = torch.sigmoid(inlier - outlier).detach()
        q = [*(p * o).tolist(), float((p * (1 - o)).sum())]
        strong = classifier.embed(strong_view)
        log_p = classifier.real(strong).log_softmax(1)[0].tolist()
        log_q = heads.open_set(heads.projection(strong)).log_softmax(1)[0].tolist()
        weights.append(float(p.max() >= TAU and q[-1] < 0.5))
        self_real -= weights[-1] * sum(a * b for a, b in zip(p.tolist(), log_p, strict=True)) / 12
        self_open -= (max(q) >= 0.5) * sum(a * b for a, b in zip(q, log_q, strict=True)) / 12
    losses = views.losses(classifier, heads)
    assert 0 < sum(weights) < 12
    assert losses.weight.tolist() == weights
    assert losses.self_real.item() == pytest.approx(self_real, rel=1e-4)
    assert losses.self_open.item() == pytest.approx(self_open, rel=1e-4)
    assert self_open > 0
    features = classifier.embed(views.labeled)
    binary = heads.binary(heads.projection(features))
    torch.testing.assert_close(losses.sup_real, F.cross_entropy(classifier.real(features), views.labels))
    torch.testing.assert_close(losses.sup_open, one_vs_all.one_vs_all_loss(binary, views.labels))


def test_targets_of_iomatch_carry_no_gradient() -> None:
    """Weak views in a pass of their own, without a graph, give the same: exactly so without batch norm."""
    results = []
    for weak_gradient in (True, False):
        classifier, heads = build("iomatch", weak_gradient=weak_gradient)
        losses = Views().losses(classifier, heads)
        results.append((losses.total.detach(), gradients(losses, classifier, heads)))
    torch.testing.assert_close(results[0], results[1])
