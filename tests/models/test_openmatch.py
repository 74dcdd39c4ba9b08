"""OpenMatch: each loss against a case computed by hand, the whole against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import one_vs_all, openmatch
from models.openmatch import OpenMatch
from tests.models.open_set import K, Views, binary_logits, build, each


def test_entropy_is_the_mean_over_the_classifiers() -> None:
    h = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert openmatch.entropy_loss(binary_logits([[0.5, 0.9]])).item() == pytest.approx((math.log(2) + h) / 2, rel=1e-5)


def test_consistency_is_the_squared_distance_of_both_outputs() -> None:
    first, second = binary_logits([[0.8, 0.4], [0.3, 0.2]]), binary_logits([[0.6, 0.5], [0.3, 0.2]])
    expected = (2 * 0.2**2 + 2 * 0.1**2) / 2
    assert openmatch.consistency_loss(first, second).item() == pytest.approx(expected, rel=1e-5)


def test_openmatch_is_the_documented_sum() -> None:
    views = Views()
    classifier, heads = build("openmatch")
    assert isinstance(heads, OpenMatch)

    def inlier(image: Tensor) -> Tensor:
        outlier, inlier = heads.one_vs_all(classifier.embed(image)).view(2, K)
        return torch.sigmoid(inlier - outlier)

    entropy = consistency = pseudo = 0.0
    inliers = []
    for weak, again, strong in each(views.weak, views.again, views.strong):
        first, second = inlier(weak), inlier(again)
        for o in (first, second):
            entropy += float(-(o * o.log() + (1 - o) * (1 - o).log()).detach().mean()) / 2 / 12
        consistency += float(2 * (first - second).detach().square().sum()) / 12
        chosen = classifier.real(classifier.embed(weak)).argmax(1)
        inliers.append(bool(first[chosen] > 0.5))
        if inliers[-1]:
            pseudo += F.cross_entropy(classifier.real(classifier.embed(strong)), chosen).item()
    losses = views.losses(classifier, heads)
    assert 0 < sum(inliers) < 12
    assert losses.inlier.tolist() == inliers
    assert losses.self_real.item() == pytest.approx(pseudo / sum(inliers), rel=1e-5)
    assert losses.self_open.item() == pytest.approx(0.1 * entropy + 0.5 * consistency, rel=1e-5)
    features = classifier.embed(views.labeled)
    torch.testing.assert_close(losses.sup_real, F.cross_entropy(classifier.real(features), views.labels))
    torch.testing.assert_close(losses.sup_open, one_vs_all.one_vs_all_loss(heads.one_vs_all(features), views.labels))
    torch.testing.assert_close(losses.total, losses.sup_real + losses.sup_open + losses.self_real + losses.self_open)


def test_openmatch_gives_no_pseudo_labels_before_the_warm_up_is_over() -> None:
    classifier, heads = build("openmatch")
    losses = Views().losses(classifier, heads, warmed_up=False)
    assert losses.self_real.item() == 0
    assert not losses.weight.any()
    assert losses.self_open.item() > 0


def test_openmatch_without_a_pseudo_inlier_stays_finite() -> None:
    classifier, heads = build("openmatch")
    nn.init.zeros_(heads.one_vs_all.weight)  # all at 0.5, which is not an inlier
    losses = Views().losses(classifier, heads)
    assert losses.self_real.item() == 0
    assert losses.total.isfinite()


def test_targets_of_openmatch_carry_no_gradient() -> None:
    views = Views()
    classifier, heads = build("openmatch")
    losses = views.losses(classifier, heads)
    gradient = torch.autograd.grad(losses.self_real, classifier.backbone[1].weight)[0]
    strong = classifier.real(classifier.embed(views.strong))[losses.inlier]
    alone = F.cross_entropy(strong, losses.pseudo_probs.argmax(1)[losses.inlier])
    torch.testing.assert_close(gradient, torch.autograd.grad(alone, classifier.backbone[1].weight)[0])
