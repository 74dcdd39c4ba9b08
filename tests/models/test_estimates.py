"""Bounds and intervals that hold the truth as often as they say, for scores whose truth is known."""

import math
from itertools import product
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from models import estimates


def normal(count: int, rng: torch.Generator, *, auroc: float = 0.5) -> Tensor:
    """Scores of images that a detector tells from real ones with an AUROC."""
    shift = math.sqrt(2) * NormalDist().inv_cdf(auroc)
    return torch.randn(count, generator=rng, dtype=torch.float64) + shift


def world(seed: int, num_pool: int, num_labeled: int, share: float, auroc: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of a pool's synthetic and real images, and of labeled ones."""
    rng = torch.Generator().manual_seed(seed)
    count = round(share * num_pool)
    return normal(count, rng, auroc=auroc), normal(num_pool - count, rng), normal(num_labeled, rng)


def auroc_of(fake: Tensor, real: Tensor) -> float:
    return float((fake[:, None] > real).double().mean())


@pytest.mark.parametrize(("share", "auroc"), [(0.0, 0.5), (0.05, 0.95), (0.33, 0.6), (0.33, 0.9), (0.9, 0.99)])
def test_the_share_is_as_large_as_the_bound_in_95_of_100_runs(share: float, auroc: float) -> None:
    true = 0
    for seed in range(200):
        fake, real, labeled = world(seed, 300, 40, share, auroc)
        true += estimates.share_at_least(torch.cat((fake, real)), labeled) <= len(fake) / 300 + 1e-9
    assert true >= 183  # of 200; fewer come with a probability of 0.02 where 95 % hold


def test_the_bound_is_near_the_share_of_a_good_detector_and_nothing_of_a_useless_one() -> None:
    fake, real, labeled = world(0, 4000, 500, 0.4, 0.995)
    assert 0.33 < estimates.share_at_least(torch.cat((fake, real)), labeled) <= 0.4
    fake, real, labeled = world(0, 4000, 500, 0.4, 0.5)
    assert estimates.share_at_least(torch.cat((fake, real)), labeled) == 0


def test_the_bound_is_exact_where_every_arrangement_can_be_counted() -> None:
    # The probability that at most 1 of 3 real images precedes the 2nd of 4 labeled ones, of all C(7, 3) orders.
    orders = [order for order in product((True, False), repeat=7) if sum(order) == 3]  # True is of the pool
    few = 0
    for order in orders:
        labeled = [place for place, of_pool in enumerate(order) if not of_pool]
        few += sum(order[: labeled[1]]) <= 1
    found = estimates._tail(torch.tensor([1.0]).double(), torch.tensor([2.0]).double(), torch.tensor([3.0]).double(), 4)
    assert float(found) == pytest.approx(few / len(orders))


def test_a_higher_confidence_gives_a_lower_bound() -> None:
    fake, real, labeled = world(1, 1000, 150, 0.4, 0.9)
    pool = torch.cat((fake, real))
    bounds = [estimates.share_at_least(pool, labeled, confidence) for confidence in (0.8, 0.95, 0.9975)]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == 3


def test_only_the_order_of_the_scores_counts() -> None:
    fake, real, labeled = world(2, 1000, 150, 0.3, 0.85)
    pool = torch.cat((fake, real))
    assert estimates.share_at_least(pool, labeled) == estimates.share_at_least(pool.exp(), labeled.exp())
    assert estimates.fit(pool, labeled) == estimates.fit(3 * pool - 7, 3 * labeled - 7)


def test_equal_scores_show_nothing() -> None:
    pool, labeled = torch.zeros(500), torch.zeros(50)
    assert estimates.share_at_least(pool, labeled) == 0
    found = estimates.fit(pool, labeled)
    assert found is not None
    assert found.auroc.low < 0.55


def test_too_few_images_say_nothing() -> None:
    few, many = torch.linspace(0, 1, 9), torch.linspace(5, 6, 500)
    assert estimates.share_at_least(many, few) == 0
    assert estimates.share_at_least(torch.empty(0), many) == 0
    assert estimates.fit(many, few) is None
    assert estimates.fit(few, many) is None


def test_auroc_agrees_with_all_pairs_and_ties_count_half() -> None:
    known, labeled = torch.tensor([1.0, 2, 2, 5, 7, 8, 8, 9, 9, 9]), torch.tensor([0.0, 1, 1, 2, 3, 4, 5, 5, 6, 8])
    pairs = (known[:, None] > labeled).double() + 0.5 * (known[:, None] == labeled).double()
    found = estimates.auroc(known, labeled)
    assert found.value == pytest.approx((float(pairs.mean()) * 40 + 0.5) / 41)
    assert 0 < found.low < found.value < found.high < 1


def test_a_perfect_separation_of_few_images_is_not_certain() -> None:
    few = estimates.auroc(torch.arange(10) + 100, torch.arange(10))
    many = estimates.auroc(torch.arange(500) + 1000, torch.arange(500))
    assert few.low < 0.9
    assert many.low > 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("share", "auroc"), [(0.1, 0.75), (0.33, 0.6), (0.33, 0.9), (0.67, 0.8)])
@pytest.mark.parametrize("num_known", [0, 50])
def test_the_interval_holds_the_auroc_in_nine_of_ten_runs(share: float, auroc: float, num_known: int) -> None:
    held, widths = 0, []
    for seed in range(40):
        fake, real, labeled = world(seed, 900, 150, share, auroc)
        known = normal(num_known, torch.Generator().manual_seed(1000 + seed), auroc=auroc) if num_known else None
        found = estimates.fit(torch.cat((fake, real)), labeled, known)
        assert found is not None
        held += found.auroc.low <= auroc_of(fake, real) <= found.auroc.high
        widths.append(found.auroc.high - found.auroc.low)
    assert held >= 34  # of 40; fewer come with a probability of 0.04 where nine of ten hold
    if num_known:
        assert sum(widths) / len(widths) < 0.2


@pytest.mark.slow
def test_the_interval_stays_wide_where_half_of_the_synthetic_images_look_real() -> None:
    # What the detector does not see leaves no trace in the scores, so that a narrow interval would be a lie.
    held = 0
    for seed in range(20):
        fake, real, labeled = world(seed, 5000, 500, 0.33, 0.97)
        unseen = normal(len(fake) // 2, torch.Generator().manual_seed(1000 + seed))
        fake = torch.cat((fake[: len(fake) // 2], unseen))
        found = estimates.fit(torch.cat((fake, real)), labeled)
        assert found is not None
        held += found.auroc.low <= auroc_of(fake, real) <= found.auroc.high
    assert held >= 18


def test_known_images_narrow_the_interval_and_declared_ones_less() -> None:
    fake, real, labeled = world(3, 900, 150, 0.33, 0.85)
    pool, known = torch.cat((fake, real)), normal(50, torch.Generator().manual_seed(4), auroc=0.85)
    widths = []
    for scores_K, representative in ((None, True), (known, False), (known, True)):
        found = estimates.fit(pool, labeled, scores_K, representative=representative)
        assert found is not None
        widths.append(found.auroc.high - found.auroc.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[2] < 0.17 < widths[0]
