"""Residual features: traces of a camera pipeline or a generator in neighboring pixels; our addition to the paper.

Linear scores of these features bootstrap the detector (`models.bootstrap`), are added to its logit, and estimate the
synthetic share of the pool.

Shape suffixes: B images, N images of a pool, F features, H and W pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models import equalize

TRUNCATE = 2  # co-occurrences count residuals in -2..2
NUM_SPREAD = 75
NUM_FEATURES = NUM_SPREAD + equalize.NUM_RINGS + 9 + (2 * TRUNCATE + 1) ** 3
FAR = 5.0  # standard deviations, to which standardized features are clipped


def features(images_BCHW: Tensor) -> Tensor:
    """Features (B, NUM_FEATURES) of RGB images, levels 0..255, at native resolution; float32, no units.

    The first `NUM_SPREAD` features describe luma and two chroma differences: five residuals of each (first and second
    differences in both directions, and the diagonal difference), and five numbers for each residual (log mean
    magnitude, log standard deviation, share above three mean magnitudes, share below a quarter of one, log 95th
    percentile). The radial log power spectrum, color moments, and co-occurrences of quantized residuals (SPAM, Pevny et
    al. 2010) follow.
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
    """95th percentile, in quarter levels up to 64, by counting: sorting took longer than all the rest."""
    code = (magnitude_BCN * 4).clamp(max=255).long().flatten(0, 1)
    ones = torch.ones(1, 1, device=code.device).expand_as(code)
    below = torch.zeros(code.shape[0], 256, device=code.device).scatter_add_(1, code, ones).cumsum(1)
    return ((below < 0.95 * code.shape[1]).sum(1).view(magnitude_BCN.shape[:2]) + 0.5) / 4


def _spectrum(luma_BHW: Tensor) -> Tensor:
    height, width = luma_BHW.shape[1:]
    hann = torch.outer(*(torch.hann_window(side, False, device=luma_BHW.device) for side in (height, width)))
    centered = (luma_BHW - luma_BHW.mean((1, 2), keepdim=True)) * hann
    power = torch.fft.rfft2(centered).abs().square()
    level = (equalize.ring_means(power, width) + 1.0).log()
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
        counts.append(
            torch.zeros(code.shape[0], levels**3, device=code.device).scatter_add_(1, code, ones) / code.shape[1]
        )
    return (counts[0] + counts[1]).sqrt()


class Linear(NamedTuple):
    """A linear score of standardized features; higher means more synthetic."""

    mean_F: Tensor  # float64, like the other two
    std_F: Tensor
    weight_F: Tensor

    def __call__(self, features_NF: Tensor) -> Tensor:
        """Scores (N,), float32."""
        scores: Tensor = ((features_NF.double() - self.mean_F) / self.std_F).clamp(-FAR, FAR) @ self.weight_F
        return scores.float()


class ResidualScore(nn.Module):
    """Linear score of the residual features; higher means more synthetic.

    Its mean over the pool is 0 and its standard deviation 1. Before it is fitted, all scores are 0.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in Linear._fields:
            self.register_buffer(name, torch.full((NUM_FEATURES,), float(name == "std_F"), dtype=torch.float64))
        self.register_buffer("moments", torch.tensor([0.0, 1.0]))

    @property
    def _linear(self) -> Linear:
        return Linear(*(self.get_buffer(name) for name in Linear._fields))

    def fit(self, linear: Linear, features_NF: Tensor) -> None:
        """Use a linear score, standardized by the features of the pool or of a sample of it."""
        for name, value in linear._asdict().items():
            self.get_buffer(name).copy_(value)
        scores_N = linear(features_NF)
        self.get_buffer("moments").copy_(torch.stack((scores_N.mean(), scores_N.std().clamp(min=1e-6))))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Scores (B,) of uint8 images."""
        mean, std = self.get_buffer("moments")
        scores: Tensor = (self._linear(features(images_BCHW)) - mean) / std
        return scores
