import pytest
import torch

from models import ema, residual, spectrum
from models.networks import Classifier, Detector, backbone
from models.schedule import cosine


def num_parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_wrn_28_2_has_the_size_of_the_literature() -> None:
    network, width = backbone("wrn-28-2")
    assert width == 128
    assert num_parameters(network) + 128 * 10 + 10 == 1_467_610  # FixMatch's WRN-28-2 with 10 classes


@pytest.mark.parametrize("name", ["wrn-28-2", "small", "timm:resnet10t"])
def test_classifier_takes_uint8_and_gives_both_heads(name: str) -> None:
    classifier = Classifier(name, 7).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    heads = classifier(images)
    assert heads.real.shape == heads.dummy.shape == (3, 7)
    assert heads.real.dtype == torch.float32
    assert classifier.embed(images).shape == (3, classifier.num_features)


@pytest.mark.parametrize("name", ["resnet50", "timm:no_such_network"])
def test_unknown_backbone_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"[Uu]nknown"):
        backbone(name)


def test_detector_is_light_and_takes_any_size() -> None:
    detector = Detector().eval()
    assert num_parameters(detector) < 100_000
    for side in (32, 96):
        assert detector(torch.zeros(2, 3, side, side, dtype=torch.uint8)).shape == (2,)


@pytest.mark.parametrize("equalize", [True, False])
def test_detector_adds_a_linear_score_of_the_statistics(equalize: bool) -> None:
    detector = Detector(equalize=equalize).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = detector(images)
    seen = spectrum.equalize(images) if equalize else images
    statistics = residual.statistics(seen)
    with torch.no_grad():
        detector.linear.weight[0, 3] = 2.0  # the mean of 0 and variance of 1 that a fresh norm assumes
    expected = before + 2 * statistics[:, 3].clamp(-5, 5)
    torch.testing.assert_close(detector(images), expected, rtol=1e-4, atol=1e-4)


def test_average_follows_the_formula_and_copies_buffers() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = ema.shadow(network)
    expected = {name: value.clone() for name, value in network.named_parameters()}
    for _ in range(4):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(5, 3))
        ema.update(average, network, 0.9)
        for name, value in network.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * value.detach()
    for name, value in average.named_parameters():
        torch.testing.assert_close(value, expected[name])
        assert not value.requires_grad
    for ours, theirs in zip(average.buffers(), network.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_decay_is_warmed_up() -> None:
    assert ema.decay_at(0, 0.999) == pytest.approx(0.1)
    assert ema.decay_at(10**6, 0.999) == 0.999
    values = [ema.decay_at(step, 0.999) for step in range(2000)]
    assert values == sorted(values)


def test_cosine_starts_at_the_peak_and_ends_at_fixmatchs_floor() -> None:
    assert cosine(0, 1000, 0.03) == pytest.approx(0.03)
    assert cosine(1000, 1000, 0.03) == pytest.approx(0.03 * 0.19509, rel=1e-4)  # cos(7 pi / 16)
