"""Residual statistics: what a camera pipeline and a generator leave in neighboring pixels.

A network that has seen nothing yet has a random sign as a detector (it may rank real images as the synthetic ones),
and the queue it fills would lock onto that sign. Linear scores on these statistics have not: labeled real images on one
side, the pool on the other, they find the direction in which part of the pool differs. They start the detector
(`bootstrap`); an extension of ours, not part of the paper.

Shape suffixes: B images, N images of a pool, F features, K classes, H and W pixels.
"""

import torch
from torch import Tensor

TRUNCATE = 2  # co-occurrences count residuals in -2..2
NUM_RINGS = 12  # of the radial power spectrum
ROUNDS = 4
SHARE_SYNTHETIC = 0.10  # of each pseudo-class, taken as synthetic by the next round
SHARE_REAL = 0.30  # and as real; strict quantiles, widening them lost purity


def statistics(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, 75) residual statistics and (B, F) further ones of uint8 RGB images, at native resolution.

    The 75: of luma and two chroma differences, five residuals (first and second differences in both directions, and
    the diagonal one), five numbers each (log mean magnitude, log standard deviation, share beyond three mean
    magnitudes, share under a quarter of one, log 95th percentile). The further: radial log power spectrum, color
    moments, and co-occurrences of quantized residuals (SPAM, Pevny et al. 2010). float32, no units.
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
    spread = torch.cat([_spread(residual.flatten(2)) for residual in residuals], dim=1)
    further = torch.cat((_spectrum(luma), _color(images_BCHW), _cooccurrence(luma)), dim=1)
    return spread, further


def _spread(residual_BCN: Tensor) -> Tensor:
    magnitude = residual_BCN.abs()
    mean = magnitude.mean(2, keepdim=True)
    rank = int(0.95 * (magnitude.shape[2] - 1)) + 1
    return torch.cat(
        (
            (mean + 0.1).log().squeeze(2),
            (residual_BCN.std(2) + 0.1).log(),
            (magnitude > 3 * mean).float().mean(2),
            (magnitude < mean / 4).float().mean(2),
            (magnitude.kthvalue(rank, dim=2).values + 0.1).log(),
        ),
        dim=1,
    )


def _spectrum(luma_BHW: Tensor) -> Tensor:
    height, width = luma_BHW.shape[1:]
    hann = torch.outer(torch.hann_window(height, False), torch.hann_window(width, False)).to(luma_BHW.device)
    centered = (luma_BHW - luma_BHW.mean((1, 2), keepdim=True)) * hann
    power = torch.fft.rfft2(centered).abs().square()
    fy = torch.fft.fftfreq(height, device=luma_BHW.device)[:, None]
    fx = torch.fft.rfftfreq(width, device=luma_BHW.device)[None, :]
    ring = ((fy.square() + fx.square()).sqrt() / 0.7072 * NUM_RINGS).long().clamp_(max=NUM_RINGS - 1).flatten()
    sums = torch.zeros(len(power), NUM_RINGS, device=luma_BHW.device).index_add_(1, ring, power.flatten(1))
    counts = torch.bincount(ring, minlength=NUM_RINGS).clamp_(min=1)
    level = (sums / counts + 1.0).log()
    return level - level.mean(1, keepdim=True)


def _color(images_BCHW: Tensor) -> Tensor:
    pixels = images_BCHW.float().flatten(2) / 255
    mean = pixels.mean(2, keepdim=True)
    std = pixels.std(2, keepdim=True) + 1e-3
    skew = ((pixels - mean) / std).pow(3).mean(2)
    return torch.cat((mean.squeeze(2), std.squeeze(2), skew), dim=1)


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


def bootstrap(
    spread_NF: Tensor,
    further_NF: Tensor,
    spread_labeled: Tensor,
    further_labeled: Tensor,
    pseudo_labels_N: Tensor,
    num_classes: int,
    rng: torch.Generator,
) -> Tensor:
    """Score a pool without one synthetic label: (N,) float32, higher is more synthetic, of no fixed scale.

    First labeled real images against the pool (positive-unlabeled) on the 75 residual statistics with a strong
    penalty; then `ROUNDS` rounds of self-training on all statistics: of each pseudo-class the most synthetic tenth
    against the most real three tenths and the labeled ones. Both halves of the pool are scored by models that were
    fitted to the other half, so that no image vouches for itself.
    """
    half_N = torch.rand(len(spread_NF), generator=rng, device=rng.device).to(spread_NF.device) < 0.5
    scores_N = _cross_fit(spread_NF, half_N, torch.zeros_like(half_N), ~torch.zeros_like(half_N), spread_labeled, 30.0)
    every_NF = torch.cat((spread_NF, further_NF), dim=1)
    every_labeled = torch.cat((spread_labeled, further_labeled), dim=1)
    for _ in range(ROUNDS):
        real_N, synthetic_N = extremes(scores_N, pseudo_labels_N, num_classes)
        scores_N = _cross_fit(every_NF, half_N, real_N, synthetic_N, every_labeled, 3.0)
    return scores_N


def extremes(scores_N: Tensor, pseudo_labels_N: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Masks (N,) of the most real and the most synthetic of each pseudo-class, by strict quantiles of the score."""
    real_N = torch.zeros_like(scores_N, dtype=torch.bool)
    synthetic_N = torch.zeros_like(real_N)
    for k in range(num_classes):
        members = (pseudo_labels_N == k).nonzero().squeeze(1)
        order = members[scores_N[members].argsort()]
        real_N[order[: round(SHARE_REAL * len(order))]] = True
        synthetic_N[order[len(order) - round(SHARE_SYNTHETIC * len(order)) :]] = True
    return real_N, synthetic_N


def _cross_fit(
    features_NF: Tensor, half_N: Tensor, real_N: Tensor, synthetic_N: Tensor, labeled: Tensor, penalty: float
) -> Tensor:
    scores_N = torch.empty(len(features_NF), device=features_NF.device)
    for fitted in (half_N, ~half_N):
        real = torch.cat((features_NF[fitted & real_N], labeled))
        scores_N[~fitted] = _ridge(real, features_NF[fitted & synthetic_N], features_NF[~fitted], penalty)
    return scores_N


def _ridge(real: Tensor, synthetic: Tensor, target: Tensor, penalty: float) -> Tensor:
    """Ridge regression on -1 (real) and +1 (synthetic), both sides weighing the same; returns scores of `target`.

    `penalty` is the ridge as a share (per cent) of the standardized features' variance.
    """
    both = torch.cat((real, synthetic)).double()
    weight = torch.cat((torch.full((len(real),), 0.5 / len(real)), torch.full((len(synthetic),), 0.5 / len(synthetic))))
    weight = weight.double().to(both.device)[:, None]
    mean = (weight * both).sum(0)
    std = (weight * (both - mean).square()).sum(0).sqrt() + 1e-6
    design = ((both - mean) / std).clamp(-5, 5)
    sign = torch.cat((-torch.ones(len(real)), torch.ones(len(synthetic)))).double().to(both.device)
    gram = design.T @ (weight * design) + penalty / 100 * torch.eye(design.shape[1], device=both.device).double()
    solution = torch.linalg.solve(gram, design.T @ (weight.squeeze(1) * sign))
    scores: Tensor = ((target.double() - mean) / std).clamp(-5, 5) @ solution
    return scores.float()
