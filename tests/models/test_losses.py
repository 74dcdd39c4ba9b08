"""The losses of RSMatch against plain references, and one property each."""

import pytest
import torch
import torch.nn.functional as F

from models.recipe import Controls, Head
from models.rsmatch import classifier_loss, consistency, queue_risk
from models.rules import FixMatch
from tests.models import toy
from tests.models.toy import Plain


@pytest.fixture
def classifier() -> Plain:
    torch.manual_seed(0)
    return Plain()


# The classifier's losses.


@pytest.mark.parametrize("dummy_labels", ["real", "dummy"])
def test_losses_are_the_documented_sums(classifier: Plain, dummy_labels: Head) -> None:
    (views, route), tau = toy.random_views(), 0.5
    losses = classifier_loss(classifier, views, route, (FixMatch(tau),) * 2, Controls(dummy_labels=dummy_labels))
    self_real = self_dummy = 0.0
    for weak, strong, synthetic in zip(views.weak, views.strong, route, strict=True):
        head = "dummy" if synthetic else "real"
        labels_by = dummy_labels if synthetic else "real"
        prob = getattr(classifier(weak[None]), labels_by).softmax(1)[0]
        if prob.max() >= tau:
            log_prob = getattr(classifier(strong[None]), head).log_softmax(1)[0]
            term = -float(log_prob[prob.argmax()].detach())
            self_dummy += term / len(views.weak) if synthetic else 0.0
            self_real += 0.0 if synthetic else term / int((~route).sum())
    heads = classifier(views.labeled)
    assert losses.self_real.item() == pytest.approx(self_real, rel=1e-5)
    assert losses.self_dummy.item() == pytest.approx(self_dummy, rel=1e-5)
    assert self_real > 0
    assert self_dummy > 0
    torch.testing.assert_close(losses.sup_real, F.cross_entropy(heads.real, views.labels))
    torch.testing.assert_close(losses.sup_dummy, F.cross_entropy(heads.dummy, views.labels))
    torch.testing.assert_close(losses.total, losses.sup_real + losses.sup_dummy + losses.self_real + losses.self_dummy)


def test_synthetic_images_reach_the_backbone_but_not_the_real_head(classifier: Plain) -> None:
    views, route = toy.random_views()
    losses = classifier_loss(classifier, views, route, (FixMatch(0.3),) * 2, Controls())
    losses.self_dummy.backward()
    assert classifier.real.weight.grad is None or not classifier.real.weight.grad.any()
    assert classifier.dummy.weight.grad.abs().sum() > 0
    assert classifier.backbone[1].weight.grad.abs().sum() > 0


def test_real_images_do_not_teach_the_dummy_head(classifier: Plain) -> None:
    views, route = toy.random_views()
    losses = classifier_loss(classifier, views, route, (FixMatch(0.3),) * 2, Controls())
    losses.self_real.backward()
    assert classifier.dummy.weight.grad is None or not classifier.dummy.weight.grad.any()
    assert classifier.real.weight.grad.abs().sum() > 0


def test_pseudo_labels_carry_no_gradient(classifier: Plain) -> None:
    views, _ = toy.random_views()
    views.strong.zero_()
    for parameter in classifier.parameters():
        parameter.grad = None
    losses = classifier_loss(classifier, views, None, (FixMatch(0.0),) * 2, Controls())
    assert not losses.confidence.requires_grad
    # With all strong views alike, the gradient may come from them alone: it is that of their own cross-entropy.
    gradient = torch.autograd.grad(losses.self_real, classifier.real.weight, retain_graph=True)[0]
    logits = classifier(views.strong).real
    expected = torch.autograd.grad(F.cross_entropy(logits, losses.pseudo_labels), classifier.real.weight)[0]
    torch.testing.assert_close(gradient, expected)


def test_fixmatch_is_the_case_without_a_route(classifier: Plain) -> None:
    views, _ = toy.random_views()
    none = torch.zeros(12, dtype=torch.bool)
    ours = classifier_loss(classifier, views, none, (FixMatch(0.5),) * 2, Controls())
    fixmatch = classifier_loss(classifier, views, None, (FixMatch(0.5),) * 2, Controls())
    torch.testing.assert_close(ours.self_real, fixmatch.self_real)
    assert ours.self_dummy.item() == 0
    torch.testing.assert_close(fixmatch.total, fixmatch.sup_real + fixmatch.self_real)


def test_a_threshold_nothing_passes_leaves_the_supervised_losses(classifier: Plain) -> None:
    views, route = toy.random_views()
    losses = classifier_loss(classifier, views, route, (FixMatch(1.01),) * 2, Controls())
    assert losses.self_real.item() == losses.self_dummy.item() == 0
    assert not losses.weight.any()


def test_what_a_few_real_images_teach_does_not_count_as_that_of_all(classifier: Plain) -> None:
    views, route = toy.random_views()
    losses = [
        classifier_loss(
            classifier,
            views._replace(
                weak=views.weak.repeat(n, 1, 1, 1), strong=views.strong.repeat(n, 1, 1, 1), rows=views.rows.repeat(n)
            ),
            torch.arange(n * len(views.rows)) != int(route.logical_not().nonzero()[0]),
            (FixMatch(0.0),) * 2,
            Controls(),
        )
        for n in (1, 10)
    ]
    # One of 12 and one of 120, both less than a tenth of the batch.
    assert losses[0].self_real.item() > 0
    assert losses[1].self_real.item() == pytest.approx(losses[0].self_real.item() / 10, rel=1e-4)


def test_self_training_of_the_real_head_may_be_averaged_over_all_images(classifier: Plain) -> None:
    """By default over those that are routed to it, whose share contamination lowers."""
    views, route = toy.random_views()
    ours, over_all = (
        classifier_loss(classifier, views, route, (FixMatch(0.3),) * 2, controls)
        for controls in (Controls(), Controls(average_over_real=False))
    )
    assert 0.1 < (~route).float().mean() < 1
    torch.testing.assert_close(over_all.self_real, ours.self_real * (~route).float().mean())
    for name in ("sup_real", "sup_dummy", "self_dummy"):
        torch.testing.assert_close(getattr(over_all, name), getattr(ours, name))


def test_a_discarded_image_teaches_nothing(classifier: Plain) -> None:
    views, route = toy.random_views()
    losses = classifier_loss(classifier, views, route, (FixMatch(0.3),) * 2, Controls(dummy_weight=0.0))
    torch.testing.assert_close(losses.total, losses.sup_real + losses.self_real)
    assert losses.self_real > 0


# The detector's losses, on logits.

REAL, OTHER = torch.tensor([-2.0, 0.5, -1.0]), torch.tensor([3.0, -1.0, 0.2, 1.0])
bce = F.binary_cross_entropy_with_logits


def test_queue_risk_is_binary_cross_entropy_of_both_sides() -> None:
    expected = bce(REAL, torch.zeros(3)) + bce(OTHER, torch.ones(4))
    torch.testing.assert_close(queue_risk(REAL, OTHER, torch.zeros(2), toy.batch_of(torch.arange(2))), expected)


def test_consistency_teaches_where_the_teacher_is_sure() -> None:
    cons = consistency(OTHER[:3], torch.tensor([0.99, 0.5, 0.01]), 0.95)
    expected = (bce(OTHER[0], torch.tensor(1.0)) + bce(OTHER[2], torch.tensor(0.0))) / 3
    torch.testing.assert_close(cons, expected)
