import pytest
import torch
from torch import nn

from models.classifier import Classifier
from models.learner import Learner, averaged, cosine, decay_at, sgd


def test_average_follows_the_formula_and_copies_buffers() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    learner = Learner(network, averaged(network), sgd(network, momentum=0.9, weight_decay=5e-4))
    expected = {name: value.clone() for name, value in network.named_parameters()}
    for _ in range(4):
        learner.descend(network(torch.randn(5, 3)).sin().sum(), rate=0.1, decay=0.9)
        for name, value in network.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * value.detach()
    for name, value in learner.average.named_parameters():
        torch.testing.assert_close(value, expected[name])
        assert not torch.equal(value, network.get_parameter(name))
        assert not value.requires_grad
    for ours, theirs in zip(learner.average.buffers(), network.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_step_goes_down_the_loss_by_the_rate() -> None:
    linear = nn.Linear(1, 1)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.bias.fill_(0.5)
    network = nn.Sequential(linear, nn.BatchNorm1d(1))  # the average of a network without buffers is not needed
    learner = Learner(network, averaged(network), sgd(network, momentum=0.0001, weight_decay=0.1))
    for rate in (0.25, 0.0):
        learner.descend(2 * linear.weight.sum() + 3 * linear.bias.sum(), rate=rate, decay=0.5)
        gradient = (2 + 0.1) * 1.0001, 3 * 1.0001  # weights decay, biases do not; the first step of Nesterov's
        assert linear.weight.item() == pytest.approx(1 - 0.25 * gradient[0], rel=1e-4)
        assert linear.bias.item() == pytest.approx(0.5 - 0.25 * gradient[1], rel=1e-4)


def one_step(*, is_pretrained: bool, backbone_rate: float) -> tuple[float, float]:
    """How far one step moves the backbone and the real head, at a gradient of one everywhere and a rate of 0.5."""
    torch.manual_seed(0)
    classifier = Classifier("small", 3)
    classifier.is_pretrained = is_pretrained
    trained = nn.ModuleList([classifier, nn.Linear(2, 2)])
    optimizer = sgd(trained, momentum=1e-9, weight_decay=0.0, backbone_rate=backbone_rate)
    before = [parameter.detach().clone() for parameter in trained.parameters()]
    learner = Learner(trained, averaged(trained), optimizer)
    learner.descend(sum(parameter.sum() for parameter in trained.parameters()), rate=0.5, decay=0.9)
    moved = {
        name: float((old - parameter).detach().abs().max())
        for old, (name, parameter) in zip(before, trained.named_parameters(), strict=True)
    }
    backbone = {round(value, 5) for name, value in moved.items() if name.startswith("0.backbone")}
    others = {round(value, 5) for name, value in moved.items() if not name.startswith("0.backbone")}
    assert len(backbone) == len(others) == 1  # weights and biases, and further heads, alike
    return backbone.pop(), others.pop()


def test_a_pretrained_backbone_learns_at_its_share_of_the_rate_and_the_heads_at_all_of_it() -> None:
    assert one_step(is_pretrained=True, backbone_rate=0.1) == (0.05, 0.5)
    assert one_step(is_pretrained=True, backbone_rate=0.0) == (0.0, 0.5)
    assert one_step(is_pretrained=False, backbone_rate=0.1) == (0.5, 0.5)


def test_groups_of_a_pretrained_backbone_hold_every_parameter_once_and_decay_weights_alone() -> None:
    classifier = Classifier("small", 3)
    classifier.is_pretrained = True
    groups = sgd(classifier, momentum=0.9, weight_decay=5e-4, backbone_rate=0.1).param_groups
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, classifier.parameters()))
    assert {(group["rate_share"], group["weight_decay"]) for group in groups} == {
        (1.0, 5e-4), (1.0, 0.0), (0.1, 5e-4), (0.1, 0.0),
    }  # fmt: skip
    assert all((p.ndim > 1) == (group["weight_decay"] > 0) for group in groups for p in group["params"])


def test_decay_is_warmed_up() -> None:
    assert decay_at(0, 0.999) == pytest.approx(0.1)
    assert decay_at(10**6, 0.999) == 0.999
    values = [decay_at(step, 0.999) for step in range(2000)]
    assert values == sorted(values)


def test_cosine_starts_at_the_peak_and_ends_at_fixmatchs_floor() -> None:
    assert cosine(0, 1000, 0.03) == pytest.approx(0.03)
    assert cosine(1000, 1000, 0.03) == pytest.approx(0.03 * 0.19509, rel=1e-4)  # cos(7 pi / 16)
