"""Training on several ranks, each with its part of every batch, to the same numbers as one process with all of it.

Nothing is drawn per rank: batches, augmentation and the queue are functions of one generator that all ranks hold in
the same state. Each draws for the whole batch and takes its own part; gradients, batch statistics and what the queue is
offered are exchanged. So checkpoints know no ranks, and labeled data is not multiplied by them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor


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

    def from_first_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of rank 0, for what the ranks compute alike but for rounding."""
        if self.world == 1:
            return
        for tensor in tensors:
            dist.broadcast(tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor, 0)

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
