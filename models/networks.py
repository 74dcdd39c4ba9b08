"""Networks: a classifier of one backbone and two heads, and the real/synthetic detector.

All take uint8 RGB images (B, 3, H, W) and standardize them themselves, so that nobody can feed them the wrong scale.
"""

from typing import NamedTuple, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import augment, residual, spectrum

SLOPE = 0.1  # of the leaky ReLU, as in FixMatch's WRN
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Heads(NamedTuple):
    """Logits (B, K) of the real head, which alone predicts, and of the dummy head."""

    real: Tensor
    dummy: Tensor


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
    _initialize(built)
    return built, width


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", a=SLOPE, nonlinearity="leaky_relu")


def set_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Set how fast batch norms follow the batch (PyTorch's sense: the share of the new value)."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


class Classifier(nn.Module):
    """One backbone, two linear heads over K classes: `real` predicts, `dummy` learns from synthetic images."""

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        self.standardize = Standardize()
        self.backbone, self.num_features = backbone(name)
        self.real = nn.Linear(self.num_features, num_classes)
        self.dummy = nn.Linear(self.num_features, num_classes)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, D) before the heads, float32."""
        features: Tensor = self.backbone(self.standardize(images_BCHW))
        return features.float()

    def forward(self, images_BCHW: Tensor) -> Heads:
        features = self.embed(images_BCHW)
        return Heads(self.real(features).float(), self.dummy(features).float())


class Detector(nn.Module):
    """Lightweight real/synthetic network (98 k parameters): uint8 (B, 3, H, W) to a logit (B,), positive is synthetic.

    Unless told otherwise it sees images whose radial spectrum is that of photographs, so that it cannot take how an
    image was scaled for a trace (`models.spectrum`). Beside their colors it is shown what a 3x3 mean leaves of them, in
    which traces are not hidden below the content, and its logit is the sum of the convolutions' and of a linear score
    of the residual statistics, which convolutions of this size do not come to by themselves: from the same start each
    led to a higher AUROC, and sooner (docs/log.md). Global pooling lets it take crops of any size.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128), *, equalize: bool = True) -> None:
        super().__init__()
        self.equalizes = equalize
        self.standardize = Standardize()
        layers: list[nn.Module] = []
        width_in = 6
        for i, width in enumerate(widths):
            layers += [
                nn.Conv2d(width_in, width, 3, 1 if i == 0 else 2, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(SLOPE),
            ]
            width_in = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width_in, 1)
        self.norm = nn.BatchNorm2d(residual.NUM_STATISTICS, affine=False)
        self.linear = nn.Linear(residual.NUM_STATISTICS, 1, bias=False)
        _initialize(self.features)
        nn.init.zeros_(self.linear.weight)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        levels_BCHW = spectrum.equalize(images_BCHW) if self.equalizes else images_BCHW.float()
        planes = torch.cat((self.standardize(levels_BCHW), _residual_planes(levels_BCHW)), dim=1)
        features = self.features(planes.contiguous(memory_format=torch.channels_last))
        with torch.no_grad():
            statistics = residual.statistics(levels_BCHW)
        # Far out one statistic of one image would outvote all the others.
        standardized = self.norm(statistics[..., None, None]).flatten(1).clamp(-residual.FAR, residual.FAR)
        logit: Tensor = (self.head(features.float()) + self.linear(standardized)).squeeze(1)
        return logit


def _residual_planes(levels_BCHW: Tensor) -> Tensor:
    """What a 3x3 mean leaves of each color, in units of 8 levels and clipped to 4 of them."""
    padded = F.pad(levels_BCHW, (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]  # sums take a fifth of avg_pool2d's time
    mean = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
    return ((levels_BCHW - mean) / 8).clamp(-4, 4)
