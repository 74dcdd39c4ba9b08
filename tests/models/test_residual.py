"""The bootstrap must find the direction of a contamination by itself, and no other."""

import numpy as np
import pytest
import torch

from models import residual


def pictures(count: int, seed: int, *, synthetic: bool) -> torch.Tensor:
    """Random fields with sensor noise, or upsampled from half the size: uint8 (count, 3, 32, 32)."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 9, generator=rng) * 200
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    noise = torch.randn(count, 3, 32, 32, generator=rng)
    if synthetic:
        half = torch.nn.functional.avg_pool2d(smooth + 6 * noise, 2)
        return torch.nn.functional.interpolate(half, scale_factor=2.0).clamp(0, 255).to(torch.uint8)
    return (smooth + 4 * noise).clamp(0, 255).to(torch.uint8)


def test_statistics_are_finite_even_on_flat_images() -> None:
    images = torch.cat((torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 255.0))).to(torch.uint8)
    statistics = residual.statistics(torch.cat((images, pictures(3, 0, synthetic=False))))
    assert statistics.shape == (5, residual.NUM_STATISTICS)
    assert statistics.isfinite().all()


def test_statistics_of_an_image_do_not_depend_on_its_batch() -> None:
    images = pictures(6, 0, synthetic=False)
    whole, alone = residual.statistics(images), residual.statistics(images[2:3])
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-4, atol=1e-4)


def test_spread_is_the_documented_numbers() -> None:
    image = pictures(1, 3, synthetic=False)
    spread = residual.statistics(image)
    red, green, blue = image[0].double().numpy()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    size = np.abs(luma[:, 1:] - luma[:, :-1]).ravel()
    expected = [np.log(size.mean() + 0.1), np.mean(size > 3 * size.mean()), np.mean(size < size.mean() / 4)]
    assert spread[0, [0, 6, 9]].tolist() == pytest.approx(expected, abs=1e-3)
    assert spread[0, 3].item() == pytest.approx(np.log((luma[:, 1:] - luma[:, :-1]).std() + 0.1), abs=1e-3)
    # counted in quarters of a level
    assert spread[0, 12].exp().item() - 0.1 == pytest.approx(np.quantile(size, 0.95), abs=0.25)


@pytest.mark.parametrize("seed", range(4))
def test_bootstrap_finds_the_synthetic_part_whatever_the_seed(seed: int) -> None:
    pool = torch.cat((pictures(600, 2 * seed, synthetic=False), pictures(300, 2 * seed + 1, synthetic=True)))
    synthetic = torch.arange(900) >= 600
    labeled = residual.statistics(pictures(40, 100 + seed, synthetic=False))
    rng = torch.Generator().manual_seed(seed)
    pseudo_labels = torch.randint(3, (900,), generator=rng)
    start = residual.bootstrap(residual.statistics(pool), labeled, pseudo_labels, 3, rng)
    above = (start.scores[synthetic][:, None] > start.scores[~synthetic][None, :]).float().mean()
    assert above > 0.95  # AUROC
    assert synthetic[start.synthetic].float().mean() > 0.95
    assert synthetic[start.real].float().mean() < 0.05
    later = residual.Score()
    later.settle(start.linear, residual.statistics(pool))
    scores = later(torch.cat((pictures(100, 200 + seed, synthetic=False), pictures(100, 300 + seed, synthetic=True))))
    assert (scores[100:, None] > scores[None, :100]).float().mean() > 0.95  # of images that it has never seen


@pytest.mark.parametrize("seed", range(4))
def test_few_labeled_images_do_not_lock_it_onto_their_own_noise(seed: int) -> None:
    """A third of the pool lies four standard deviations off, in a direction that 20 images of 221 statistics hide. One
    model that chooses its own examples ends at an AUROC of .7 here.
    """
    rng = torch.Generator().manual_seed(seed)
    synthetic = torch.arange(3000) >= 2000
    shift = torch.randn(residual.NUM_STATISTICS, generator=rng)
    pool = torch.randn(3000, len(shift), generator=rng) + synthetic[:, None] * 4 * shift / shift.norm()
    labeled = torch.randn(20, len(shift), generator=rng)
    start = residual.bootstrap(pool, labeled, torch.randint(3, (3000,), generator=rng), 3, rng)
    above = (start.scores[synthetic][:, None] > start.scores[~synthetic][None, :]).float().mean()
    assert above > 0.93
    assert synthetic[start.synthetic].float().mean() > 0.97


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.75])
def test_bootstrap_tells_how_much_is_synthetic(share: float) -> None:
    """Of a clean pool nothing, although there are always images less like the labeled ones than others."""
    count = round(share * 1000)
    pool = torch.cat((pictures(1000 - count, 1, synthetic=False), pictures(count, 2, synthetic=True)))
    labeled = residual.statistics(pictures(250, 3, synthetic=False))
    rng = torch.Generator().manual_seed(0)
    start = residual.bootstrap(residual.statistics(pool), labeled, torch.randint(3, (1000,), generator=rng), 3, rng)
    assert start.share_synthetic == pytest.approx(share, abs=0.08)  # of 250 labeled images, 0.03 standard error


def test_share_is_that_of_a_known_mixture() -> None:
    rng = torch.Generator().manual_seed(0)
    real, unseen, fake = (
        torch.randn(count, generator=rng) + shift for count, shift in ((7000, 0), (2000, 0), (3000, 3))
    )
    assert residual.share_synthetic(torch.cat((real, fake)), unseen) == pytest.approx(0.3, abs=0.03)
    assert residual.share_synthetic(real, unseen) == pytest.approx(0, abs=0.03)


def test_extremes_are_strict_quantiles_of_classes_that_are_alike() -> None:
    scores = torch.arange(200.0)
    labels = torch.arange(200) % 2
    for share, num_real, num_synthetic in ((0.3, 60, 20), (0.7, 30, 20), (0.08, 60, 8), (0.0, 60, 6), (1.0, 12, 20)):
        real, synthetic = residual.extremes(scores, labels, 2, share)
        assert synthetic.nonzero().squeeze(1).tolist() == list(range(200 - num_synthetic, 200))
        assert real.nonzero().squeeze(1).tolist() == list(range(num_real))


def test_a_class_without_synthetic_images_gives_none() -> None:
    """All synthetic images are of class 0: of the highest scores of the other classes none is taken for synthetic."""
    rng = torch.Generator().manual_seed(0)
    synthetic = torch.arange(1000) < 250
    scores = torch.rand(1000, generator=rng) + 1.5 * synthetic
    labels = torch.where(synthetic, 0, torch.arange(1000) % 5)
    real, fake = residual.extremes(scores, labels, 5, 0.25)
    assert fake.sum() == 100
    assert synthetic[fake].all()
    assert not synthetic[real].any()
    assert (torch.bincount(labels[real], minlength=5) > 0).all()
