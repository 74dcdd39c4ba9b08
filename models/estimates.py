"""What can be said of a detector and of a pool's synthetic share without one synthetic label, and how surely.

Given are the detector's scores of the pool and of labeled real images that it has not seen. Three things follow.

- The share of the pool that lies *above* the labeled images is synthetic: `share_at_least`. That is a lower bound.
  Synthetic images that look real to the detector lie among the real ones, so the scores bound the share from one side
  only (Blanchard, Lee and Scott 2010).
- With A the AUROC of pool against labeled images and pi the share, the detector's own AUROC is 1/2 + (A - 1/2) / pi.
  As pi is unknown, so is the AUROC, unless something is assumed of the scores: `fit` does, see there.
- Synthetic images that are known measure the AUROC directly (`auroc`), and with it bound the share from above.

All of it takes the labeled images to be a random sample of the pool's real ones. Where they are not, as when they are
other photographs or come from other sources, the difference itself looks synthetic.

Shape suffixes: N images of a pool, L labeled real ones, K known synthetic ones, J levels, G hypotheses.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

CONFIDENCE = 0.95
FEWEST_LABELED = 10  # below, nothing is said
# How much more the AUROC of pool against labeled images varies where the scores were cross-fitted to these very images,
# as those of a panel, than where they are independent: 1.4 on clean pools of photographs (docs/benchmarks.md).
CROSS_FITTED = 1.5
FEWEST_KNOWN = 10  # of known synthetic images
_LEVELS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of labeled images below a threshold


def share_at_least(scores_N: Tensor, scores_L: Tensor, confidence: float = CONFIDENCE, *, spread: float = 1.0) -> float:
    """Lower confidence bound of the synthetic share of a pool, 0..1.

    Below the k-th smallest labeled score lie at most as many real images of the pool as images of the pool, c. If the
    pool held n real images, their number there would be negative hypergeometric. Where it is improbable that it is as
    small as c, the pool holds fewer than n. The bound is exact for each k, whatever the distribution of the scores and
    however good the detector; several k are tried, and the level is corrected for that. Ties count against the bound.

    Scores that were cross-fitted are not independent: they differ by `spread` times as much (see CROSS_FITTED).
    """
    num_pool, num_labeled = len(scores_N), len(scores_L)
    if not num_pool or num_labeled < FEWEST_LABELED:
        return 0.0
    rank_J = _ranks(_LEVELS, 1, num_labeled)
    thresholds_J = scores_L.double().cpu().sort().values[rank_J.long() - 1]
    below_J = torch.searchsorted(scores_N.double().cpu().sort().values, thresholds_J, right=True).double()
    level = _local_level(tuple((rank_J / (num_labeled + 1)).tolist()), confidence, spread)
    # The smallest number of real images that is rejected, by bisection, for all thresholds at once.
    low_J, high_J = below_J, torch.full_like(below_J, num_pool + 1)  # low is not rejected, high is
    while bool((high_J - low_J > 1).any()):
        middle_J = ((low_J + high_J) / 2).floor()
        rejected_J = _tail(below_J, rank_J, middle_J, num_labeled) <= level
        wide_J = high_J - low_J > 1
        high_J = torch.where(wide_J & rejected_J, middle_J, high_J)
        low_J = torch.where(wide_J & ~rejected_J, middle_J, low_J)
    most_real = float(high_J.min()) - 1
    return max(0.0, 1 - most_real / num_pool)


def _ranks(levels: tuple[float, ...], fewest: int, num_labeled: int) -> Tensor:
    """Ranks (J,) of labeled images nearest to some levels, each once, with `fewest` images or more on either side."""
    at = {min(max(round(level * (num_labeled + 1)), fewest), num_labeled + 1 - fewest) for level in levels}
    return torch.tensor(sorted(at), dtype=torch.float64)


def _tail(below_J: Tensor, rank_J: Tensor, real_J: Tensor, num_labeled: int) -> Tensor:
    """Probability (J,) that at most `below` of `real` pool images precede the labeled image of a rank."""
    first_J = (below_J + rank_J)[:, None]  # of both together: at least `rank` of them are labeled
    labeled_L = torch.arange(num_labeled + 1, dtype=torch.float64)[None]
    real_J1, from_pool_JL = real_J[:, None], first_J - labeled_L
    possible_JL = (labeled_L >= rank_J[:, None]) & (from_pool_JL >= 0) & (from_pool_JL <= real_J1)
    all_labeled = torch.tensor(float(num_labeled), dtype=torch.float64)
    log_JL = (
        _log_choose(all_labeled, labeled_L)
        + _log_choose(real_J1, from_pool_JL.clamp(min=0).minimum(real_J1))
        - _log_choose(real_J1 + num_labeled, first_J)
    )
    return torch.where(possible_JL, log_JL.exp(), 0.0).sum(1)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


@lru_cache(maxsize=256)
def _local_level(levels: tuple[float, ...], confidence: float, spread: float) -> float:
    """Level of each of several tests at quantiles of one sample, so that all of them hold with `confidence`.

    Their deviations are those of a Brownian bridge, of which the largest is simulated.
    """
    level_J = torch.tensor(levels, dtype=torch.float64)
    low, high = torch.minimum(level_J[:, None], level_J), torch.maximum(level_J[:, None], level_J)
    correlation = (low * (1 - high) / (high * (1 - low))).sqrt()
    factor = torch.linalg.cholesky(correlation + 1e-9 * torch.eye(len(levels), dtype=torch.float64))
    drawn = torch.randn(200_000, len(levels), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    largest = (drawn @ factor.T).amax(1).sort().values
    return float(torch.special.ndtr(-spread * largest[math.ceil(confidence * len(largest)) - 1]))


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; `value` is the median of what remains plausible."""

    value: float
    low: float
    high: float


def auroc(scores_K: Tensor, scores_L: Tensor) -> Interval:
    """AUROC of known synthetic against unseen real images, ties counting half, with an interval.

    The variance is DeLong's (1988), the interval is symmetric on the logit scale. The estimate shrinks a little, and
    the variance has a floor, so that a perfect separation of few images is not certain. Needs an image on either side.
    """
    found = _logit_auroc(scores_K, scores_L)
    std = math.sqrt(found.known / len(scores_K) + found.labeled / len(scores_L) + found.floor)
    low, middle, high = (1 / (1 + math.exp(-found.value - z * std)) for z in (-1.96, 0.0, 1.96))
    return Interval(middle, low, high)


class _Logit(NamedTuple):
    """An AUROC on the logit scale, and the variance that one image of either kind gives it."""

    value: float
    known: float
    labeled: float
    floor: float  # of the variance


def _logit_auroc(scores_K: Tensor, scores_L: Tensor) -> _Logit:
    placed_K, placed_L = _placements(scores_K, scores_L), _placements(scores_L, scores_K)
    fewest = min(len(placed_K), len(placed_L))
    shrunk = (float(placed_K.mean()) * 4 * fewest + 0.5) / (4 * fewest + 1)
    scale = (shrunk * (1 - shrunk)) ** -2  # of a variance, to logits
    known, labeled = (scale * (float(placed.var()) if len(placed) > 1 else 1 / 12) for placed in (placed_K, placed_L))
    return _Logit(math.log(shrunk / (1 - shrunk)), known, labeled, scale / (12 * fewest**2))


def excess(scores_N: Tensor, scores_L: Tensor) -> float:
    """By how much the pool lies above unseen labeled images: the AUROC of these two minus 1/2.

    Of a share pi of synthetic images that the detector tells with an AUROC a, it expects pi (a - 1/2).
    """
    return float(_placements(scores_N, scores_L).mean()) - 0.5


def _placements(scores: Tensor, others: Tensor) -> Tensor:
    """Share of the others that each score exceeds, ties counting half, float64."""
    ordered, values = others.double().cpu().sort().values, scores.double().cpu()
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + upto).double() / 2 / len(ordered)


# A mixture of the pool's scores: what is assumed, and what follows.

_UPPER = (0.03, 0.08, 0.15, 0.25, 0.35, 0.5, 0.65, 0.75, 0.85, 0.92, 0.97)  # of labeled images above a threshold
_SEEN = torch.linspace(0, 1, 51, dtype=torch.float64)  # share of the pool that is synthetic and looks different
_AUROC = torch.linspace(0.5, 0.995, 50, dtype=torch.float64)  # of those
_SPREAD = torch.tensor((0.7, 0.85, 1.0, 1.2, 1.45), dtype=torch.float64)  # standard deviation of their scores
_SPREAD_STD = 0.25  # of its logarithm, a priori
_UNSEEN = torch.linspace(0, 0.6, 7, dtype=torch.float64)  # share of the synthetic images that look real
_UNSEEN_PRIOR = torch.tensor((0.5, *[0.5 / 6] * 6), dtype=torch.float64)
_MISFIT = 0.01  # of the model, added to each share above a threshold
_OTHER_TOOLS = 0.65  # how far the logit of the AUROC of other generators is from that of the declared ones
_FEW = 30  # images, as many as a pool is taken to hold at least of either kind: fewer have no AUROC worth knowing


@dataclass(frozen=True)
class Fit:
    """What the scores leave plausible: of the detector's own AUROC, and of the pool's synthetic share."""

    auroc: Interval
    share: Interval


class _Hypotheses:
    """What each hypothesis expects above thresholds that a given share of the real images exceed."""

    def __init__(self, level_J: Tensor) -> None:
        grid = torch.meshgrid(_SEEN, _AUROC, _SPREAD, indexing="ij")
        self.seen_G, self.auroc_G, self.spread_G = (each.reshape(-1) for each in grid)
        z_J = torch.special.ndtri(level_J)
        shift_G1 = ((1 + self.spread_G.square()).sqrt() * torch.special.ndtri(self.auroc_G))[:, None]
        at_GJ = (shift_G1 + z_J) / self.spread_G[:, None]
        slope_GJ = torch.exp(0.5 * (z_J.square() - at_GJ.square())) / self.spread_G[:, None]
        seen_G1 = self.seen_G[:, None]
        self.above_GJ = (1 - seen_G1) * level_J + seen_G1 * torch.special.ndtr(at_GJ)
        self.slope_GJ = 1 - seen_G1 + seen_G1 * slope_GJ  # of `above` in `level`
        self.log_prior_G = -0.5 * (self.spread_G.log() / _SPREAD_STD).square()


def fit(
    scores_N: Tensor, scores_L: Tensor, scores_K: Tensor | None = None, *, representative: bool = True
) -> Fit | None:
    """Estimate the detector's own AUROC and the synthetic share from a model of the scores; None with too few images.

    The model: after one monotone transformation the real scores are normal, and so are those of the synthetic images,
    with a spread 0.7 to 1.45 times theirs, except for a part, 0 to 60 %, that looks like the real ones (Dorfman and
    Alf's binormal ROC curve, and generators that the detector does not see). Each combination is weighed by how well
    it predicts the share of the pool above quantiles of the labeled images, with the covariance of both samples. A
    priori all AUROC are equally plausible, and no unseen part is as plausible as some. The interval holds the middle
    95 % of that weight. tests/bench/estimates.py measures how often it holds the truth, also where the model is wrong.

    `scores_K` of known synthetic images measure the AUROC directly. They are `representative` if they are a random
    sample of the pool's synthetic images; if not, as where some declare themselves, others may be easier or harder to
    tell, by a standard deviation of 0.65 in the logit of the AUROC (.85 becomes .75 or .92).
    """
    if len(scores_L) < FEWEST_LABELED or len(scores_N) < FEWEST_LABELED:
        return None
    hypotheses, log_G = _weigh(scores_N, scores_L)
    share_GU = hypotheses.seen_G[:, None] / (1 - _UNSEEN)
    auroc_GU = 0.5 + (1 - _UNSEEN) * (hypotheses.auroc_G[:, None] - 0.5)
    # The prior is uniform in the AUROC and in the excess of the pool above the labeled images, share x (AUROC - 1/2).
    # Uniform in the share instead, a small share would hold nearly all detectors for weak ones. Below 0.6 it is uniform
    # in the share, because useless detectors are common.
    log_prior_GU = _UNSEEN_PRIOR.log() - (1 - _UNSEEN).log() + (auroc_GU - 0.5).clamp(min=0.1).log()
    log_GU = log_G[:, None] + log_prior_GU
    log_GU = torch.where(share_GU <= 1 + 1e-9, log_GU, -torch.inf)
    if scores_K is not None and len(scores_K) >= FEWEST_KNOWN:
        found = _logit_auroc(scores_K, scores_L)
        # The AUROC of this pool: its own images are as random as the known ones.
        variance_GU = (
            found.known * (1 / len(scores_K) + 1 / (share_GU * len(scores_N)).clamp(min=_FEW))
            + found.labeled * (1 / len(scores_L) + 1 / ((1 - share_GU) * len(scores_N)).clamp(min=_FEW))
            + found.floor
            + (0 if representative else _OTHER_TOOLS**2)
        )
        log_GU = log_GU - 0.5 * (auroc_GU.logit() - found.value).square() / variance_GU - 0.5 * variance_GU.log()
    weight_GU = (log_GU - log_GU.max()).exp()
    return Fit(_middle(auroc_GU, weight_GU), _middle(share_GU, weight_GU))


def _weigh(scores_N: Tensor, scores_L: Tensor) -> tuple[_Hypotheses, Tensor]:
    """The hypotheses, and the logarithm (G,) of each one's prior and likelihood."""
    num_labeled = len(scores_L)
    rank_J = _ranks(_UPPER, 2, num_labeled)  # from the highest
    level_J = rank_J / (num_labeled + 1)
    thresholds_J = scores_L.double().cpu().sort(descending=True).values[rank_J.long() - 1]
    above_J = _placements(-thresholds_J, -scores_N)
    hypotheses = _Hypotheses(level_J)
    expected_GJ, slope_GJ = hypotheses.above_GJ, hypotheses.slope_GJ
    pool_GJJ = _bridge(expected_GJ) / len(scores_N)
    labeled_GJJ = slope_GJ[:, :, None] * slope_GJ[:, None, :] * _bridge(level_J[None]) / num_labeled
    misfit_JJ = _MISFIT**2 * torch.eye(len(level_J), dtype=torch.float64)
    factor_GJJ = torch.linalg.cholesky(pool_GJJ + labeled_GJJ + misfit_JJ)
    white_GJ1 = torch.linalg.solve_triangular(factor_GJJ, (above_J - expected_GJ)[:, :, None], upper=False)
    log_det_G = factor_GJJ.diagonal(dim1=1, dim2=2).log().sum(1)
    return hypotheses, hypotheses.log_prior_G - 0.5 * white_GJ1.square().sum((1, 2)) - log_det_G


def _bridge(level_GJ: Tensor) -> Tensor:
    """Covariance (G, J, J) of the shares of one image above thresholds that images exceed with probability `level`."""
    return torch.minimum(level_GJ[:, :, None], level_GJ[:, None, :]) - level_GJ[:, :, None] * level_GJ[:, None, :]


def _middle(values: Tensor, weights: Tensor) -> Interval:
    """Median and the ends of the middle 95 % of weighted values."""
    ordered, order = values.flatten().sort()
    cumulative = weights.flatten()[order].cumsum(0)
    wanted = torch.tensor((0.5, 0.025, 0.975), dtype=torch.float64) * cumulative[-1]
    value, low, high = ordered[torch.searchsorted(cumulative, wanted).clamp(max=len(ordered) - 1)].tolist()
    return Interval(value, low, high)
