"""Features of photographs that may tell real from generated ones: what the witnesses of `models.panel` see.

Each image is seen three times: as tiles at native resolution, where the traces of a camera and of a generator are; as
tiles at a common scale, where the sizes of images give nothing away; and as a thumbnail. Of the tiles there are
residual statistics (`models.residual`), and features of a frozen network, which reads amplified residuals as well as
images:

    residual    128 + 6 (x - 3x3 mean), what a smoothing leaves
    directions  128 + 4 times the second differences of luma: horizontal, vertical and diagonal
    chroma      128 + 12 (r - mean of r over the channels), for the residual r

Of these the early and middle maps count, of images the late ones as well. An image's features are the means over its
tiles: one tile is noise (docs/log.md).

Shape suffixes: B images, T tiles, F features, C channels, H and W pixels.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models import residual
from models.frozen import Features, Frozen

REVISION = 2  # raised by each change after which equal images have other features
RESIDUAL_GAIN, DIRECTIONS_GAIN, CHROMA_GAIN = 6.0, 4.0, 12.0
MIDDLE = 128.0
SCALES = ("native", "common")


def widths(frozen: Frozen) -> dict[str, int]:
    """Number of features of each witness, in the order of `read`."""
    of_scale = {"statistics": residual.NUM_FEATURES} | dict.fromkeys(
        ("residual", "directions", "chroma"), frozen.num_low
    )
    everything = frozen.num_low + frozen.num_pooled
    found = {f"{scale}_{name}": width for scale in SCALES for name, width in of_scale.items()}
    return found | {"common_content": everything, "thumbnail_content": everything}


@torch.no_grad()
def read(
    frozen: Frozen, tiles: Mapping[str, Tensor], owners: Mapping[str, Tensor], thumbnail: Features
) -> dict[str, Tensor]:
    """Features (B, F) float32 of B images by witness, from their uint8 tiles (T, 3, S, S) at each of `SCALES`.

    `owners` (T,) int64 says to which image, 0..B - 1, each tile belongs; `thumbnail` are the features of B thumbnails.
    """
    count, found = len(thumbnail.pooled), dict[str, Tensor]()
    for scale in SCALES:
        levels, owner = tiles[scale].float(), owners[scale]
        of_tiles = {
            "statistics": residual.features(levels),
            "residual": frozen.low(amplified_residual(levels)),
            "directions": frozen.low(directions(levels)),
            "chroma": frozen.low(chroma_residual(levels)),
        }
        found |= {f"{scale}_{name}": _means(values, owner, count) for name, values in of_tiles.items()}
    found["common_content"] = _means(frozen(tiles["common"]).everything, owners["common"], count)
    found["thumbnail_content"] = thumbnail.everything
    return found


def amplified_residual(levels_BCHW: Tensor) -> Tensor:
    """What a 3x3 mean leaves of each channel, amplified; levels 0..255, as are images of the other two functions."""
    return (MIDDLE + RESIDUAL_GAIN * _residual(levels_BCHW)).clamp(0, 255)


def directions(levels_BCHW: Tensor) -> Tensor:
    """Second differences of the mean of the channels: horizontal, vertical and diagonal, as three channels."""
    x = F.pad(levels_BCHW.mean(1, keepdim=True), (1, 1, 1, 1), mode="reflect")
    center = x[..., 1:-1, 1:-1]
    horizontal = x[..., 1:-1, 2:] - 2 * center + x[..., 1:-1, :-2]
    vertical = x[..., 2:, 1:-1] - 2 * center + x[..., :-2, 1:-1]
    diagonal = x[..., 2:, 2:] + x[..., :-2, :-2] - x[..., 2:, :-2] - x[..., :-2, 2:]
    return (MIDDLE + DIRECTIONS_GAIN * torch.cat((horizontal, vertical, diagonal), 1)).clamp(0, 255)


def chroma_residual(levels_BCHW: Tensor) -> Tensor:
    """By how much the residual of each channel differs from that of all."""
    left = _residual(levels_BCHW)
    return (MIDDLE + CHROMA_GAIN * (left - left.mean(1, keepdim=True))).clamp(0, 255)


def _residual(levels_BCHW: Tensor) -> Tensor:
    padded = F.pad(levels_BCHW, (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return levels_BCHW - (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def _means(values_TF: Tensor, owner_T: Tensor, count: int) -> Tensor:
    total = torch.zeros(count, values_TF.shape[1], device=values_TF.device).index_add_(0, owner_T, values_TF)
    return total / torch.bincount(owner_T, minlength=count).clamp(min=1)[:, None]
