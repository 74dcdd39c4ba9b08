"""IOMatch (arXiv 2308.13168): projection z of two layers, K binary classifiers on z without bias, an open-set head q of
K + 1 on z whose last class are the outliers

    L_s   = mean CE(p(w x), y)                                                              (1)
    L_mb  = 1/B sum -log o_y(w x) - min_{k != y} log(1 - o_k(w x))                          (2)
    p~    = p(w u), aligned to a uniform distribution over the classes
    q~    = (p~_1 o_1, ..., p~_K o_K, S), S = sum_k p~_k (1 - o_k), o of w u                (3)-(5)
    L_op  = 1/M sum [max q~ >= tau_q] CE(q(A u), q~)                                        (6)
    L_ui  = 1/M sum [max p~ >= tau_p] [S < 0.5] CE(p(A u), p~)                              (7)
    L     = L_s + L_mb + L_ui + L_op                                                        (8)

  As the authors' code (nukezil/IOMatch) has it, the alignment divides by the mean prediction of the last 128 batches.
  Where that code departs from the paper, the paper is followed: it leaves L_op out for the first 0.4 % of the steps,
  its settings for CIFAR-10 turn the alignment off, and others add a rotation task.

Notation as in `models.one_vs_all`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ranks
from models.classifier import TwoHeaded
from models.one_vs_all import INLIER, OUTLIER_AT, OpenLoss, binary_log_probs, one_vs_all_loss

TAU_Q = 0.5  # threshold of the open-set targets; tau_p is the recipe's
PROJECTION = 128  # width of z
ALIGN_OVER = 128  # batches whose mean prediction aligns


def open_targets(probs_MK: Tensor, inlier_MK: Tensor) -> Tensor:
    """q~ (M, K+1) from p~ and o; sums to 1."""
    return torch.cat((probs_MK * inlier_MK, (probs_MK * (1 - inlier_MK)).sum(1, keepdim=True)), dim=1)


def soft_loss(logits_MC: Tensor, targets_MC: Tensor, counted_M: Tensor) -> Tensor:
    """L_op and L_ui: cross-entropy to soft targets of the images that count, averaged over all."""
    return (F.cross_entropy(logits_MC.float(), targets_MC, reduction="none") * counted_M).mean()


class IOMatch(nn.Module):
    """Soft targets of K classes and "outlier" for an open-set head; those that pass two filters for the real head.

    `weak_gradient` as in `models.passes.forward`.
    """

    num_weak = 1
    history: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        threshold: float,
        *,
        weak_gradient: bool = True,
    ) -> None:
        super().__init__()
        self.threshold, self.weak_gradient = threshold, weak_gradient
        self.projection = nn.Sequential(
            nn.Linear(num_features, num_features), nn.ReLU(), nn.Linear(num_features, PROJECTION)
        )
        self.binary = nn.Linear(PROJECTION, 2 * num_classes, bias=False)
        self.open_set = nn.Linear(PROJECTION, num_classes + 1)
        nn.init.xavier_normal_(self.binary.weight)
        nn.init.xavier_normal_(self.open_set.weight)
        nn.init.zeros_(self.open_set.bias)
        self.register_buffer("history", torch.zeros(ALIGN_OVER, num_classes))  # zeros: no batch yet

    def align(self, probs_MK: Tensor) -> Tensor:
        """Take a batch's predictions, without gradient, into the history, and divide them by its mean."""
        mean = ranks.gather(probs_MK).mean(0, keepdim=True)
        self.history.copy_(torch.cat((self.history[1:], mean)))
        aligned = probs_MK / self.history.sum(0).clamp(min=1e-6)
        return aligned / aligned.sum(1, keepdim=True)

    def losses(
        self,
        classifier: TwoHeaded,
        labeled_BCHW: Tensor,
        labels_B: Tensor,
        weak_MCHW: Sequence[Tensor],
        strong_MCHW: Tensor,
        *,
        warmed_up: bool,
    ) -> OpenLoss:
        """Losses on uint8 views, of which one is a weak one; the same from the first step on, warmed up or not."""
        (weak,) = weak_MCHW
        sizes = [len(labeled_BCHW), len(weak), len(strong_MCHW)]
        if self.weak_gradient:
            x, u_weak, u_strong = torch.split(classifier.embed(torch.cat((labeled_BCHW, weak, strong_MCHW))), sizes)
        else:
            with torch.no_grad():
                u_weak = classifier.embed(weak)
            x, u_strong = torch.split(classifier.embed(torch.cat((labeled_BCHW, strong_MCHW))), sizes[::2])

        probs = self.align(classifier.real(u_weak).detach().float().softmax(1))
        binary_weak = self.binary(self.projection(u_weak)).detach()
        targets = open_targets(probs, binary_log_probs(binary_weak)[:, INLIER].exp())
        inlier = targets[:, -1] < OUTLIER_AT
        weight = (inlier & (probs.amax(1) >= self.threshold)).float()
        return OpenLoss(
            sup_real=F.cross_entropy(classifier.real(x).float(), labels_B),
            sup_open=one_vs_all_loss(self.binary(self.projection(x)), labels_B),
            self_real=soft_loss(classifier.real(u_strong), probs, weight),
            self_open=soft_loss(self.open_set(self.projection(u_strong)), targets, targets.amax(1) >= TAU_Q),
            pseudo_probs=probs,
            inlier=inlier,
            weight=weight,
        )
