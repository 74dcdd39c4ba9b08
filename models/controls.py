"""Controls of the benchmark: RSMatch with routes and detector losses that it does not have, to compare it with."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models import ranks
from models.batch import Batch
from models.ranks import Rng
from models.recipe import Controls
from models.rsmatch import Risk, RSMatch, queue_risk


class RoutedByTruth(RSMatch):
    """RSMatch that is told which images are synthetic, or told it shuffled within the batch; it trains no detector.

    An extra head by itself would gain from a shuffled truth as well.
    """

    has_detector = False

    @property
    def routing_start(self) -> int:
        """First step in which images may go to the dummy head."""
        return self.recipe.warmup_steps

    def route(self, number: int, batch: Batch, rng: Rng) -> tuple[Tensor | None, Tensor]:
        """No evidence, and the truth as the route."""
        assert batch.synthetic is not None
        g = batch.synthetic
        if self.controls.routing == "random":
            order = ranks.gather(rng.uniform(len(g))).argsort()
            g = ranks.own(ranks.gather(g.float())[order]) > 0
        return None, g & (number >= self.routing_start)


def risk(controls: Controls) -> Risk:
    """The detector's supervised loss for what it takes for synthetic."""
    match controls.detector_examples:
        case "queue" | "global-queue":
            return queue_risk
        case "nnpu":
            share_real = controls.share_real
            assert share_real is not None
            return lambda real_B, queued_Q, unlabeled_M, batch: nnpu_risk(real_B, unlabeled_M, share_real)
        case "truth":
            return lambda real_B, queued_Q, unlabeled_M, batch: true_risk(real_B, unlabeled_M, batch.synthetic)


def nnpu_risk(real_B: Tensor, unlabeled_M: Tensor, share_real: float) -> Tensor:
    """Non-negative risk from real examples and unlabeled images alone (nnPU, arXiv 1703.00593, algorithm 1).

    `share_real` is the prior: which share of the unlabeled images is real. Where the estimate of the synthetic side's
    risk falls below zero, overfitting has begun, and the step goes back up.
    """
    real, not_real = share_real * F.softplus(real_B).mean(), share_real * F.softplus(-real_B).mean()
    synthetic = F.softplus(-unlabeled_M).mean() - not_real
    return torch.where(ranks.gather(synthetic.detach()[None]).mean() >= 0, real + synthetic, -synthetic)


def true_risk(real_B: Tensor, unlabeled_M: Tensor, synthetic_M: Tensor | None) -> Tensor:
    """Mean cross-entropy of real and of synthetic images, the unlabeled ones by the truth: an upper bound."""
    assert synthetic_M is not None
    known = synthetic_M.float()
    real = F.softplus(real_B).sum() + (F.softplus(unlabeled_M) * (1 - known)).sum()
    synthetic = (F.softplus(-unlabeled_M) * known).sum()
    count = ranks.gather(known).sum() / ranks.world_size()  # of all ranks, for each of them
    return real / (len(real_B) + len(known) - count) + synthetic / count.clamp(min=1 / ranks.world_size())
