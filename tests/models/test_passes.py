"""One pass for all views, or the weak ones apart: the same without batch norm, and with it the right statistics."""

import copy

import pytest
import torch
from torch import Tensor

from models import passes
from models.classifier import Classifier
from models.recipe import Controls
from models.rsmatch import classifier_loss
from models.rules import FixMatch
from tests.models import toy


def test_logits_are_those_of_each_view_by_itself() -> None:
    torch.manual_seed(0)
    classifier, (views, route) = toy.Plain(), toy.random_views()
    for weak_gradient in (True, False):
        heads = passes.forward(classifier, views, route, Controls(weak_gradient=weak_gradient))
        for head, logits in zip(("real", "dummy"), heads, strict=True):
            for kind in ("labeled", "weak", "strong"):
                alone = getattr(classifier(getattr(views, kind)), head)
                torch.testing.assert_close(getattr(logits, kind), alone)
            assert logits.weak.requires_grad == weak_gradient


def test_weak_views_without_gradient_give_the_same_losses_and_gradients() -> None:
    """Exactly so without batch norm; with it, the views' statistics are apart."""
    torch.manual_seed(0)
    classifier, (views, route) = toy.Plain(), toy.random_views()
    results = []
    for weak_gradient in (True, False):
        classifier.zero_grad()
        controls = Controls(weak_gradient=weak_gradient)
        losses = classifier_loss(classifier, views, route, (FixMatch(0.4),) * 2, controls)
        losses.total.backward()
        results.append((losses.total.detach(), [parameter.grad.clone() for parameter in classifier.parameters()]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("weak_gradient", [True, False])
def test_synthetic_targets_may_be_read_as_a_test_would(weak_gradient: bool) -> None:
    torch.manual_seed(0)
    network, (views, route) = Classifier("small", 4).train(), toy.random_views()
    network.set_norm_momentum(0.5)
    of_targets: dict[str, Tensor] = {}
    for targets in ("batch", "running"):
        classifier = copy.deepcopy(network)
        controls = Controls(weak_gradient=weak_gradient, synthetic_targets=targets)
        losses = classifier_loss(classifier, views, route, (FixMatch(0.0),) * 2, controls)
        of_targets[targets] = losses.confidence
        with torch.no_grad():
            tested = classifier.eval()(views.weak).real.softmax(1).max(1).values
        read_so = torch.isclose(losses.confidence, tested, atol=1e-5)
        assert read_so[route].all() == (targets == "running")
        assert not read_so[~route].all()
    torch.testing.assert_close(of_targets["batch"][~route], of_targets["running"][~route])


def test_routes_share_no_statistics_unless_asked_to() -> None:
    """Another synthetic image leaves the logits of the real ones as they were."""
    torch.manual_seed(0)
    network, (views, route) = Classifier("small", 4).train(), toy.random_views()
    changed = views._replace(
        weak=torch.where(route[:, None, None, None], views.weak // 3, views.weak),
        strong=torch.where(route[:, None, None, None], views.strong // 3, views.strong),
    )
    for split_norms in (True, False):
        (before, _), (after, _) = (
            passes.forward(copy.deepcopy(network), each, route, Controls(split_norms=split_norms))
            for each in (views, changed)
        )
        same = torch.allclose(before.strong[~route], after.strong[~route], rtol=1e-4, atol=1e-5)
        assert same == split_norms
