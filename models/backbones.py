"""Backbones: networks from float images to features, by name, and the pretrained weights that they start from.

`wrn-28-2` and `small` are ours; `timm:NAME` is any network of timm, by its architecture or with a tag of weights. Each
network brings its own mean, deviation and input size.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import augment

SLOPE = 0.1  # of the leaky ReLU, as in FixMatch's WRN
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
COUNTER = "num_batches_tracked"  # of a batch norm: older files lack it, and nothing here reads it

Channels = tuple[float, ...]  # a value for each of red, green and blue


class Inputs(NamedTuple):
    """What a network takes: squares of `size` pixels, standardized by mean and deviation of levels in 0..1."""

    size: int
    mean: Channels
    std: Channels


class Standardize(nn.Module):
    """Levels 0..255 (B, 3, H, W) to float32, by a mean and a deviation of levels in 0..1; ImageNet's by default."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

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


def inputs(name: str) -> Inputs:
    """Input size, mean and deviation of a backbone, without building it.

    Raises ValueError for a name that is none.
    """
    if name in ("wrn-28-2", "small"):
        return Inputs(32, IMAGENET_MEAN, IMAGENET_STD)
    config = _timm_config(name)
    return Inputs(int(config.input_size[1]), tuple(config.mean), tuple(config.std))


def backbone(name: str, size: int | None = None) -> tuple[nn.Module, int]:
    """Build a backbone from float images to features (B, D), and D: `wrn-28-2`, `small` or `timm:NAME`.

    `wrn-28-2` is the network of the semi-supervised literature (1.5 M parameters); `small` (0.4 M) folds 2x2 pixels
    into channels first and costs a fifteenth, for CPUs. These two take images of any size. A timm network is built for
    `size` pixels, by default its own input size, and D is measured, because not all of them say what comes out.

    Raises ValueError for a name that is none of these, and for a size that the network does not take.
    """
    if name == "wrn-28-2":
        stem: nn.Module = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        built, width = _residual(stem, 16, ((32, 1, 4), (64, 2, 4), (128, 2, 4)))
    elif name == "small":
        stem = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 32, 3, 1, 1, bias=False))
        built, width = _residual(stem, 32, ((32, 1, 1), (64, 2, 2), (128, 2, 1)))
    else:
        return _timm_network(name, size)
    initialize(built)
    return built, width


def _timm_config(name: str) -> timm.models.PretrainedCfg:
    """What timm says of a network's input and of its published weights; ValueError for an unknown name."""
    if not name.startswith("timm:"):
        raise ValueError(f"unknown backbone {name!r}")
    own = name.removeprefix("timm:")
    if not timm.is_model(own):  # also names of hub repositories and of folders, which would be read from there
        raise ValueError(f"unknown timm network {own!r}")
    try:
        return timm.get_pretrained_cfg(own) or timm.models.PretrainedCfg()
    except RuntimeError as error:  # timm's answer to an unknown tag
        raise ValueError(str(error).rstrip(".")) from None


def _timm_network(name: str, size: int | None) -> tuple[nn.Module, int]:
    """Build a timm network for images of `size` pixels, by default its own; and its measured width."""
    config, own = _timm_config(name), name.removeprefix("timm:")
    side = size or int(config.input_size[1])
    # Transformers and mixers are built for one size, convolutions take any; some of either kind are declared wrongly.
    sized: dict[str, Any] = {"img_size": side}
    ways = [sized, {}] if config.fixed_input_size else [{}, sized]
    reasons = []
    for way in ways if side != config.input_size[1] else [{}]:
        try:
            network = timm.create_model(own, pretrained=False, num_classes=0, **way).eval()
            with torch.no_grad():
                features = network(torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            reasons.append(str(error).partition("\n")[0])
            continue
        if not isinstance(features, Tensor) or features.ndim != 2:
            raise ValueError(f"{own} does not give one feature vector per image")
        return network.train(), features.shape[1]
    raise ValueError(f"{own} takes no images of {side} pixels ({reasons[0]}); its own size is {config.input_size[1]}")


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a backbone weights by name; further tensors, such as those of a classifier, are ignored.

    Where they do not fit a timm network as they are, timm's own conversion is tried: it knows the names of original
    publications, and resizes position embeddings to another input size. Raises ValueError if a tensor is missing or
    has another shape.
    """
    reason = _misfit(network, weights)
    if reason is not None:
        converted = _converted(network, weights)
        if converted is None or _misfit(network, converted) is not None:
            raise ValueError(reason)
        weights = converted
    own = network.state_dict()
    network.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)


def _misfit(network: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(COUNTER)}
    missing = [name for name in own if name not in weights]
    if missing:
        return f"lacks {missing[0]!r} ({len(missing)} of {len(own)} tensors missing)"
    for name, tensor in own.items():
        if weights[name].shape != tensor.shape:
            return f"has {name!r} of shape {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
    return None


def _converted(network: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """The weights by timm's conversion for this kind of network; None if it has none or fails."""
    kind = vars(sys.modules[type(network).__module__])
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = kind.get("checkpoint_filter_fn")
    if convert is None:
        return None
    try:
        with warnings.catch_warnings():  # of what its ways of resizing make of PyTorch
            warnings.simplefilter("ignore")
            return convert(dict(weights), network)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):  # of what it believes is there
        return None


def initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", a=SLOPE, nonlinearity="leaky_relu")
