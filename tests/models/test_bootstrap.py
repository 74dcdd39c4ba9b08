"""The bootstrap must find the direction of a contamination by itself, and no other."""

import pytest
import torch

from models import residual
from models.bootstrap import bootstrap, estimate_share, extremes, share_interval
from tests.models.residual_pictures import pictures


@pytest.mark.parametrize("seed", range(4))
def test_bootstrap_finds_the_synthetic_part_whatever_the_seed(seed: int) -> None:
    pool = torch.cat((pictures(600, 2 * seed, synthetic=False), pictures(300, 2 * seed + 1, synthetic=True)))
    synthetic = torch.arange(900) >= 600
    labeled = residual.features(pictures(40, 100 + seed, synthetic=False))
    rng = torch.Generator().manual_seed(seed)
    pseudo_labels = torch.randint(3, (900,), generator=rng)
    found = bootstrap(residual.features(pool), labeled, pseudo_labels, 3, rng)
    above = (found.scores[synthetic][:, None] > found.scores[~synthetic][None, :]).float().mean()
    assert above > 0.95  # AUROC
    assert synthetic[found.synthetic].float().mean() > 0.95
    assert synthetic[found.real].float().mean() < 0.05
    later = residual.ResidualScore()
    later.fit(found.linear, residual.features(pool))
    scores = later(torch.cat((pictures(100, 200 + seed, synthetic=False), pictures(100, 300 + seed, synthetic=True))))
    assert (scores[100:, None] > scores[None, :100]).float().mean() > 0.95  # of images that it has never seen


@pytest.mark.parametrize("seed", range(4))
def test_few_labeled_images_do_not_lock_it_onto_their_own_noise(seed: int) -> None:
    """A third of the pool lies four standard deviations off, in a direction that 20 images of 221 features hide. One
    model that chooses its own examples ends at an AUROC of .7 here.
    """
    rng = torch.Generator().manual_seed(seed)
    synthetic = torch.arange(3000) >= 2000
    shift = torch.randn(residual.NUM_FEATURES, generator=rng)
    pool = torch.randn(3000, len(shift), generator=rng) + synthetic[:, None] * 4 * shift / shift.norm()
    labeled = torch.randn(20, len(shift), generator=rng)
    found = bootstrap(pool, labeled, torch.randint(3, (3000,), generator=rng), 3, rng)
    above = (found.scores[synthetic][:, None] > found.scores[~synthetic][None, :]).float().mean()
    assert above > 0.93
    assert synthetic[found.synthetic].float().mean() > 0.97


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.75])
def test_bootstrap_tells_how_much_is_synthetic(share: float) -> None:
    """Of a clean pool nothing, although there are always images less like the labeled ones than others."""
    count = round(share * 1000)
    pool = torch.cat((pictures(1000 - count, 1, synthetic=False), pictures(count, 2, synthetic=True)))
    labeled = residual.features(pictures(250, 3, synthetic=False))
    rng = torch.Generator().manual_seed(0)
    found = bootstrap(residual.features(pool), labeled, torch.randint(3, (1000,), generator=rng), 3, rng)
    assert found.estimated_share == pytest.approx(share, abs=0.08)  # of 250 labeled images, 0.03 standard error


def test_share_is_that_of_a_known_mixture() -> None:
    rng = torch.Generator().manual_seed(0)
    real, unseen, fake = (
        torch.randn(count, generator=rng) + shift for count, shift in ((7000, 0), (2000, 0), (3000, 3))
    )
    assert estimate_share(torch.cat((real, fake)), unseen) == pytest.approx(0.3, abs=0.03)
    assert estimate_share(real, unseen) == pytest.approx(0, abs=0.03)


def test_interval_is_about_the_estimate_and_narrower_with_more_real_images() -> None:
    rng = torch.Generator().manual_seed(0)
    pool = torch.cat((torch.randn(7000, generator=rng), torch.randn(3000, generator=rng) + 3))
    widths = []
    for count in (100, 1600):
        unseen = torch.randn(count, generator=rng)
        low, high = share_interval(pool, unseen, rng)
        assert 0 <= low < estimate_share(pool, unseen) < high <= 1
        widths.append(high - low)
    assert widths[1] < widths[0] / 2  # a quarter but for chance


def test_extremes_are_strict_quantiles_of_classes_that_are_alike() -> None:
    scores = torch.arange(200.0)
    labels = torch.arange(200) % 2
    for share, num_real, num_synthetic in ((0.3, 60, 20), (0.7, 30, 20), (0.08, 60, 8), (0.0, 60, 6), (1.0, 12, 20)):
        real, synthetic = extremes(scores, labels, 2, share)
        assert synthetic.nonzero().squeeze(1).tolist() == list(range(200 - num_synthetic, 200))
        assert real.nonzero().squeeze(1).tolist() == list(range(num_real))


def test_a_class_without_synthetic_images_gives_none() -> None:
    """All synthetic images are of class 0: of the highest scores of the other classes none is taken for synthetic."""
    rng = torch.Generator().manual_seed(0)
    synthetic = torch.arange(1000) < 250
    scores = torch.rand(1000, generator=rng) + 1.5 * synthetic
    labels = torch.where(synthetic, 0, torch.arange(1000) % 5)
    real, fake = extremes(scores, labels, 5, 0.25)
    assert fake.sum() == 100
    assert synthetic[fake].all()
    assert not synthetic[real].any()
    assert (torch.bincount(labels[real], minlength=5) > 0).all()
