import pytest
import torch

from models.thresholds import Thresholds


def test_the_thresholds_leave_the_estimated_share_above_them() -> None:
    thresholds = Thresholds()
    rng = torch.Generator().manual_seed(0)
    thresholds.follow(torch.randn(100, generator=rng), torch.randn(100, generator=rng))
    assert thresholds.detector == thresholds.middle == 0  # nothing has been estimated
    assert thresholds.sure == -torch.inf  # everything may enter the queue
    assert thresholds.estimate == (None, None)
    thresholds.fit(0.2, (0.15, 0.25))
    for _ in range(400):
        thresholds.follow(torch.randn(200, generator=rng) + 2, 3 * torch.randn(200, generator=rng) - 1)
    assert thresholds.detector.item() == pytest.approx(0.8416 + 2, abs=0.1)  # the normal distribution's 80th percentile
    assert thresholds.middle.item() == pytest.approx(3 * 0.8416 - 1, abs=0.15)
    assert thresholds.sure.item() == pytest.approx(3 * 1.2816 - 1, abs=0.2)  # and its 90th
    assert thresholds.route.item() == pytest.approx(3 * 0.6372 - 1, abs=0.15)  # its 73.6th: 0.8 * (1 - 0.4 * 0.2)
    assert thresholds.estimate[0] == pytest.approx(0.2)


def test_a_clean_pool_is_routed_at_the_middle() -> None:
    thresholds = Thresholds()
    thresholds.fit(0.0, (0.0, 0.1))
    for _ in range(100):
        thresholds.follow(torch.zeros(200), torch.arange(200.0), rate=0.5)
    assert thresholds.route == thresholds.middle


def test_those_that_do_not_follow_stay_at_0_and_know_the_share() -> None:
    thresholds = Thresholds(follows=False)
    thresholds.fit(0.2, (0.15, 0.25))
    thresholds.follow(torch.arange(100.0), torch.arange(100.0), rate=1.0)
    thresholds.calibrate(torch.arange(100.0))
    assert thresholds.detector == thresholds.middle == thresholds.route == 0
    assert thresholds.sure == -torch.inf
    assert thresholds.estimate == (0.2, (0.15, 0.25))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 0.996, 1.0])
def test_calibration_leaves_exactly_the_estimated_share_above(share: float) -> None:
    thresholds = Thresholds()
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0))
    thresholds.calibrate(logits)
    assert thresholds.detector == 0  # nothing has been estimated
    thresholds.fit(share, (share, share))
    thresholds.calibrate(logits)
    assert (logits >= thresholds.detector).sum() == round(share * 300)
