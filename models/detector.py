"""The detector: a lightweight network that tells real from synthetic images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import residual
from models.backbones import SLOPE, Standardize, initialize
from models.equalize import equalize_spectrum


class Detector(nn.Module):
    """Lightweight network (98 k parameters) from uint8 (B, 3, H, W) to a logit (B,), positive for synthetic.

    By default it sees images with an equalized spectrum, so that it cannot mistake the scaling of an image for a trace
    of a generator (`models.equalize`). Beside the colors it sees residual planes, what a 3x3 mean leaves of each color,
    in which the content does not hide the traces. Its logit is the sum of the convolutions' logit and of a linear score
    of the residual features, which convolutions of this size do not learn by themselves. From the same bootstrap each
    of these raised the AUROC, and sooner (docs/log.md). Global pooling lets it take crops of any size.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (16, 32, 64, 128),
        *,
        equalize: bool = True,
        residual_planes: bool = True,
        residual_features: bool = True,
    ) -> None:
        super().__init__()
        self.equalizes, self._has_planes, self._has_features = equalize, residual_planes, residual_features
        self.standardize = Standardize()
        layers: list[nn.Module] = []
        width_in = 6 if residual_planes else 3
        for i, width in enumerate(widths):
            layers += [
                nn.Conv2d(width_in, width, 3, 1 if i == 0 else 2, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(SLOPE),
            ]
            width_in = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width_in, 1)
        self.norm = nn.BatchNorm2d(residual.NUM_FEATURES, affine=False)
        self.linear = nn.Linear(residual.NUM_FEATURES, 1, bias=False)
        initialize(self.features)
        nn.init.zeros_(self.linear.weight)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        levels_BCHW = equalize_spectrum(images_BCHW) if self.equalizes else images_BCHW.float()
        planes = self.standardize(levels_BCHW)
        if self._has_planes:
            planes = torch.cat((planes, _residual_planes(levels_BCHW)), dim=1)
        logit: Tensor = self.head(self.features(planes.contiguous(memory_format=torch.channels_last)).float())
        if self._has_features:
            with torch.no_grad():
                features = residual.features(levels_BCHW)
            # Clipped, because one extreme feature of one image would outvote all others.
            standardized = self.norm(features[..., None, None]).flatten(1).clamp(-residual.FAR, residual.FAR)
            logit = logit + self.linear(standardized)
        return logit.squeeze(1)


def _residual_planes(levels_BCHW: Tensor) -> Tensor:
    """What a 3x3 mean leaves of each color, in units of 8 levels, clipped to 4 units."""
    padded = F.pad(levels_BCHW, (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]  # sums take a fifth of avg_pool2d's time
    mean = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
    return ((levels_BCHW - mean) / 8).clamp(-4, 4)
