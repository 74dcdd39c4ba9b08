"""Where logits part real from synthetic: the detector's, and those by which training goes."""

import math

import torch
from torch import Tensor, nn

from models import residual

CUT_RATE = 0.02  # share of the new batch in the cut
STRICTNESS = 0.4  # of the route, times the synthetic share


class Cut(nn.Module):
    """The logit that parts real from synthetic, so that the share called synthetic is the one that was estimated.

    A detector that learns from both sides equally often calls too few or too many at a logit of 0, which is the cut
    while no estimate is known. What training goes by, the suspicion (`RSMatch.step`), has a cut of its own. Further up,
    `sure` leaves above it what may enter the queue: the best of a batch's few images of a class is often a real one,
    and dilutes a queue that the bootstrap left pure. Further down, `route` leaves below it what trains the real head:
    the more of a pool is synthetic, the more of it is among what lies just below the cut, and where its classes are
    others it costs the real head more than a few real images bring (docs/log.md).
    """

    share: Tensor
    interval: Tensor
    logit: Tensor  # of the detector alone
    taken: Tensor
    suspicion: Tensor
    sure: Tensor
    route: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.tensor(torch.nan))
        self.register_buffer("interval", torch.full((2,), torch.nan))
        self.register_buffer("logit", torch.tensor(0.0))
        self.register_buffer("taken", torch.tensor(torch.nan))
        self.register_buffer("suspicion", torch.tensor(0.0))
        self.register_buffer("sure", torch.tensor(-torch.inf))
        self.register_buffer("route", torch.tensor(0.0))

    def settle(self, share: float, interval: tuple[float, float]) -> None:
        """Take the estimate of the synthetic share and its interval."""
        self.share.fill_(share)
        self.interval.copy_(torch.tensor(interval))
        self.taken.fill_(residual.share_taken(share))
        self.sure.fill_(0.0)

    @property
    def estimate(self) -> tuple[float | None, tuple[float, float] | None]:
        """Synthetic share of the pool and its 95 % interval; None while nothing is known."""
        share, low, high = (round(value, 4) for value in (self.share.item(), *self.interval.tolist()))
        return (None, None) if math.isnan(share) else (share, (low, high))

    @torch.no_grad()
    def follow(self, logits_M: Tensor, suspicion_M: Tensor, rate: float = CUT_RATE) -> None:
        """Move towards the quantiles of a batch; nothing happens while no share is known."""
        known, share, taken = ~self.share.isnan(), self.share.nan_to_num(0.5), self.taken.nan_to_num(0.5)
        below = torch.stack((1 - share, 1 - taken, (1 - share) * (1 - STRICTNESS * share)))
        wanted = (torch.quantile(logits_M.float(), 1 - share), *torch.quantile(suspicion_M.float(), below))
        for value, moved in zip((self.logit, self.suspicion, self.sure, self.route), wanted, strict=True):
            value.copy_(torch.where(known, value.lerp(moved, rate), value))
