"""Spectrum equalization: images whose radial power spectrum is that of the average photograph.

The sharpness of an image tells how it was scaled and sharpened, not whether a camera made it. A detector that can see
sharpness uses it all the same, and calls photographs synthetic that were scaled by another kernel. Kernels that scale
and sharpen are nearly isotropic and shift no phase: they leave a gain at each spatial frequency. Equalization undoes
every such gain, so that the detector sees only what no such kernel can change.

Shape suffixes: B images, C channels, H and W pixels, V = W // 2 + 1 frequencies of a row, R rings of equal width.
"""

import torch
from torch import Tensor

NUM_RINGS = 12
HIGHEST = 0.7072  # cycles a pixel, in the corner
QUIET = 0.05  # power of an 8-bit level's rounding, about: below it nothing is amplified
MAX_GAIN = 20.0  # of the amplitude, up or down


def radii(height: int, width: int, device: torch.device) -> Tensor:
    """Distance (H, V) of each frequency of `rfft2` from zero, in ring widths: 0..R."""
    fy = torch.fft.fftfreq(height, device=device)[:, None]
    fx = torch.fft.rfftfreq(width, device=device)[None, :]
    radius: Tensor = (fy.square() + fx.square()).sqrt()
    return radius / HIGHEST * NUM_RINGS


def ring_means(power_BHV: Tensor, width: int) -> Tensor:
    """Mean power (B, R) of each ring, of images that are `width` pixels wide."""
    ring = radii(power_BHV.shape[1], width, power_BHV.device).long().clamp_(max=NUM_RINGS - 1).flatten()
    sums = torch.zeros(power_BHV.shape[0], NUM_RINGS, device=power_BHV.device).index_add_(1, ring, power_BHV.flatten(1))
    counts = torch.zeros(NUM_RINGS, device=ring.device).index_add_(0, ring, torch.ones_like(ring, dtype=sums.dtype))
    return sums / counts.clamp_(min=1)


@torch.no_grad()
def equalize_spectrum(images_BCHW: Tensor) -> Tensor:
    """Give each image the average radial spectrum of photographs: power falls with the square of the frequency.

    (Field 1987.) Phases, colors, contrast at low frequencies and everything that is not radial stay. Takes levels
    0..255 (B, C, H, W), uint8 or float; returns float32 levels, which may leave that range.
    """
    values = images_BCHW.float()
    height, width = values.shape[2:]
    mean = values.mean((2, 3), keepdim=True)
    waves = torch.fft.rfft2(values - mean, norm="ortho")
    luma = torch.fft.rfft2((values - mean).mean(1), norm="ortho")
    level_BR = (ring_means(luma.abs().square(), width) + QUIET).log()
    center_R = torch.arange(NUM_RINGS, device=values.device) + 0.5
    missing_BR = -2 * center_R.log() - level_BR
    missing_BR = missing_BR - missing_BR[:, 1:4].mean(1, keepdim=True)  # contrast stays
    # Linear between the rings' centers: a step would ring in the picture.
    radius = (radii(height, width, values.device) - 0.5).clamp(0, NUM_RINGS - 1)
    below = radius.long().clamp(max=NUM_RINGS - 2)
    gain = missing_BR[:, below].lerp(missing_BR[:, below + 1], radius - below)
    waves = waves * (gain / 2).exp().clamp(1 / MAX_GAIN, MAX_GAIN)[:, None]
    equalized: Tensor = torch.fft.irfft2(waves, s=(height, width), norm="ortho")
    return equalized + mean
