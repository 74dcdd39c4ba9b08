"""Pictures that differ in what residual features describe."""

import torch


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
