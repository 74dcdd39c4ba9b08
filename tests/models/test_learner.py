import pytest
import torch
from torch import nn

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


def test_decay_is_warmed_up() -> None:
    assert decay_at(0, 0.999) == pytest.approx(0.1)
    assert decay_at(10**6, 0.999) == 0.999
    values = [decay_at(step, 0.999) for step in range(2000)]
    assert values == sorted(values)


def test_cosine_starts_at_the_peak_and_ends_at_fixmatchs_floor() -> None:
    assert cosine(0, 1000, 0.03) == pytest.approx(0.03)
    assert cosine(1000, 1000, 0.03) == pytest.approx(0.03 * 0.19509, rel=1e-4)  # cos(7 pi / 16)
