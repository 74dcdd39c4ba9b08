"""Training on several ranks, each with its part of every batch, to the same numbers as one process with all of it.

Nothing is drawn per rank: batches, augmentation and the queue are functions of one generator that all ranks hold in
the same state. Each draws for the whole batch and takes its own part; gradients, batch statistics and what the queue is
offered are exchanged. So checkpoints know no ranks, and labeled data is not multiplied by them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process, `rank`, among `world` that train together."""

    rank: int = 0
    world: int = 1

    def own(self, batch_B: Tensor) -> Tensor:
        """Own part of a global batch, whose size the number of ranks must divide."""
        size = len(batch_B) // self.world
        return batch_B[self.rank * size : (self.rank + 1) * size]

    def gather(self, part_B: Tensor) -> Tensor:
        """Parts of equal size from all ranks, in their order."""
        if self.world == 1:
            return part_B
        parts = [torch.empty_like(part_B) for _ in range(self.world)]
        dist.all_gather(parts, part_B.contiguous())
        return torch.cat(parts)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace float tensors by their mean over the ranks, in one exchange."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(like) for part, like in zip(parts, tensors, strict=True)])

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on any rank."""
        if self.world == 1:
            return flag
        raised = torch.tensor(float(flag), device=device)
        dist.all_reduce(raised)
        return raised.item() > 0


ALONE = Ranks()


@dataclass(frozen=True, slots=True)
class Rng:
    """Random numbers for the images of this rank's part of a batch."""

    generator: Generator
    ranks: Ranks = ALONE

    def uniform(self, count: int) -> Tensor:
        """(count,) float32 in [0, 1)."""
        size = count * self.ranks.world
        return self.ranks.own(torch.rand(size, generator=self.generator, device=self.generator.device))

    def integers(self, low: int, high: int, count: int) -> Tensor:
        """(count,) int64 in [low, high)."""
        size = (count * self.ranks.world,)
        return self.ranks.own(torch.randint(low, high, size, generator=self.generator, device=self.generator.device))


def synchronize_norms(network: nn.Module, ranks: Ranks) -> None:
    """Let batch norms see the global batch. PyTorch's own synchronized batch norm runs on GPUs alone."""
    if ranks.world == 1:
        return
    if next(network.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _GlobalBatchNorm


def sum_over(values: Tensor, ranks: Ranks) -> Tensor:
    """Sum of the ranks' tensors, through which gradients go back to all of them."""
    if ranks.world == 1:
        return values
    total: Tensor = _Sum.apply(values)
    return total


class _Sum(torch.autograd.Function):
    """Sum over the ranks, of values and of gradients."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm over the parts of all ranks, on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input.float()
        count = torch.full((1,), values.numel() / values.shape[1])
        sums = torch.cat((values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count))
        total: Tensor = _Sum.apply(sums)
        mean, square = (total[:-1] / total[-1]).chunk(2)
        variance = square - mean.square()
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        with torch.no_grad():
            unbiased = variance * total[-1] / (total[-1] - 1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = self.weight * scale
        shift = (self.bias if self.affine else 0) - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(input.dtype)
