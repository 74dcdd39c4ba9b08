"""What the panel's witnesses see, against references written by hand, and means over unequal numbers of tiles."""

import pytest
import timm
import torch
from torch import Tensor

from models import residual, witnesses
from models.frozen import Frozen

NAME, SIZE = "timm:tf_efficientnet_lite0", 64


def tiles(count: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    torch.manual_seed(0)
    return Frozen(NAME, timm.create_model("tf_efficientnet_lite0").state_dict(), SIZE)


def residual_at(x: Tensor, y: int, z: int) -> Tensor:
    """What a 3x3 mean leaves (C,) at an inner pixel."""
    return x[:, y, z] - x[:, y - 1 : y + 2, z - 1 : z + 2].mean((1, 2))


def test_residual_images_are_what_their_names_say() -> None:
    x = 100 + 20 * torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(1))
    batch = x[None]
    amplified, second, chroma = (
        each(batch)[0] for each in (witnesses.amplified_residual, witnesses.directions, witnesses.chroma_residual)
    )
    luma = x.mean(0)
    for y, z in ((1, 1), (4, 6), (7, 2)):
        left = residual_at(x, y, z)
        torch.testing.assert_close(amplified[:, y, z], (128 + 6 * left).clamp(0, 255))
        torch.testing.assert_close(chroma[:, y, z], (128 + 12 * (left - left.mean())).clamp(0, 255))
        horizontal = luma[y, z + 1] - 2 * luma[y, z] + luma[y, z - 1]
        vertical = luma[y + 1, z] - 2 * luma[y, z] + luma[y - 1, z]
        diagonal = luma[y + 1, z + 1] + luma[y - 1, z - 1] - luma[y + 1, z - 1] - luma[y - 1, z + 1]
        expected = 128 + 4 * torch.stack((horizontal, vertical, diagonal))
        torch.testing.assert_close(second[:, y, z], expected.clamp(0, 255))


def test_a_flat_image_and_a_gray_one_leave_the_middle_level() -> None:
    flat = torch.full((1, 3, 8, 8), 77.0)
    for each in (witnesses.amplified_residual, witnesses.directions, witnesses.chroma_residual):
        torch.testing.assert_close(each(flat), torch.full((1, 3, 8, 8), 128.0))
    gray = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(2)).expand(1, 3, 8, 8) * 255
    torch.testing.assert_close(witnesses.chroma_residual(gray), torch.full((1, 3, 8, 8), 128.0), atol=1e-3, rtol=0)
    assert (witnesses.amplified_residual(gray) - 128).abs().max() > 20


@pytest.mark.slow
def test_features_are_means_over_the_tiles_of_each_image_and_have_the_announced_widths(frozen: Frozen) -> None:
    native, common, thumbnails = tiles(4), tiles(3, seed=1), tiles(2, seed=2)
    owners = {"native": torch.tensor([0, 0, 0, 1]), "common": torch.tensor([0, 1, 1])}
    found = witnesses.read(frozen, {"native": native, "common": common}, owners, frozen(thumbnails))
    assert {name: values.shape[1] for name, values in found.items()} == witnesses.widths(frozen)
    assert list(found) == list(witnesses.widths(frozen))
    statistics = residual.features(native.float())
    torch.testing.assert_close(found["native_statistics"], torch.stack((statistics[:3].mean(0), statistics[3])))
    low = torch.stack([frozen(witnesses.amplified_residual(tile[None].float())).low[0] for tile in native])
    expected = torch.stack((low[:3].mean(0), low[3]))
    torch.testing.assert_close(found["native_residual"], expected, rtol=1e-3, atol=1e-3)
    everything = frozen(common).everything
    expected = torch.stack((everything[0], everything[1:].mean(0)))
    torch.testing.assert_close(found["common_content"], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found["thumbnail_content"], frozen(thumbnails).everything, rtol=1e-3, atol=1e-3)
