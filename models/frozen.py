"""A frozen network as a reader of features: early and middle maps, where the traces of an image's making are, and the
pooled features, which say what it shows. One forward pass gives both.

Shape suffixes: B images, C channels, H and W pixels, L low features, D pooled features.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from models.backbones import Standardize, backbone, inputs, load_weights

Precision = Literal["bf16", "fp32"]

REVISION = 1  # raised by each change after which equal weights give other features
EARLY_AND_MIDDLE = (4, 8, 16)  # reductions of a pyramid's maps that count as such


class Features(NamedTuple):
    """Features of images, float32."""

    low: Tensor  # (B, L): over the positions of each map of EARLY_AND_MIDDLE the mean, then the standard deviation
    pooled: Tensor  # (B, D): what the classifier's backbone gives

    @property
    def everything(self) -> Tensor:
        """Both, (B, L + D)."""
        return torch.cat(self, 1)


class Frozen(nn.Module):
    """A pretrained timm network that is never trained, from images (B, 3, S, S) to `Features`.

    The features of an image do not depend on the other images of a batch. `autocast` is the context to compute in.
    One thread at a time may call it.
    """

    def __init__(
        self,
        name: str,
        weights: Mapping[str, Tensor],
        size: int | None = None,
        autocast: AbstractContextManager[object] | None = None,
    ) -> None:
        """Build `timm:NAME` for images of `size` pixels, by default the network's own.

        Raises ValueError if there is no such network, it does not take the size, gives no maps, or has other weights.
        """
        super().__init__()
        own_size, mean, std = inputs(name)
        self.size = size or own_size
        self.standardize = Standardize(mean, std)
        network, self.num_pooled = backbone(name, size)
        load_weights(network, weights)
        network.eval().requires_grad_(False)
        self.network = network.to(memory_format=torch.channels_last)
        self._autocast = autocast or nullcontext()
        self._blocks = _blocks(network)
        self._maps = self._choose_blocks() if self._blocks else self._choose_maps()
        self.precision: Precision = "bf16" if isinstance(self._autocast, torch.autocast) else "fp32"
        self.digest = _digest(f"{name} {self.size} {self.precision} {REVISION}", network)
        self.num_low = self(torch.zeros(1, 3, self.size, self.size)).low.shape[1]

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode: the network is not trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> Features:
        """Features of images given as levels 0..255, uint8 or float."""
        with self._autocast:
            standardized = self.standardize(images_BCHW)
            if self._blocks:
                maps, pooled = self._through_blocks(standardized)
                maps = [maps[i] for i in self._maps]
            else:
                network = cast(Any, self.network)
                final, maps = network.forward_intermediates(standardized, indices=self._maps)
                pooled = network.forward_head(final) if self._is_one_pass else network(standardized)
        return Features(torch.cat([_over_positions(each) for each in maps], 1), pooled.float())

    @torch.no_grad()
    def low(self, images_BCHW: Tensor) -> Tensor:
        """The low features alone, (B, L) float32: as `forward` gives them, without the layers above the last map."""
        with self._autocast:
            standardized = self.standardize(images_BCHW)
            if self._blocks:
                network, maps = cast(Any, self.network), []
                current = network.bn1(network.conv_stem(standardized))
                for block in self._blocks[: self._maps[-1] + 1]:
                    current = block(current)
                    maps.append(current)
                maps = [maps[i] for i in self._maps]
            else:
                maps = cast(Any, self.network).forward_intermediates(
                    standardized, indices=self._maps, stop_early=True, intermediates_only=True
                )
        return torch.cat([_over_positions(each) for each in maps], 1)

    def _through_blocks(self, standardized_BCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps at the end of each group of blocks, and the pooled features."""
        maps: list[Tensor] = []
        hooks = [block.register_forward_hook(lambda _module, _input, out: maps.append(out)) for block in self._blocks]
        try:
            pooled: Tensor = self.network(standardized_BCHW)
        finally:
            for hook in hooks:
                hook.remove()
        return maps, pooled

    @torch.no_grad()
    def _choose_blocks(self) -> list[int]:
        maps, _ = self._through_blocks(self.standardize(torch.zeros(1, 3, self.size, self.size)))
        return _early_and_middle([self.size / math.sqrt(each[0, 0].numel()) for each in maps])

    @torch.no_grad()
    def _choose_maps(self) -> list[int]:
        """Choose which maps to read, and see whether the head on top of them gives what the network gives.

        A few networks end differently when their maps are asked for; these take two passes.
        """
        ramp = torch.linspace(0, 255, 3 * self.size * self.size).view(1, 3, self.size, self.size)
        network, standardized = cast(Any, self.network), self.standardize(ramp)
        try:
            with self._autocast:
                final, maps = network.forward_intermediates(standardized)
                pooled = network.forward_head(final)
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"the network gives no intermediate maps ({str(error).partition(chr(10))[0]})") from None
        with self._autocast:
            expected = network(standardized)
        same = pooled.shape == expected.shape
        self._is_one_pass = same and bool((pooled - expected).norm() <= 1e-2 * expected.norm())
        return _early_and_middle([self.size / math.sqrt(each[0, 0].numel()) for each in maps])


def _blocks(network: nn.Module) -> tuple[nn.Module, ...]:
    """The groups of blocks of an EfficientNet or MobileNet; none for other networks.

    timm gives one map of each size, the last. Of two groups of one size the first tells more about how an image was
    made (docs/log.md), so both are read.
    """
    found = getattr(network, "blocks", None)
    return tuple(found) if hasattr(network, "conv_stem") and isinstance(found, nn.Sequential) else ()


def _early_and_middle(reductions: Sequence[float]) -> list[int]:
    """Which of a network's maps to read, from how many times smaller than the image they are.

    Of a pyramid those that are 4, 8 and 16 times smaller, to the nearest power of two; of a transformer, whose maps are
    all of one size, those a quarter, half and three quarters of the way.
    """
    powers = [round(math.log2(reduction)) for reduction in reductions]
    depth = len(powers)
    if len(set(powers)) == 1:
        return sorted({max(1, depth * quarter // 4) - 1 for quarter in (1, 2, 3)})
    found = [i for i, power in enumerate(powers) if 2**power in EARLY_AND_MIDDLE]
    return found if len(found) > 1 else list(range(depth - 1))


def _over_positions(map_BCHW: Tensor) -> Tensor:
    variance, mean = torch.var_mean(map_BCHW.float(), (2, 3), correction=0)
    return torch.cat((mean, variance.sqrt()), 1)


def _digest(text: str, network: nn.Module) -> str:
    hasher = hashlib.sha256(text.encode())
    for name, tensor in sorted(network.state_dict().items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()[:16]
