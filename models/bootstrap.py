"""Bootstrap of the detector: scores of a pool without one synthetic label; our addition to the paper.

An untrained detector has a random sign: it may rank real images as the synthetic ones, and a queue that it fills locks
onto that sign. Linear scores of residual features have no such problem: with labeled real images on one side and the
pool on the other, they find the direction in which part of the pool differs.

Shape suffixes: N images of a pool, L labeled ones, F features, V views of these, K folds, R resamples, Q thresholds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models import equalize
from models.residual import FAR, NUM_FEATURES, NUM_SPREAD, Linear
from models.thresholds import SYNTHETIC_BOUNDS, confident_share

CO_ROUNDS = 1  # of co-training, after the first fit
SELF_ROUNDS = 3  # of self-training on all features, after these
FIRST_PENALTY, PENALTY = 30.0, 3.0  # see `_ridge`; the first fit has few labeled images against the whole pool
RESAMPLES = 1000
FOLDS = 5  # of the labeled set
REAL_BOUNDS = (0.10, 0.30)  # as `thresholds.SYNTHETIC_BOUNDS`, for real examples

_Sides = tuple[Tensor, Tensor]  # masks (N,) of the images that count as real and as synthetic
_Scores = tuple[Tensor, Tensor]  # (K, N) of the pool by each fold's models, and (L,) of the labeled images


class Bootstrap(NamedTuple):
    """What is known of a pool before a detector has been trained."""

    scores: Tensor  # (N,) float32, higher is more synthetic, mean 0, no fixed scale
    estimated_share: float  # of the pool that is synthetic, 0..1
    interval: tuple[float, float]  # 95 % confidence
    real: Tensor  # (N,) bool, the most real images of each pseudo-class
    synthetic: Tensor  # (N,) bool, the most synthetic images of each pseudo-class
    linear: Linear  # fitted to these two; `scores` are by models that had not seen the image


def bootstrap(
    features_NF: Tensor,
    features_LF: Tensor,
    pseudo_labels_N: Tensor,
    num_classes: int,
    rng: torch.Generator,
) -> Bootstrap:
    """Score a pool by its residual features and those of L labeled real images.

    Co-training first: four models, each of which sees one group of the features, are fitted to the labeled images
    against the pool (positive-unlabeled learning, with a strong penalty), then to the extremes of each pseudo-class
    that the other three find (Blum and Mitchell 1998). A model that chooses its own examples confirms its own mistakes,
    above all with few labeled images. Self-training follows: one model that sees all features.

    Scores are cross-fitted: each half of the pool is scored by models trained on the other half, each labeled image by
    models trained without its fold. The labeled scores are thus those of unseen real images, and comparing both gives
    the synthetic share.
    """
    device = features_NF.device
    half_N = torch.rand(len(features_NF), generator=rng, device=rng.device).to(device) < 0.5
    folds = min(FOLDS, len(features_LF))
    fold_L = torch.randperm(len(features_LF), generator=rng, device=rng.device).to(device) % folds

    def fit(columns: Tensor, sides: Sequence[_Sides], penalty: float) -> _Scores:
        return _cross_fit(features_NF[:, columns], half_N, sides, features_LF[:, columns], fold_L, penalty)

    def choose(scores_KN: Tensor, scores_L: Tensor) -> list[_Sides]:
        share = estimate_share(scores_KN, scores_L)
        return [extremes(scores_N, pseudo_labels_N, num_classes, share) for scores_N in scores_KN]

    def co_train() -> _Scores:
        nothing_N = torch.zeros_like(half_N)
        views = [columns.to(device) for columns in _views()]
        sides_V = [[(nothing_N, ~nothing_N)] * folds] * len(views)
        for penalty in (FIRST_PENALTY, *[PENALTY] * CO_ROUNDS):
            fitted_V = [fit(columns, sides, penalty) for columns, sides in zip(views, sides_V, strict=True)]
            scores_KN, scores_L = (torch.stack(scores).sum(0) for scores in zip(*fitted_V, strict=True))
            sides_V = [choose(scores_KN - own_KN, scores_L - own_L) for own_KN, own_L in fitted_V]
        return scores_KN, scores_L

    def self_train(scores_KN: Tensor, scores_L: Tensor) -> _Scores:
        all_columns = torch.arange(NUM_FEATURES, device=device)
        for _ in range(SELF_ROUNDS):
            scores_KN, scores_L = fit(all_columns, choose(scores_KN, scores_L), PENALTY)
        return scores_KN, scores_L

    scores_KN, scores_L = self_train(*co_train())
    scores_N = scores_KN.mean(0)
    share, interval = estimate_share(scores_KN, scores_L), share_interval(scores_KN, scores_L, rng)
    real_N, synthetic_N = extremes(scores_N, pseudo_labels_N, num_classes, share)
    synthetic_NF = features_NF[synthetic_N] if synthetic_N.any() else features_NF
    linear = _ridge(torch.cat((features_NF[real_N], features_LF)), synthetic_NF, PENALTY)
    return Bootstrap(scores_N, share, interval, real_N, synthetic_N, linear)


def _views() -> tuple[Tensor, ...]:
    """Columns of the features by what they describe: luma's spread, chroma's spread, the spectrum, everything else."""
    spread, ring, rest = torch.arange(NUM_FEATURES).tensor_split((NUM_SPREAD, NUM_SPREAD + equalize.NUM_RINGS))
    luma, *chroma = spread.view(-1, 3).unbind(1)  # the three planes alternate
    return luma, torch.cat(chroma), ring, rest


def estimate_share(scores_N: Tensor, scores_L: Tensor) -> float:
    """Estimate the synthetic share pi of a pool from its scores and those of unseen real images.

    A threshold that leaves a share q of the real images below it leaves (1 - pi) q of the pool below it, and few
    synthetic images. So pi is 1 minus the quotient, here the median over thresholds (compare Blanchard et al. 2010 on
    the proportion of novelties, who take the lowest quotient). `scores_N` may have any shape.
    """
    return float(_shares(scores_N, scores_L[None]))


def share_interval(scores_N: Tensor, scores_L: Tensor, rng: torch.Generator) -> tuple[float, float]:
    """95 % confidence interval of `estimate_share` by resampling the real images (percentile bootstrap).

    The pool is far larger and is not resampled. The interval does not cover the bias of synthetic images that lie below
    the thresholds.
    """
    drawn = torch.randint(len(scores_L), (RESAMPLES, len(scores_L)), generator=rng, device=rng.device)
    shares = _shares(scores_N, scores_L[drawn.to(scores_L.device)])
    low, high = torch.quantile(shares, torch.tensor([0.025, 0.975], dtype=shares.dtype, device=shares.device)).tolist()
    return low, high


def _shares(scores_N: Tensor, scores_RL: Tensor) -> Tensor:
    """Estimates (R,) of the synthetic share from R sets of scores of real images."""
    level_Q = torch.arange(0.4, 0.81, 0.05, dtype=torch.float64, device=scores_RL.device)
    real_RL = scores_RL.double().sort(1).values
    threshold_RQ = torch.quantile(real_RL, level_Q, dim=1).T.contiguous()
    pool = scores_N.double().flatten().sort().values
    below_RQ = torch.searchsorted(pool, threshold_RQ, right=True) / len(pool)
    below_real_RQ = torch.searchsorted(real_RL, threshold_RQ, right=True) / real_RL.shape[1]
    return (1 - below_RQ / below_real_RQ).median(1).values.clamp(0, 1)


def extremes(scores_N: Tensor, pseudo_labels_N: Tensor, num_classes: int, share: float) -> tuple[Tensor, Tensor]:
    """Masks (N,) of the most real and the most synthetic images of each pseudo-class, for an estimated share.

    A class gives in proportion to how many of its images lie below and above the score that splits the pool by the
    estimate. Equal numbers of each class would call real images synthetic where the synthetic ones are of few classes;
    the extremes of the pool as a whole would leave out classes whose scores are lower.
    """
    fewest = 2 * SYNTHETIC_BOUNDS[0]
    share = min(max(share, fewest), 1 - fewest)
    share_real = min(max((1 - share) / 2, REAL_BOUNDS[0]), REAL_BOUNDS[1], 1 - share)
    share_synthetic = confident_share(share)
    above_N = scores_N > torch.quantile(scores_N, 1 - share)
    real_N = torch.zeros_like(scores_N, dtype=torch.bool)
    synthetic_N = torch.zeros_like(real_N)
    for k in range(num_classes):
        members = (pseudo_labels_N == k).nonzero().squeeze(1)
        order = members[scores_N[members].argsort()]
        above = int(above_N[members].sum())
        real_N[order[: round(share_real / (1 - share) * (len(order) - above))]] = True
        synthetic_N[order[len(order) - round(share_synthetic / share * above) :]] = True
    return real_N, synthetic_N


def _cross_fit(
    features_NF: Tensor,
    half_N: Tensor,
    sides: Sequence[_Sides],
    features_LF: Tensor,
    fold_L: Tensor,
    penalty: float,
) -> _Scores:
    """Scores (K, N) of the pool by the models of each fold, and (L,) of each labeled image by those without its fold.

    `sides` has one entry per fold. Each fold's scores are standardized over the pool, so that the folds compare.
    """
    scores_KN = torch.empty(len(sides), len(features_NF), device=features_NF.device)
    scores_L = torch.zeros(len(features_LF), device=features_NF.device)
    for k, (real_N, synthetic_N) in enumerate(sides):
        left_out = fold_L == k
        for fitted in (half_N, ~half_N):
            real = torch.cat((features_NF[fitted & real_N], features_LF[~left_out]))
            target = torch.cat((features_NF[~fitted], features_LF[left_out]))
            synthetic = fitted & synthetic_N
            if not synthetic.any():  # in a pool of few images all extremes, or all images, may be in one half
                synthetic = fitted if fitted.any() else ~fitted
            scores = _ridge(real, features_NF[synthetic], penalty)(target)
            scores_KN[k, ~fitted] = scores[: int((~fitted).sum())]
            scores_L[left_out] += scores[int((~fitted).sum()) :] / 2
        mean, std = scores_KN[k].mean(), scores_KN[k].std()
        scores_KN[k] = (scores_KN[k] - mean) / std
        scores_L[left_out] = (scores_L[left_out] - mean) / std
    return scores_KN, scores_L


def _ridge(real: Tensor, synthetic: Tensor, penalty: float) -> Linear:
    """Ridge regression on -1 (real) and +1 (synthetic), with equal weight on both sides.

    `penalty` is the ridge in percent of the standardized features' variance.
    """
    both = torch.cat((real, synthetic)).double()
    weight = torch.cat((torch.full((len(real),), 0.5 / len(real)), torch.full((len(synthetic),), 0.5 / len(synthetic))))
    weight = weight.double().to(both.device)[:, None]
    mean = (weight * both).sum(0)
    std = (weight * (both - mean).square()).sum(0).sqrt() + 1e-6
    design = ((both - mean) / std).clamp(-FAR, FAR)
    sign = torch.cat((-torch.ones(len(real)), torch.ones(len(synthetic)))).double().to(both.device)
    gram = design.T @ (weight * design) + penalty / 100 * torch.eye(design.shape[1], device=both.device).double()
    return Linear(mean, std, torch.linalg.solve(gram, design.T @ (weight.squeeze(1) * sign)))
