"""Decision thresholds on logits, set so that the estimated share of the pool is called synthetic."""

import math

import torch
from torch import Tensor, nn

RATE = 0.02  # share of the new batch in a threshold
ROUTE_MARGIN = 0.4  # times the synthetic share: part of the images called real that goes to the dummy head, too
# A round of bootstrapping takes half of the estimated synthetic images as examples, and never more than these strict
# quantiles of the pool (wider ones lost purity), but enough to learn from.
SYNTHETIC_BOUNDS = (0.03, 0.10)


def confident_share(share: float) -> float:
    """Share of the pool that counts as surely synthetic, where `share` of it is synthetic."""
    return min(max(share / 2, SYNTHETIC_BOUNDS[0]), SYNTHETIC_BOUNDS[1])


def threshold_above(scores_N: Tensor, share: float) -> Tensor:
    """Threshold (0-d) that leaves exactly a share of the scores above it, rounded to whole images.

    It lies midway between two neighbors; below all scores for a share of 1, above all of them for 0.
    """
    above = round(share * len(scores_N))
    ordered = scores_N.sort().values
    bounds = torch.cat((ordered[:1] - 2, ordered, ordered[-1:] + 2))
    return bounds[len(ordered) - above : len(ordered) - above + 2].mean()


class Thresholds(nn.Module):
    """Thresholds that follow the pool's logits; all state is in buffers.

    A detector that sees as many synthetic as real examples calls too few or too many images synthetic at a logit of 0,
    which is the threshold while no estimate is known. `middle` leaves the estimated share above it. `sure` is stricter:
    only images above it may enter the queue, because the top-scoring image of a small class in a batch is often real.
    `route` is looser: only images below it train the real head, because with a mostly synthetic pool many images just
    below the middle are synthetic too, and where their classes are foreign to the task they cost the real head more
    than a few real images bring (docs/log.md). These three are on the evidence that training goes by
    (`models.rsmatch`); `detector` is the middle of the detector's logit alone, by which the trained detector calls.
    """

    share: Tensor  # of the pool that is synthetic, estimated; nan while unknown
    interval: Tensor  # (2,) 95 % confidence
    detector: Tensor
    confident: Tensor  # share above `sure`
    middle: Tensor
    sure: Tensor
    route: Tensor

    def __init__(self, *, follows: bool = True) -> None:
        """`follows = False` keeps all thresholds where the paper has them: at 0, and no stricter one for the queue."""
        super().__init__()
        self._follows = follows
        self.register_buffer("share", torch.tensor(torch.nan))
        self.register_buffer("interval", torch.full((2,), torch.nan))
        self.register_buffer("detector", torch.tensor(0.0))
        self.register_buffer("confident", torch.tensor(torch.nan))
        self.register_buffer("middle", torch.tensor(0.0))
        self.register_buffer("sure", torch.tensor(-torch.inf))
        self.register_buffer("route", torch.tensor(0.0))

    def fit(self, share: float, interval: tuple[float, float]) -> None:
        """Take the estimate of the synthetic share and its interval."""
        self.share.fill_(share)
        self.interval.copy_(torch.tensor(interval))
        self.confident.fill_(confident_share(share))
        if self._follows:
            self.sure.fill_(0.0)

    @property
    def estimate(self) -> tuple[float | None, tuple[float, float] | None]:
        """Synthetic share of the pool and its 95 % interval; None while nothing is known."""
        share, low, high = (round(value, 4) for value in (self.share.item(), *self.interval.tolist()))
        return (None, None) if math.isnan(share) else (share, (low, high))

    @torch.no_grad()
    def follow(self, logits_M: Tensor, evidence_M: Tensor, rate: float = RATE) -> None:
        """Move towards the quantiles of a batch; nothing happens while no share is known."""
        if not self._follows:
            return
        known, share, confident = ~self.share.isnan(), self.share.nan_to_num(0.5), self.confident.nan_to_num(0.5)
        below = torch.stack((1 - share, 1 - confident, (1 - share) * (1 - ROUTE_MARGIN * share)))
        wanted = (torch.quantile(logits_M.float(), 1 - share), *torch.quantile(evidence_M.float(), below))
        for value, moved in zip((self.detector, self.middle, self.sure, self.route), wanted, strict=True):
            value.copy_(torch.where(known, value.lerp(moved, rate), value))

    @torch.no_grad()
    def calibrate(self, logits_N: Tensor) -> None:
        """Set the detector's threshold so that exactly the estimated share of these logits of the pool is above it."""
        if self.share.isnan() or not self._follows:
            return
        self.detector.copy_(threshold_above(logits_N, self.share.item()))
