"""A network under training: the network, its moving average, which predicts, and its optimizer."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from models import ranks
from models.classifier import Classifier

Network = TypeVar("Network", bound=nn.Module)


class Fitted(Generic[Network]):
    """A network that learns no more, in the place of one under training: it is its own average."""

    def __init__(self, network: Network) -> None:
        self.network = self.average = network

    def parts(self, name: str) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """All that a checkpoint needs, by name."""
        return {name: self.network}


class Learner(Generic[Network]):
    """One network with what trains it. Several ranks share its gradients."""

    def __init__(self, network: Network, average: Network, optimizer: torch.optim.Optimizer) -> None:
        self.network, self.average, self.optimizer = network.train(), average, optimizer

    def descend(self, loss: Tensor, rate: float, decay: float) -> None:
        """Take one step down the loss (0-d) at a learning rate; the average keeps `decay` of what it was.

        A group of parameters may have a share of the rate, `rate_share`.
        """
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = []
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_share"]
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


def sgd(network: nn.Module, *, momentum: float, weight_decay: float, backbone_rate: float = 1.0) -> torch.optim.SGD:
    """Nesterov SGD, as FixMatch trains classifiers; a pretrained backbone has the share `backbone_rate` of the rate."""
    groups = _groups(network, weight_decay, backbone_rate)
    return torch.optim.SGD(groups, momentum=momentum, nesterov=True, lr=1.0, fused=True)


def adamw(network: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW, which trains the detector."""
    return torch.optim.AdamW(_groups(network, weight_decay, 1.0), lr=1.0, fused=True)


def cosine(step: int, num_steps: int, peak: float) -> float:
    """FixMatch's learning rate (arXiv 2001.07685): peak * cos(7 pi step / (16 num_steps))."""
    return peak * math.cos(7 * math.pi * step / (16 * num_steps))


def decay_at(step: int, decay: float) -> float:
    """Decay of the average after `step` updates, warmed up so that the untrained start is soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


def _groups(network: nn.Module, weight_decay: float, backbone_rate: float) -> list[dict[str, object]]:
    """Parameter groups: weight decay on weights, none on biases and norms, as FixMatch does.

    Pretrained backbones come in groups of their own, with the share `backbone_rate` of the learning rate.
    """
    classifiers = [module for module in network.modules() if isinstance(module, Classifier) and module.is_pretrained]
    backbones = [parameter for classifier in classifiers for parameter in classifier.backbone.parameters()]
    started = {id(parameter) for parameter in backbones}
    others = [parameter for parameter in network.parameters() if id(parameter) not in started]
    groups: list[dict[str, object]] = []
    for parameters, share in ((others, 1.0), (backbones, backbone_rate)):
        for has_decay in (True, False) if parameters else ():
            chosen = [parameter for parameter in parameters if (parameter.ndim > 1) == has_decay]
            decay = weight_decay if has_decay else 0.0
            groups.append({"params": chosen, "weight_decay": decay, "rate_share": share})
    return groups
