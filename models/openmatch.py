"""OpenMatch (arXiv 2105.14148): K binary classifiers, a linear head of 2K without bias

    L_ova = 1/B sum -log o_y(w x) - min_{k != y} log(1 - o_k(w x))                          (1)
    L_em  = 1/M sum mean_k -(o_k log o_k + (1 - o_k) log(1 - o_k)), mean of w u and w' u    (2)
    L_oc  = 1/M sum sum_k 2 (o_k(w u) - o_k(w' u))^2, the factor for both outputs           (3)
    L_fm  = mean CE(p(A u), c) over pseudo-inliers: c = argmax p(w u), o_c(w u) > 0.5; none during the warm-up
    L     = mean CE(p(w x), y) + L_ova + lambda_em L_em + lambda_oc L_oc + L_fm

  As the authors' code (VisionLearningGroup/OP_Match) has it: L_em is a mean over k, and a pseudo-inlier needs no
  further confidence (the threshold there is 0). That code selects pseudo-inliers between epochs, by the averaged
  network, and draws batches of them alone; here each batch is sifted by the network itself and L_fm divided by how
  many pass, which gives it the same weight. The paper's text was not at hand; the numbers are those by which IOMatch's
  code cites it.

Notation as in `models.one_vs_all`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ranks
from models.classifier import TwoHeaded
from models.one_vs_all import OUTLIER, OUTLIER_AT, OpenLoss, binary_log_probs, one_vs_all_loss

LAMBDA_EM = 0.1  # weight of the entropy
LAMBDA_OC = 0.5  # weight of the consistency, for CIFAR-10 (1 for CIFAR-100)


def entropy_loss(logits_M2K: Tensor) -> Tensor:
    """L_em of one view."""
    log_probs = binary_log_probs(logits_M2K)
    return -(log_probs.exp() * log_probs).sum(1).mean()


def consistency_loss(logits_M2K: Tensor, again_M2K: Tensor) -> Tensor:
    """L_oc of two views: without sharpening, gradients to both."""
    difference = binary_log_probs(logits_M2K).exp() - binary_log_probs(again_M2K).exp()
    return difference.square().sum((1, 2)).mean()


class OpenMatch(nn.Module):
    """FixMatch on what K one-vs-all classifiers hold for inliers; its weak views are trained on, all of them."""

    num_weak = 2

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.one_vs_all = nn.Linear(num_features, 2 * num_classes, bias=False)
        nn.init.xavier_normal_(self.one_vs_all.weight)

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
        """Losses on uint8 views, of which two are weak ones, in one forward pass (see `models.passes`)."""
        views = (labeled_BCHW, *weak_MCHW, strong_MCHW)
        features = classifier.embed(torch.cat(views))
        sizes = [len(view) for view in views]
        real, real_weak, _, real_strong = classifier.real(features).float().split(sizes)
        open_, open_weak, open_again, _ = self.one_vs_all(features).float().split(sizes)

        probs = real_weak.detach().softmax(1)
        pseudo_labels = probs.argmax(1)
        outlier = binary_log_probs(open_weak.detach())[:, OUTLIER].exp()
        inlier = outlier.gather(1, pseudo_labels[:, None]).squeeze(1) < OUTLIER_AT
        weight = inlier.float() * warmed_up
        share = ranks.gather(weight).mean()
        strong = F.cross_entropy(real_strong, pseudo_labels, reduction="none")
        entropy = (entropy_loss(open_weak) + entropy_loss(open_again)) / 2
        return OpenLoss(
            sup_real=F.cross_entropy(real, labels_B),
            sup_open=one_vs_all_loss(open_, labels_B),
            self_real=(strong * weight).mean() / share.clamp(min=1e-6),
            self_open=LAMBDA_EM * entropy + LAMBDA_OC * consistency_loss(open_weak, open_again),
            pseudo_probs=probs,
            inlier=inlier,
            weight=weight,
        )
