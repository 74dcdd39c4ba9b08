"""Exponential moving average of a network, which is what predicts."""

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def shadow(network: Network) -> Network:
    """Copy a network for averaging: in evaluation mode, without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def decay_at(step: int, decay: float) -> float:
    """Decay after `step` updates, warmed up so that the start, which knows nothing, is forgotten soon."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Set average <- decay * average + (1 - decay) * network; buffers (batch norm statistics) are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)
    torch._foreach_copy_(list(average.buffers()), list(network.buffers()))
