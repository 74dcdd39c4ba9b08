import numpy as np
import pytest
import torch
from PIL import Image

from models import equalize


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """(6, 3, 48, 64) levels with the spectrum of photographs, about, and edges."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(48)[:, None], np.fft.rfftfreq(64)[None, :])
    frequency[0, 0] = 1
    waves = np.fft.rfft2(rng.normal(size=(6, 3, 48, 64))) / frequency
    texture = np.fft.irfft2(waves, s=(48, 64))
    levels = 120 + 25 * texture / texture.std()
    levels[:, :, 10:30, 15:40] += 40
    return torch.from_numpy(levels.clip(0, 255)).float()


def sharpness(levels: torch.Tensor) -> torch.Tensor:
    """Log of neighboring pixels' differences, against the contrast (B,)."""
    return (levels.float().diff(dim=3).flatten(1).std(1) / levels.float().flatten(1).std(1)).log()


@pytest.mark.parametrize("strength", [-1.5, 1.5])
def test_what_an_isotropic_kernel_did_is_undone(photographs: torch.Tensor, strength: float) -> None:
    waves = torch.fft.rfft2(photographs)
    radius = equalize.radii(48, 64, waves.device) / equalize.NUM_RINGS
    changed = torch.fft.irfft2(waves * (strength * radius**2).exp(), s=(48, 64))
    assert (sharpness(changed) - sharpness(photographs)).abs().min() > 0.1
    after = sharpness(equalize.equalize_spectrum(changed)) - sharpness(equalize.equalize_spectrum(photographs))
    assert after.abs().max() < 0.02


def test_kernels_that_scale_leave_less_of_themselves(photographs: torch.Tensor) -> None:
    def scaled(kernel: Image.Resampling) -> torch.Tensor:
        large = [Image.fromarray(image.permute(1, 2, 0).byte().numpy()).resize((256, 192)) for image in photographs]
        small = [np.asarray(image.resize((32, 24), kernel)) for image in large]
        return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)

    sharp, soft = scaled(Image.Resampling.LANCZOS), scaled(Image.Resampling.BILINEAR)
    before = sharpness(sharp) - sharpness(soft)
    after = sharpness(equalize.equalize_spectrum(sharp)) - sharpness(equalize.equalize_spectrum(soft))
    assert after.abs().max() < 0.3 * before.abs().min()


def test_means_and_phases_stay(photographs: torch.Tensor) -> None:
    equalized = equalize.equalize_spectrum(photographs)
    torch.testing.assert_close(equalized.mean((2, 3)), photographs.mean((2, 3)))
    turned = torch.fft.rfft2(equalized) * torch.fft.rfft2(photographs).conj()
    assert turned.real.min() > -1e-3 * turned.abs().max()
    assert turned.imag.abs().max() < 1e-3 * turned.abs().max()


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (96, 33)])
def test_any_size_and_a_flat_image(size: tuple[int, int]) -> None:
    flat = torch.full((2, 3, *size), 77, dtype=torch.uint8)
    torch.testing.assert_close(equalize.equalize_spectrum(flat), flat.float())
    noise = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert equalize.equalize_spectrum(noise).isfinite().all()


def test_each_image_by_itself(photographs: torch.Tensor) -> None:
    torch.testing.assert_close(
        equalize.equalize_spectrum(photographs)[2:3], equalize.equalize_spectrum(photographs[2:3])
    )


def test_ring_means_are_means_over_rings() -> None:
    power = torch.rand(2, 20, 11, generator=torch.Generator().manual_seed(0))
    ring = equalize.radii(20, 20, power.device).long().clamp(max=equalize.NUM_RINGS - 1)
    means = equalize.ring_means(power, 20)
    for r in range(equalize.NUM_RINGS):
        assert means[1, r] == pytest.approx(power[1][ring == r].mean().item(), rel=1e-5)
