"""Each operation against PIL on the same parameters, and the policy's distribution against its definition."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from models import augment
from models.augment import OPERATIONS, Draw
from models.ranks import Rng

LEVELS = (0.1, 0.3, 0.5, 0.9)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth, noisy, flat and narrow-range pictures, (8, 3, 32, 32)."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 3, 32, 32), generator=rng)
    ramp = (torch.arange(32)[None, :] * 4 + torch.arange(32)[:, None] * 2).expand(3, 3, 32, 32)
    flat = torch.full((1, 3, 32, 32), 77)
    narrow = torch.randint(90, 120, (1, 3, 32, 32), generator=rng)
    return torch.cat((noise, ramp, flat, narrow)).to(torch.uint8)


def pil(image: Image.Image, name: str, level: float, sign: float) -> Image.Image:
    amount = 0.05 + 0.9 * level
    signed = level * sign
    width, height = image.size
    affine = {
        "shear_x": (1, 0.3 * signed, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * signed, 1, 0),
        "translate_x": (1, 0, 0.3 * signed * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.3 * signed * height),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    return {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(amount),
        "color": lambda: ImageEnhance.Color(image).enhance(amount),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(amount),
        "equalize": lambda: ImageOps.equalize(image),
        "identity": lambda: image,
        "posterize": lambda: ImageOps.posterize(image, int(4 * level) + 4),
        "rotate": lambda: image.rotate(30 * signed),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(amount),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(256 * level)),
    }[name]()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_operation_is_pils(images: torch.Tensor, name: str, sign: float) -> None:
    for level in LEVELS:
        count = len(images)
        chosen = Draw(
            torch.full((count,), OPERATIONS.index(name)), torch.full((count,), level), torch.full((count,), sign)
        )
        ours = augment.apply(images, chosen).numpy().transpose(0, 2, 3, 1).astype(int)
        for picture, result in zip(images.numpy().transpose(0, 2, 3, 1), ours, strict=True):
            theirs = np.asarray(pil(Image.fromarray(picture), name, level, sign)).astype(int)
            if name in {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}:
                # Geometry is the same but where a source position falls on the edge of two pixels.
                assert np.mean(np.any(result != theirs, axis=-1)) < 0.02
            else:
                assert np.abs(result - theirs).max() <= 1


def test_selecting_rows_and_computing_all_agree(images: torch.Tensor) -> None:
    chosen = augment.draw(len(images), Rng(torch.Generator().manual_seed(3)))
    for names, function in augment._FUNCTIONS:
        mask = torch.isin(chosen.operation, torch.tensor([OPERATIONS.index(name) for name in names]))
        everything = torch.where(mask[:, None, None, None], function(images, chosen), images)
        assert torch.equal(augment._only(mask, function, images, chosen), everything)


def test_weak_view_is_a_flipped_reflected_shift() -> None:
    image = torch.arange(3 * 16 * 16).remainder(251).to(torch.uint8).view(1, 3, 16, 16)
    padded = torch.nn.functional.pad(image.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    windows = [padded[0, :, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    windows += [
        padded[0, :, y : y + 16, x : x + 16].flip(2) for y in range(5) for x in range(5)
    ]  # the shift is symmetric, so the order of flip and crop is immaterial
    views = augment.weak(image.expand(1000, -1, -1, -1), Rng(torch.Generator().manual_seed(0)))
    seen = Counter(next(i for i, window in enumerate(windows) if torch.equal(view, window)) for view in views)
    assert set(seen) == set(range(50))  # each of 25 shifts, flipped and not
    flipped = sum(count for i, count in seen.items() if i >= 25)
    assert 440 < flipped < 560  # 4 sigma


def test_cutout_greys_a_square_of_half_the_side() -> None:
    image = torch.full((500, 3, 32, 32), 9, dtype=torch.uint8)
    cut = augment.cutout(image, Rng(torch.Generator().manual_seed(0)))
    grey = (cut == augment.GREY).all(1)
    sizes = grey.flatten(1).sum(1)
    assert sizes.max() == 16 * 16
    assert sizes.min() >= 8 * 8  # the center lies within the picture
    assert set(cut.unique().tolist()) == {9, augment.GREY}


def test_policy_draws_every_operation_equally_and_skips_half() -> None:
    chosen = augment.draw(28_000, Rng(torch.Generator().manual_seed(0)))
    counts = torch.bincount(chosen.operation, minlength=len(OPERATIONS)).float()
    identity = OPERATIONS.index("identity")
    assert abs(counts[identity] - (14_000 + 1_000)) < 400
    others = counts[torch.arange(len(OPERATIONS)) != identity]
    assert (others - 1_000).abs().max() < 150
    assert chosen.level.min() == pytest.approx(0.1)
    assert chosen.level.max() == pytest.approx(0.9)


@pytest.mark.parametrize("view", [augment.weak, augment.strong, augment.detector])
def test_views_are_functions_of_the_seed_and_leave_the_input(view: object, images: torch.Tensor) -> None:
    assert callable(view)
    before = images.clone()
    first = view(images, Rng(torch.Generator().manual_seed(5)))
    again = view(images, Rng(torch.Generator().manual_seed(5)))
    other = view(images, Rng(torch.Generator().manual_seed(6)))
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


def pil_strong(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """FixMatch's strong view of one image as its implementations make it: PIL, one image at a time."""
    pixels = np.asarray(image)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    y, x = rng.integers(0, 9, 2)
    view = Image.fromarray(np.ascontiguousarray(padded[y : y + 32, x : x + 32]))
    for name in rng.choice(OPERATIONS, 2):
        level, sign = rng.integers(1, 10) / 10, rng.choice([-1.0, 1.0])
        if rng.random() < 0.5:
            view = pil(view, name, level, sign)
    result = np.array(view)
    top, left = (max(0, int(rng.random() * 32 - 8)) for _ in range(2))
    result[top : top + 16, left : left + 16] = augment.GREY
    return result


@pytest.mark.slow
def test_whole_policy_has_the_distribution_of_pils() -> None:
    """Means, deviations, darkest and brightest values, and black borders of 4,000 views each, by two-sample tests."""
    rng = np.random.default_rng(0)
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 180 + 30
    picture = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(1, 254).to(torch.uint8)[0]
    image = Image.fromarray(picture.numpy().transpose(1, 2, 0))
    theirs = np.stack([pil_strong(image, rng) for _ in range(4000)]).astype(float)
    ours = augment.strong(picture.expand(4000, -1, -1, -1), Rng(torch.Generator().manual_seed(2)))
    ours = ours.numpy().transpose(0, 2, 3, 1).astype(float)
    statistics = {
        "mean": lambda views: views.mean((1, 2, 3)),
        "deviation": lambda views: views.std((1, 2, 3)),
        "color": lambda views: np.ptp(views.mean((1, 2)), axis=1),
        "darkest": lambda views: views.min((1, 2, 3)),
        "brightest": lambda views: views.max((1, 2, 3)),
        "black": lambda views: (views == 0).all(3).mean((1, 2)),
    }
    for name, statistic in statistics.items():
        first, second = np.sort(statistic(ours)), np.sort(statistic(theirs))
        grid = np.concatenate((first, second))
        distance = np.abs(
            np.searchsorted(first, grid, side="right") - np.searchsorted(second, grid, side="right")
        ).max() / len(first)
        assert distance < 0.045, name  # Kolmogorov-Smirnov at 4,000 against 4,000: 0.043 is p = 0.001


def test_detector_views_are_weak_views_made_sharper_or_softer(images: torch.Tensor) -> None:
    weak = augment.weak(images, Rng(torch.Generator().manual_seed(3)))
    view = augment.detector(images, Rng(torch.Generator().manual_seed(3)), resample=False)
    rest = weak.int() - augment._smooth(weak)
    added = view.int() - weak.int()
    inside = (view > 0) & (view < 255)  # elsewhere clipped
    assert (added.abs() <= augment.SHARPENED * rest.abs() + 0.5)[inside].all()
    agrees = [int((a * r)[i].sum()) for a, r, i in zip(added, rest, inside, strict=True)]
    assert min(agrees) < 0 < max(agrees)  # some are softer, some sharper


def test_detector_views_leave_a_flat_picture_flat() -> None:
    flat = torch.full((64, 3, 32, 24), 90, dtype=torch.uint8)
    assert torch.equal(augment.detector(flat, Rng(torch.Generator().manual_seed(0))), flat)


def test_detector_views_are_zoomed_in_and_out() -> None:
    """A disc in the middle of the picture covers more or less of it; where it is not resampled, as much as before."""
    axis = torch.arange(64) - 31.5
    disc = (axis[:, None].square() + axis.square() < 12**2).expand(400, 3, -1, -1).to(torch.uint8) * 200
    views = augment.detector(disc, Rng(torch.Generator().manual_seed(0)))
    area = (views[:, 0] > 100).sum((1, 2)) / (disc[0, 0] > 100).sum()
    lowest, highest = (1 - augment.ZOOM) ** 2, (1 + augment.ZOOM) ** 2
    assert lowest - 0.05 <= area.min() < lowest + 0.1
    assert highest - 0.1 < area.max() <= highest + 0.05
    assert ((area - 1).abs() < 1e-3).float().mean() == pytest.approx(1 - augment.RESAMPLED, abs=0.06)


def test_resampling_is_cubic_convolution(images: torch.Tensor) -> None:
    """As torch's own, whose kernel has a sharpness of .75, but at the borders, where taps outside are left out here."""
    zoom, down, right = torch.tensor([0.7, 1.0, 1.3]), torch.tensor([0.2, -0.4, 0.0]), torch.tensor([0.0, 0.3, -0.5])
    sharpness = torch.full((3,), 0.75)
    values = images[[0, 3, 7]].float()[..., :28]
    rows, columns = augment._cubic(32, zoom, down, sharpness), augment._cubic(28, zoom, right, sharpness)
    ours = rows[:, None] @ values @ columns[:, None].mT
    theta = torch.zeros(3, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom
    theta[:, 0, 2], theta[:, 1, 2] = right * 2 / 28, down * 2 / 32
    grid = torch.nn.functional.affine_grid(theta, [3, 3, 32, 28], align_corners=False)
    theirs = torch.nn.functional.grid_sample(
        values, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    inside = ((grid[..., 0].abs() < 1 - 4 / 28) & (grid[..., 1].abs() < 1 - 4 / 32))[:, None].expand_as(ours)
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=0, atol=1e-2)
    assert inside.float().mean() > 0.5


@pytest.mark.parametrize("sharpness", [0.0, 0.5, 1.0])
def test_resampling_by_nothing_changes_nothing(sharpness: float) -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    assert torch.equal(augment._cubic(9, one, zero, one * sharpness)[0], torch.eye(9))


def test_resampling_reflects_at_both_borders_alike() -> None:
    half, zero = torch.full((1,), 0.5), torch.zeros(1)
    (weights,) = augment._cubic(8, half, zero, half)
    assert torch.allclose(weights, weights.flip(0, 1))
    picture = torch.arange(8.0)
    assert torch.allclose((weights @ picture)[:2], (weights @ picture)[2:4].flip(0))
