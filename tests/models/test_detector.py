import pytest
import torch

from models import residual
from models.detector import Detector
from models.equalize import equalize_spectrum


def random_images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_detector_is_light_and_takes_any_size() -> None:
    detector = Detector().eval()
    assert sum(parameter.numel() for parameter in detector.parameters()) < 100_000
    for side in (32, 96):
        assert detector(torch.zeros(2, 3, side, side, dtype=torch.uint8)).shape == (2,)


@pytest.mark.parametrize("equalize", [True, False])
def test_detector_adds_a_linear_score_of_the_residual_features(equalize: bool) -> None:
    detector = Detector(equalize=equalize).eval()
    images = random_images()
    before = detector(images)
    seen = equalize_spectrum(images) if equalize else images
    features = residual.features(seen)
    with torch.no_grad():
        detector.linear.weight[0, 3] = 2.0  # the mean of 0 and variance of 1 that a fresh norm assumes
    expected = before + 2 * features[:, 3].clamp(-5, 5)
    torch.testing.assert_close(detector(images), expected, rtol=1e-4, atol=1e-4)


def test_without_residual_features_it_is_the_convolutions_alone() -> None:
    detector = Detector(residual_features=False).eval()
    images = random_images()
    before = detector(images)
    with torch.no_grad():
        detector.linear.weight.fill_(2.0)
    assert torch.equal(detector(images), before)


def test_residual_planes_are_inputs_beside_the_colors_unless_switched_off() -> None:
    """A flat change of level in one channel is the colors' alone: what a mean leaves of each stays as it was."""
    with_planes, without = Detector(equalize=False).eval(), Detector(equalize=False, residual_planes=False).eval()
    first, alone = with_planes.features[0], without.features[0]
    assert (first.in_channels, alone.in_channels) == (6, 3)
    images = random_images()
    with torch.no_grad():
        first.weight[:, :3] = 0  # sees the planes alone
    darker = (images // 2 + 20, images // 2 + 60)
    torch.testing.assert_close(with_planes(darker[0]), with_planes(darker[1]))
    assert not torch.allclose(without(darker[0]), without(darker[1]))


def test_it_sees_all_of_this_by_default() -> None:
    torch.manual_seed(0)
    default = Detector().eval()
    same = Detector(equalize=True, residual_planes=True, residual_features=True).eval()
    same.load_state_dict(default.state_dict())
    assert default.equalizes
    assert torch.equal(default(random_images()), same(random_images()))
