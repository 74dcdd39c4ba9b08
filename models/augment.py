"""Batched augmentation on the training device. Each image of a batch has its own draw, without a Python loop over them.

Functions take and return uint8 images, and nothing waits for an accelerator. Every random number comes from the
generator that is passed, so a batch is a pure function of images and generator state. The operations follow PIL's
arithmetic, so that a policy tuned with PIL means the same here.

Shape suffixes: B images, C channels (RGB), H and W pixels, L = 256 levels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.ranks import Rng

# RandAugment's operations as in FixMatch (arXiv 2001.07685, table 12); a level in (0, 1) sets the strength of each.
OPERATIONS = (
    "autocontrast",
    "brightness",
    "color",
    "contrast",
    "equalize",
    "identity",
    "posterize",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarize",
    "translate_x",
    "translate_y",
)
_INDEX = {name: i for i, name in enumerate(OPERATIONS)}
NUM_OPERATIONS = 2  # per image
APPLY = 0.5  # probability that an operation is applied
CUTOUT = 0.5  # side of the square, as a share of the image's
# The detector's views.
RESAMPLED = 0.8  # share of them that is resampled
ZOOM = 0.4  # largest change of scale
SHARPENED = 0.6  # largest share of the detail, which smoothing removes, that is added or removed
GREY = 127


class Draw(NamedTuple):
    """One operation for each image: its index (B,) int64, its level (B,) in 0.1..0.9 and its sign (B,), -1 or 1."""

    operation: Tensor
    level: Tensor
    sign: Tensor


def weak(images_BCHW: Tensor, rng: Rng) -> Tensor:
    """Flip half of the images and shift each by up to an eighth of its side, reflecting at the border."""
    count, _, height, width = images_BCHW.shape
    flip = rng.uniform(count) < 0.5
    rows = _reflect(_shift(count, height, rng) + _range(height, images_BCHW), height)
    columns = _reflect(_shift(count, width, rng) + _range(width, images_BCHW), width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    return _gather(images_BCHW, rows[:, :, None] * width + columns[:, None, :])


def strong(images_BCHW: Tensor, rng: Rng) -> Tensor:
    """Apply the weak view, then RandAugment (n = 2) and cutout: FixMatch's strong view."""
    images_BCHW = weak(images_BCHW, rng)
    for _ in range(NUM_OPERATIONS):
        images_BCHW = apply(images_BCHW, draw(len(images_BCHW), rng))
    return cutout(images_BCHW, rng)


def detector(images_BCHW: Tensor, rng: Rng, *, resample: bool = True) -> Tensor:
    """Apply the weak view, resample most images if `resample`, and make each a little sharper or softer.

    Image pipelines do the same to real photographs. Nothing else is applied, because recoloring or cutting would erase
    or forge the traces that a detector looks for.
    """
    values = weak(images_BCHW, rng).float()
    if resample:
        values = _resample(values, rng)
    amount = (2 * rng.uniform(len(values)) - 1)[:, None, None, None] * SHARPENED
    changed = values + amount * (values - _smooth(values))
    return changed.round().clamp(0, 255).to(torch.uint8)


def cutout(images_BCHW: Tensor, rng: Rng) -> Tensor:
    """Gray out a square of half the image's side around a random center; it may extend beyond the border."""
    count, _, height, width = images_BCHW.shape
    rows = _hole(count, height, images_BCHW, rng)
    columns = _hole(count, width, images_BCHW, rng)
    return images_BCHW.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], GREY)


def draw(count: int, rng: Rng) -> Draw:
    """Draw one operation for each of `count` images; for half of the images it is the identity."""
    operation = rng.integers(0, len(OPERATIONS), count)
    skip = rng.uniform(count) >= APPLY
    level = rng.integers(1, 10, count) / 10
    sign = rng.integers(0, 2, count) * 2.0 - 1.0
    return Draw(operation.masked_fill(skip, _INDEX["identity"]), level, sign)


def apply(images_BCHW: Tensor, chosen: Draw) -> Tensor:
    """Apply each image's operation."""
    for names, function in _FUNCTIONS:
        mask = torch.stack([chosen.operation == _INDEX[name] for name in names]).any(0)
        images_BCHW = _only(mask, function, images_BCHW, chosen)
    return images_BCHW


def _only(mask: Tensor, function: Callable[[Tensor, Draw], Tensor], images_BCHW: Tensor, chosen: Draw) -> Tensor:
    """Apply `function` to the images of `mask`. On a CPU only these are computed, elsewhere all are.

    On an accelerator, selecting rows would make the host wait, and shapes would vary from step to step.
    """
    if images_BCHW.device.type != "cpu":
        return torch.where(mask[:, None, None, None], function(images_BCHW, chosen), images_BCHW)
    rows = mask.nonzero().squeeze(1)
    if len(rows) == 0:
        return images_BCHW
    part = function(images_BCHW[rows], Draw(*(value[rows] for value in chosen)))
    return images_BCHW.index_copy(0, rows, part)


def _point(images_BCHW: Tensor, chosen: Draw) -> Tensor:
    table_BCL = _point_tables(images_BCHW, chosen)
    return table_BCL.gather(2, images_BCHW.flatten(2).long()).view_as(images_BCHW)


def _color(images_BCHW: Tensor, chosen: Draw) -> Tensor:
    return _blend(_luma(images_BCHW)[:, None], images_BCHW, _amount(chosen)[:, None])


def _sharpness(images_BCHW: Tensor, chosen: Draw) -> Tensor:
    return _blend(_smooth(images_BCHW), images_BCHW, _amount(chosen)[:, None])


def _amount(chosen: Draw) -> Tensor:
    return (0.05 + 0.9 * chosen.level)[:, None, None]


def _point_tables(images_BCHW: Tensor, chosen: Draw) -> Tensor:
    """Lookup tables (B, 3, 256) of the operations that map each level on its own; the identity for all others."""
    count = len(images_BCHW)
    levels = torch.arange(256, device=images_BCHW.device)
    identity = levels.expand(count, 3, 256)
    amount = _amount(chosen)
    histogram = _histogram(images_BCHW)
    mean = (_luma(images_BCHW).float().mean((1, 2)) + 0.5).floor()[:, None, None]
    kept_bits = (4 * chosen.level).long()[:, None, None] + 4
    threshold = 256 - (256 * chosen.level).long()[:, None, None]
    tables = {
        "autocontrast": _autocontrast(histogram),
        "brightness": _blend(torch.zeros_like(identity), identity, amount).long(),
        "contrast": _blend(mean.expand(count, 3, 256), identity, amount).long(),
        "equalize": _equalize(histogram),
        "posterize": identity >> (8 - kept_bits) << (8 - kept_bits),
        "solarize": torch.where(identity < threshold, identity, 255 - identity),
    }
    result = identity
    for name, table in tables.items():
        result = torch.where((chosen.operation == _INDEX[name])[:, None, None], table, result)
    return result.to(torch.uint8)


def _histogram(images_BCHW: Tensor) -> Tensor:
    values = images_BCHW.flatten(2).long()
    zeros = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=values.device)
    return zeros.scatter_add_(2, values, torch.ones_like(values))


def _autocontrast(histogram_BCL: Tensor) -> Tensor:
    levels = torch.arange(256, device=histogram_BCL.device)
    present = histogram_BCL > 0
    low = torch.where(present, levels, 255).amin(2, keepdim=True)
    high = torch.where(present, levels, 0).amax(2, keepdim=True)
    scale = 255.0 / (high - low).clamp(min=1).double()  # double, as in PIL: rounding may change a level
    stretched = (levels * scale - low * scale).long().clamp(0, 255)
    return torch.where(high > low, stretched, levels)


def _equalize(histogram_BCL: Tensor) -> Tensor:
    levels = torch.arange(256, device=histogram_BCL.device)
    last = torch.where(histogram_BCL > 0, levels, 0).amax(2, keepdim=True)
    step = (histogram_BCL.sum(2, keepdim=True) - histogram_BCL.gather(2, last)) // 255
    before = histogram_BCL.cumsum(2) - histogram_BCL
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table, levels)


def _affine(images_BCHW: Tensor, chosen: Draw) -> Tensor:
    """Rotate, shear or translate with nearest neighbors around PIL's pixel centers; pixels from outside are black."""
    height, width = images_BCHW.shape[2:]
    signed = chosen.level * chosen.sign
    one, zero = torch.ones_like(signed), torch.zeros_like(signed)

    def only(name: str, value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(chosen.operation == _INDEX[name], value, otherwise)

    angle = only("rotate", torch.deg2rad(-30 * signed), zero)
    cos, sin = angle.cos(), angle.sin()
    shear_x, shear_y = only("shear_x", 0.3 * signed, sin), only("shear_y", 0.3 * signed, -sin)
    x_offset = only("translate_x", 0.3 * signed * width, zero)
    y_offset = only("translate_y", 0.3 * signed * height, zero)
    is_rotate = chosen.operation == _INDEX["rotate"]
    x_center = torch.where(is_rotate, one * width / 2, zero)[:, None, None]
    y_center = torch.where(is_rotate, one * height / 2, zero)[:, None, None]

    x = (_range(width, images_BCHW) + 0.5)[None, None, :] - x_center
    y = (_range(height, images_BCHW) + 0.5)[None, :, None] - y_center
    a, b, d, e = (value[:, None, None] for value in (cos, shear_x, shear_y, cos))
    from_x = (a * x + b * y + x_center + x_offset[:, None, None]).floor().long()
    from_y = (d * x + e * y + y_center + y_offset[:, None, None]).floor().long()
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    where_BHW = from_y.clamp(0, height - 1) * width + from_x.clamp(0, width - 1)
    return _gather(images_BCHW, where_BHW).masked_fill(~inside[:, None], 0)


_FUNCTIONS = (
    (("autocontrast", "brightness", "contrast", "equalize", "posterize", "solarize"), _point),
    (("rotate", "shear_x", "shear_y", "translate_x", "translate_y"), _affine),
    (("color",), _color),
    (("sharpness",), _sharpness),
)


def _luma(images_BCHW: Tensor) -> Tensor:
    red, green, blue = images_BCHW.int().unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _smooth(images_BCHW: Tensor) -> Tensor:
    """PIL's SMOOTH filter: a 3x3 mean in which the center counts five times; the border stays unchanged."""
    values = images_BCHW.float()
    columns = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    inner = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:] + 4 * values[:, :, 1:-1, 1:-1]
    result = values.clone()
    result[:, :, 1:-1, 1:-1] = ((inner + 6.5) / 13).floor()  # rounded to the nearest
    return result


def _blend(ground: Tensor, values: Tensor, amount: Tensor) -> Tensor:
    """PIL's Image.blend: move from `ground` towards `values` by `amount` in 0..1, and truncate to uint8."""
    return (ground.float() + amount * (values.float() - ground.float())).to(torch.uint8)


def _gather(images_BCHW: Tensor, where_BHW: Tensor) -> Tensor:
    index = where_BHW.flatten(1)[:, None].expand(-1, images_BCHW.shape[1], -1)
    return images_BCHW.flatten(2).gather(2, index).view_as(images_BCHW)


def _resample(values_BCHW: Tensor, rng: Rng) -> Tensor:
    """Zoom most images around their center, shifted by part of a pixel, with a cubic kernel of random sharpness."""
    count, _, height, width = values_BCHW.shape
    changed = (rng.uniform(count) < RESAMPLED).float()
    zoom = 1 + changed * ZOOM * (2 * rng.uniform(count) - 1)
    sharpness = rng.uniform(count)
    rows = _cubic(height, zoom, changed * (rng.uniform(count) - 0.5), sharpness)
    columns = _cubic(width, zoom, changed * (rng.uniform(count) - 0.5), sharpness)
    return rows[:, None] @ values_BCHW @ columns[:, None].mT


def _cubic(side: int, zoom_B: Tensor, offset_B: Tensor, sharpness_B: Tensor) -> Tensor:
    """Weights (B, side, side) along one axis, from each pixel of the image to each pixel of the zoomed one.

    Positions beyond the border are reflected. Where a kernel extends beyond the border, the part inside is normalized
    to a sum of 1. The kernel is cubic convolution (Keys 1981) with a = -sharpness: 0.5 is Catmull and Rom's kernel,
    0.75 that of torch and OpenCV.
    """
    pixel = torch.arange(side, device=zoom_B.device)
    middle = (side - 1) / 2
    source = (pixel - middle) / zoom_B[:, None] + middle + offset_B[:, None]
    source = side - (side - (source + 0.5).abs()).abs() - 0.5
    distance = (source[:, :, None] - pixel).abs()
    a = -sharpness_B[:, None, None]
    near = ((a + 2) * distance - (a + 3)) * distance.square() + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weight = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    return weight / weight.sum(2, keepdim=True)


def _shift(count: int, side: int, rng: Rng) -> Tensor:
    reach = side // 8
    return rng.integers(-reach, reach + 1, count)[:, None]


def _range(side: int, images_BCHW: Tensor) -> Tensor:
    return torch.arange(side, device=images_BCHW.device)


def _reflect(position: Tensor, side: int) -> Tensor:
    return (side - 1) - ((side - 1) - position.abs()).abs()


def _hole(count: int, side: int, images_BCHW: Tensor, rng: Rng) -> Tensor:
    size = int(CUTOUT * side)
    start = (rng.uniform(count)[:, None] * side - size / 2).clamp(min=0).floor()
    position = _range(side, images_BCHW)
    return (position >= start) & (position < start + size)


def to_float(images_BCHW: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert levels 0..255 to standardized float32, channels last, which is the fastest format for convolutions."""
    scaled = (images_BCHW.float() / 255 - mean[:, None, None]) / std[:, None, None]
    return scaled.contiguous(memory_format=torch.channels_last)
