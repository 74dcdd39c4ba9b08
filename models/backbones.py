"""Backbones: networks from float images to features, by name."""

from typing import cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import augment

SLOPE = 0.1  # of the leaky ReLU, as in FixMatch's WRN
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Standardize(nn.Module):
    """Levels 0..255 (B, 3, H, W) to float32 with ImageNet's mean and deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return augment.to_float(images_BCHW, self.mean, self.std)


class Block(nn.Module):
    """Pre-activation residual block (He et al. 2016), with a projection where the shape changes."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        same = width_in == width_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.leaky_relu(self.norm1(x), SLOPE)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        residual: Tensor = self.conv2(F.leaky_relu(self.norm2(self.conv1(active)), SLOPE))
        return residual + shortcut


def _residual(stem: nn.Module, width: int, stages: tuple[tuple[int, int, int], ...]) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [stem]
    for width_out, stride, depth in stages:
        for i in range(depth):
            layers.append(Block(width, width_out, stride if i == 0 else 1))
            width = width_out
    layers += [nn.BatchNorm2d(width), nn.LeakyReLU(SLOPE), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers), width


def backbone(name: str) -> tuple[nn.Module, int]:
    """Build a backbone from float images to features (B, D), and D: `wrn-28-2`, `small` or `timm:NAME`.

    `wrn-28-2` is the network of the semi-supervised literature (1.5 M parameters); `small` (0.4 M) folds 2x2 pixels
    into channels first and costs a fifteenth, for CPUs. Raises ValueError for a name that is none of these.
    """
    if name == "wrn-28-2":
        stem: nn.Module = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        built, width = _residual(stem, 16, ((32, 1, 4), (64, 2, 4), (128, 2, 4)))
    elif name == "small":
        stem = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 32, 3, 1, 1, bias=False))
        built, width = _residual(stem, 32, ((32, 1, 1), (64, 2, 2), (128, 2, 1)))
    elif name.startswith("timm:"):
        try:
            model = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=0)
        except RuntimeError as error:  # timm's answer to an unknown name
            raise ValueError(str(error)) from None
        return model, int(cast(int, model.num_features))
    else:
        raise ValueError(f"unknown backbone {name!r}")
    initialize(built)
    return built, width


def initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", a=SLOPE, nonlinearity="leaky_relu")
