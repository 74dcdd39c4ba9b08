"""Training on several ranks, each with its part of every batch, to the same numbers as one process with all of it.

Nothing is drawn per rank: batches, augmentation and the queue are functions of one generator that all ranks hold in
the same state. Each rank draws for the whole batch and takes its own part. The ranks exchange gradients, batch
statistics and what the queue is offered. So a checkpoint does not depend on the number of ranks, and labeled data is
not multiplied by it.

`torch.distributed` knows the ranks. Without a process group every function here is the identity.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among those that train together, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def own(batch_B: Tensor) -> Tensor:
    """Own part of a global batch, whose size the number of ranks must divide."""
    if world_size() == 1:
        return batch_B
    size = len(batch_B) // world_size()
    return batch_B[rank() * size : (rank() + 1) * size]


def gather(part_B: Tensor) -> Tensor:
    """Concatenate parts of equal size from all ranks, in the order of the ranks."""
    if world_size() == 1:
        return part_B
    parts = [torch.empty_like(part_B) for _ in range(world_size())]
    dist.all_gather(parts, part_B.contiguous())
    return torch.cat(parts)


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace float tensors by their mean over the ranks, in one exchange."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(like) for part, like in zip(parts, tensors, strict=True)])


def from_first_(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of rank 0: for values that the ranks compute alike up to rounding."""
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor, 0)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank. All ranks wait for each other here."""
    if world_size() == 1:
        return flag
    raised = torch.tensor(float(flag), device=device)
    dist.all_reduce(raised)
    return raised.item() > 0


def sum_over(values: Tensor) -> Tensor:
    """Sum of the ranks' tensors; gradients flow back to all ranks."""
    if world_size() == 1:
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


@dataclass(frozen=True, slots=True)
class Rng:
    """Random numbers for images: for this rank's part of a batch, or for a batch that is not shared with others."""

    generator: Generator
    is_shared: bool = True

    def uniform(self, count: int) -> Tensor:
        """(count,) float32 in [0, 1)."""
        return self._own(torch.rand(self._size(count), generator=self.generator, device=self.generator.device))

    def integers(self, low: int, high: int, count: int) -> Tensor:
        """(count,) int64 in [low, high)."""
        size, device = (self._size(count),), self.generator.device
        return self._own(torch.randint(low, high, size, generator=self.generator, device=device))

    def _size(self, count: int) -> int:
        return count * world_size() if self.is_shared else count

    def _own(self, drawn: Tensor) -> Tensor:
        return own(drawn) if self.is_shared else drawn
