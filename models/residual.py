"""Residual statistics: what a camera pipeline and a generator leave in neighboring pixels.

A network that has seen nothing yet has a random sign as a detector (it may rank real images as the synthetic ones),
and the queue it fills would lock onto that sign. Linear scores on these statistics have not: labeled real images on one
side, the pool on the other, they find the direction in which part of the pool differs. They start the detector
(`bootstrap`) and tell how much of the pool is synthetic; an extension of ours, not part of the paper.

Shape suffixes: B images, N images of a pool, L labeled ones, F features, V views of these, K folds, H and W pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models import spectrum

TRUNCATE = 2  # co-occurrences count residuals in -2..2
NUM_SPREAD = 75
NUM_STATISTICS = NUM_SPREAD + spectrum.NUM_RINGS + 9 + (2 * TRUNCATE + 1) ** 3
FAR = 5.0  # standard deviations, to which standardized statistics are clipped
CO_ROUNDS = 1  # of co-training, after the first fit
ROUNDS = 3  # of self-training on all statistics, after these
FIRST_PENALTY, PENALTY = 30.0, 3.0  # see `_ridge`; the first fit has few labeled images against the whole pool
RESAMPLES = 1000
FOLDS = 5  # parts of the labeled set, each scored by models that have not seen it
# What a round takes of the pool as synthetic and as real: half of what is estimated to be there, and never more than
# these strict quantiles (widening them lost purity), but enough to learn from.
SYNTHETIC_BOUNDS = (0.03, 0.10)
REAL_BOUNDS = (0.10, 0.30)


def statistics(images_BCHW: Tensor) -> Tensor:
    """Return statistics (B, NUM_STATISTICS) of RGB images, levels 0..255, at native resolution; float32, no units.

    First `NUM_SPREAD`: of luma and two chroma differences, five residuals (first and second differences in both
    directions, and the diagonal one), five numbers each (log mean magnitude, log standard deviation, share beyond three
    mean magnitudes, share under a quarter of one, log 95th percentile). Then the radial log power spectrum, color
    moments, and co-occurrences of quantized residuals (SPAM, Pevny et al. 2010).
    """
    red, green, blue = images_BCHW.float().unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes_BCHW = torch.stack((luma, blue - luma, red - luma), dim=1)
    residuals = (
        planes_BCHW[..., :, 1:] - planes_BCHW[..., :, :-1],
        planes_BCHW[..., 1:, :] - planes_BCHW[..., :-1, :],
        planes_BCHW[..., :, 2:] - 2 * planes_BCHW[..., :, 1:-1] + planes_BCHW[..., :, :-2],
        planes_BCHW[..., 2:, :] - 2 * planes_BCHW[..., 1:-1, :] + planes_BCHW[..., :-2, :],
        planes_BCHW[..., 1:, 1:] - planes_BCHW[..., 1:, :-1] - planes_BCHW[..., :-1, 1:] + planes_BCHW[..., :-1, :-1],
    )
    spread = [_spread(residual.flatten(2)) for residual in residuals]
    return torch.cat((*spread, _spectrum(luma), _color(images_BCHW), _cooccurrence(luma)), dim=1)


def _views() -> tuple[Tensor, ...]:
    """Columns of the statistics by what they look at: luma's spread, chroma's spread, the spectrum, all else."""
    spread, ring, rest = torch.arange(NUM_STATISTICS).tensor_split((NUM_SPREAD, NUM_SPREAD + spectrum.NUM_RINGS))
    luma, *chroma = spread.view(-1, 3).unbind(1)  # the three planes alternate
    return luma, torch.cat(chroma), ring, rest


def _spread(residual_BCN: Tensor) -> Tensor:
    magnitude = residual_BCN.abs()
    mean = magnitude.mean(2, keepdim=True)
    deviation = (residual_BCN.square().mean(2) - residual_BCN.mean(2).square()).clamp(min=0).sqrt()
    return torch.cat(
        (
            (mean + 0.1).log().squeeze(2),
            (deviation + 0.1).log(),
            (magnitude > 3 * mean).sum(2) / magnitude.shape[2],
            (magnitude < mean / 4).sum(2) / magnitude.shape[2],
            (_percentile95(magnitude) + 0.1).log(),
        ),
        dim=1,
    )


def _percentile95(magnitude_BCN: Tensor) -> Tensor:
    """To a quarter level and at most 64 levels, by counting: an order statistic took longer than all the rest."""
    code = (magnitude_BCN * 4).clamp(max=255).long().flatten(0, 1)
    ones = torch.ones(1, 1, device=code.device).expand_as(code)
    below = torch.zeros(len(code), 256, device=code.device).scatter_add_(1, code, ones).cumsum(1)
    return ((below < 0.95 * code.shape[1]).sum(1).view(magnitude_BCN.shape[:2]) + 0.5) / 4


def _spectrum(luma_BHW: Tensor) -> Tensor:
    height, width = luma_BHW.shape[1:]
    hann = torch.outer(*(torch.hann_window(side, False, device=luma_BHW.device) for side in (height, width)))
    centered = (luma_BHW - luma_BHW.mean((1, 2), keepdim=True)) * hann
    power = torch.fft.rfft2(centered).abs().square()
    level = (spectrum.ring_means(power, width) + 1.0).log()
    return level - level.mean(1, keepdim=True)


def _color(images_BCHW: Tensor) -> Tensor:
    pixels = images_BCHW.float().flatten(2) / 255
    mean = pixels.mean(2, keepdim=True)
    centered = pixels - mean
    square = centered * centered
    std = (square.sum(2, keepdim=True) / (pixels.shape[2] - 1)).sqrt() + 1e-3  # Tensor.std takes ten times as long
    skew = (square * centered).mean(2, keepdim=True) / std.pow(3)
    return torch.cat((mean, std, skew), dim=1).squeeze(2)


def _cooccurrence(luma_BHW: Tensor) -> Tensor:
    levels = 2 * TRUNCATE + 1
    counts = []
    for axis in (1, 2):
        step = luma_BHW.diff(dim=axis).div(2).round().clamp(-TRUNCATE, TRUNCATE).long() + TRUNCATE
        length = step.shape[axis]
        first, second, third = (step.narrow(axis, start, length - 2) for start in range(3))
        code = ((first * levels + second) * levels + third).flatten(1)
        ones = torch.ones(1, device=code.device).expand_as(code)
        counts.append(torch.zeros(len(code), levels**3, device=code.device).scatter_add_(1, code, ones) / code.shape[1])
    return (counts[0] + counts[1]).sqrt()


_Sides = tuple[Tensor, Tensor]  # masks (N,) of what counts as real and as synthetic


class Linear(NamedTuple):
    """A linear score of standardized statistics, higher is more synthetic."""

    mean_F: Tensor  # float64, as all of it
    std_F: Tensor
    weight_F: Tensor

    def __call__(self, statistics_NF: Tensor) -> Tensor:
        """Scores (N,), float32."""
        scores: Tensor = ((statistics_NF.double() - self.mean_F) / self.std_F).clamp(-FAR, FAR) @ self.weight_F
        return scores.float()


class Start(NamedTuple):
    """What is known of a pool before a detector has been trained."""

    scores: Tensor  # (N,) float32, higher is more synthetic, of mean 0 and no fixed scale
    share_synthetic: float  # estimate, 0..1
    share_interval: tuple[float, float]  # 95 %
    real: Tensor  # (N,) bool, the most real of each pseudo-class
    synthetic: Tensor  # (N,) bool, the most synthetic of each pseudo-class
    linear: Linear  # fitted to these two; `scores` are by models that had not seen the image


class Score(nn.Module):
    """What the statistics say of an image: a linear score of mean 0 and standard deviation 1 over the pool."""

    def __init__(self) -> None:
        super().__init__()
        for name in Linear._fields:  # of nothing yet: 0 for each image
            self.register_buffer(name, torch.full((NUM_STATISTICS,), float(name == "std_F"), dtype=torch.float64))
        self.register_buffer("moments", torch.tensor([0.0, 1.0]))

    @property
    def _linear(self) -> Linear:
        return Linear(*(self.get_buffer(name) for name in Linear._fields))

    def settle(self, linear: Linear, statistics_NF: Tensor) -> None:
        """Take a score and the statistics of the pool, or of a sample of it."""
        for name, value in linear._asdict().items():
            self.get_buffer(name).copy_(value)
        scores_N = linear(statistics_NF)
        self.get_buffer("moments").copy_(torch.stack((scores_N.mean(), scores_N.std().clamp(min=1e-6))))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Scores (B,) of uint8 images."""
        mean, std = self.get_buffer("moments")
        scores: Tensor = (self._linear(statistics(images_BCHW)) - mean) / std
        return scores


def bootstrap(
    features_NF: Tensor,
    features_LF: Tensor,
    pseudo_labels_N: Tensor,
    num_classes: int,
    rng: torch.Generator,
) -> Start:
    """Score a pool by its `statistics` and those of L labeled real images, without one synthetic label.

    First the labeled images against the pool (positive-unlabeled) with a strong penalty. Then self-training: of each
    pseudo-class the most synthetic against the most real and the labeled ones. A model that chooses its own examples
    confirms what it mistook, above all with few labeled images; so at first there are four models, each of which sees
    one group of the statistics and learns from what the other three choose (co-training, Blum and Mitchell 1998), and
    only then one that sees all statistics.

    No image vouches for itself: the halves of the pool are scored by models that were fitted to the other half, and
    labeled images by a chain of models that left their fold out, so that the labeled scores are those of real images
    never seen. By comparing both, each round estimates the share of synthetic images.
    """
    device = features_NF.device
    half_N = torch.rand(len(features_NF), generator=rng, device=rng.device).to(device) < 0.5
    folds = min(FOLDS, len(features_LF))
    fold_L = torch.randperm(len(features_LF), generator=rng, device=rng.device).to(device) % folds

    def fit(columns: Tensor, sides: Sequence[_Sides], penalty: float) -> tuple[Tensor, Tensor]:
        return _cross_fit(features_NF[:, columns], half_N, sides, features_LF[:, columns], fold_L, penalty)

    def choose(scores_KN: Tensor, scores_L: Tensor) -> list[_Sides]:
        share = share_synthetic(scores_KN, scores_L)
        return [extremes(scores_N, pseudo_labels_N, num_classes, share) for scores_N in scores_KN]

    nothing_N = torch.zeros_like(half_N)
    views = [columns.to(device) for columns in _views()]
    sides_V = [[(nothing_N, ~nothing_N)] * folds] * len(views)
    for penalty in (FIRST_PENALTY, *[PENALTY] * CO_ROUNDS):
        fitted_V = [fit(columns, sides, penalty) for columns, sides in zip(views, sides_V, strict=True)]
        scores_KN, scores_L = (torch.stack(scores).sum(0) for scores in zip(*fitted_V, strict=True))
        sides_V = [choose(scores_KN - own_KN, scores_L - own_L) for own_KN, own_L in fitted_V]
    everything_F = torch.arange(NUM_STATISTICS, device=device)
    for _ in range(ROUNDS):
        scores_KN, scores_L = fit(everything_F, choose(scores_KN, scores_L), PENALTY)
    scores_N = scores_KN.mean(0)
    share = share_synthetic(scores_KN, scores_L)
    interval = share_interval(scores_KN, scores_L, rng)
    real_N, synthetic_N = extremes(scores_N, pseudo_labels_N, num_classes, share)
    synthetic_NF = features_NF[synthetic_N] if synthetic_N.any() else features_NF
    linear = _ridge(torch.cat((features_NF[real_N], features_LF)), synthetic_NF, PENALTY)
    return Start(scores_N, share, interval, real_N, synthetic_N, linear)


def share_synthetic(scores_N: Tensor, scores_L: Tensor) -> float:
    """Estimate which share of a pool is synthetic, from its scores and those of unseen real images.

    Below a threshold that leaves a share q of the real images below it, lie (1 - pi) q of the pool and few synthetic
    images: pi is 1 minus the quotient, here the median over thresholds (compare Blanchard et al. 2010, on the
    proportion of novelties, who take the lowest quotient). `scores_N` may have any shape.
    """
    return float(_shares(scores_N, scores_L[None]))


def share_interval(scores_N: Tensor, scores_L: Tensor, rng: torch.Generator) -> tuple[float, float]:
    """95 % interval of `share_synthetic`, by drawing the real images anew (percentile bootstrap).

    The pool is far larger and taken for certain. What synthetic images lie below the thresholds is not in it.
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
    """Masks (N,) of the most real and the most synthetic of each pseudo-class, for an estimated synthetic share.

    A class gives as many as it seems to have: in proportion to how many of it lie below and above the score that parts
    the pool by the estimate. To ask each class for the same would take real images for synthetic wherever the synthetic
    ones are of a few classes; to ask the pool as a whole would leave classes unheard whose scores lie lower.
    """
    fewest = 2 * SYNTHETIC_BOUNDS[0]
    share = min(max(share, fewest), 1 - fewest)
    share_real = min(max((1 - share) / 2, REAL_BOUNDS[0]), REAL_BOUNDS[1], 1 - share)
    share_fake = share_taken(share)
    parted_N = scores_N > torch.quantile(scores_N, 1 - share)
    real_N = torch.zeros_like(scores_N, dtype=torch.bool)
    synthetic_N = torch.zeros_like(real_N)
    for k in range(num_classes):
        members = (pseudo_labels_N == k).nonzero().squeeze(1)
        order = members[scores_N[members].argsort()]
        above = int(parted_N[members].sum())
        real_N[order[: round(share_real / (1 - share) * (len(order) - above))]] = True
        synthetic_N[order[len(order) - round(share_fake / share * above) :]] = True
    return real_N, synthetic_N


def share_taken(share: float) -> float:
    """Which share of the pool counts as surely synthetic where this share of it is."""
    return min(max(share / 2, SYNTHETIC_BOUNDS[0]), SYNTHETIC_BOUNDS[1])


def _cross_fit(
    features_NF: Tensor,
    half_N: Tensor,
    sides: Sequence[_Sides],
    features_LF: Tensor,
    fold_L: Tensor,
    penalty: float,
) -> tuple[Tensor, Tensor]:
    """Scores (K, N) by the models of each fold and (L,) of each labeled image by those that have not seen it.

    `sides` holds those of each fold. Each fold's scores are standardized over the pool, so that all folds compare.
    """
    scores_KN = torch.empty(len(sides), len(features_NF), device=features_NF.device)
    scores_L = torch.zeros(len(features_LF), device=features_NF.device)
    for k, (real_N, synthetic_N) in enumerate(sides):
        left_out = fold_L == k
        for fitted in (half_N, ~half_N):
            real = torch.cat((features_NF[fitted & real_N], features_LF[~left_out]))
            target = torch.cat((features_NF[~fitted], features_LF[left_out]))
            synthetic = fitted & synthetic_N
            if not synthetic.any():  # a pool of a few images, all of whose extremes, or all of which, lie in one half
                synthetic = fitted if fitted.any() else ~fitted
            scores = _ridge(real, features_NF[synthetic], penalty)(target)
            scores_KN[k, ~fitted] = scores[: int((~fitted).sum())]
            scores_L[left_out] += scores[int((~fitted).sum()) :] / 2
        mean, std = scores_KN[k].mean(), scores_KN[k].std()
        scores_KN[k] = (scores_KN[k] - mean) / std
        scores_L[left_out] = (scores_L[left_out] - mean) / std
    return scores_KN, scores_L


def _ridge(real: Tensor, synthetic: Tensor, penalty: float) -> Linear:
    """Ridge regression on -1 (real) and +1 (synthetic), both sides weighing the same.

    `penalty` is the ridge as a share (per cent) of the standardized features' variance.
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
