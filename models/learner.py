"""A network under training: the network, its moving average, which predicts, and its optimizer."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from models import ranks

Network = TypeVar("Network", bound=nn.Module)


class Learner(Generic[Network]):
    """One network with what trains it. Several ranks share its gradients."""

    def __init__(self, network: Network, average: Network, optimizer: torch.optim.Optimizer) -> None:
        self.network, self.average, self.optimizer = network.train(), average, optimizer

    def descend(self, loss: Tensor, rate: float, decay: float) -> None:
        """Take one step down the loss (0-d) at a learning rate; the average keeps `decay` of what it was."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = []
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            gradients += [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        ranks.average_(gradients)
        self.optimizer.step()
        self._follow(decay)

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        """Set average <- decay * average + (1 - decay) * network; buffers (batch norm statistics) are copied."""
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1.0 - decay)
        torch._foreach_copy_(list(self.average.buffers()), list(self.network.buffers()))

    def parts(self, name: str) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """All that a checkpoint needs, by names that begin with `name`."""
        return {name: self.network, f"{name}_ema": self.average, f"{name}_optimizer": self.optimizer}


def averaged(network: Network) -> Network:
    """Copy a network for averaging: in evaluation mode, without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def sgd(network: nn.Module, *, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Nesterov SGD, as FixMatch trains classifiers."""
    groups = _decay_weights_only(network, weight_decay)
    return torch.optim.SGD(groups, momentum=momentum, nesterov=True, lr=1.0, fused=True)


def adamw(network: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW, which trains the detector."""
    return torch.optim.AdamW(_decay_weights_only(network, weight_decay), lr=1.0, fused=True)


def cosine(step: int, num_steps: int, peak: float) -> float:
    """FixMatch's learning rate (arXiv 2001.07685): peak * cos(7 pi step / (16 num_steps))."""
    return peak * math.cos(7 * math.pi * step / (16 * num_steps))


def decay_at(step: int, decay: float) -> float:
    """Decay of the average after `step` updates, warmed up so that the untrained start is soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


def _decay_weights_only(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups: weight decay on weights, none on biases and batch norms, as FixMatch does."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
