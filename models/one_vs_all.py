"""Open-set baselines: training on a pool of which a part belongs to none of the labeled classes.

OpenMatch and IOMatch put further heads on the backbone's features, train them at the same time, and drop them
afterwards: only the real head predicts. To them an outlier is an image of no labeled class; they know nothing of how an
image was made. Both have K one-vs-all classifiers, which stand here.

Notation: labeled X of B images x with classes y of K; unlabeled U of M images u; weak views w and w', strong view A;
p the softmax of the real head; o_k and 1 - o_k the two outputs of the k-th binary classifier: inlier or outlier of
class k; CE the cross-entropy, also to soft targets; no target carries a gradient. Of the rules (`models.rules`) neither
takes one.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

OUTLIER_AT = 0.5  # probability from which an image is an outlier
OUTLIER, INLIER = 0, 1  # outputs of a binary classifier


class OpenLoss(NamedTuple):
    """Terms of the loss (0-d), weighted, and what the step saw of the unlabeled batch."""

    sup_real: Tensor
    sup_open: Tensor  # of the further heads, on labeled images
    self_real: Tensor
    self_open: Tensor  # of the further heads, on unlabeled images
    pseudo_probs: Tensor  # (M, K) that the pseudo-labels were made from
    inlier: Tensor  # (M,) bool
    weight: Tensor  # (M,) of the pseudo-label for the real head, 0 or 1

    @property
    def total(self) -> Tensor:
        """What is minimized."""
        return self.sup_real + self.sup_open + self.self_real + self.self_open

    @property
    def figures(self) -> dict[str, Tensor]:
        """What is logged."""
        confidence, pseudo_labels = self.pseudo_probs.max(1)
        return {
            "sup_real": self.sup_real.detach(),
            "sup_open": self.sup_open.detach(),
            "self_real": self.self_real.detach(),
            "self_open": self.self_open.detach(),
            "confidence": confidence.mean(),
            "confident_share": self.weight.mean(),
            "inlier_share": self.inlier.float().mean(),
            "pseudo_label_share": F.one_hot(pseudo_labels, self.pseudo_probs.shape[1]).float().mean(0),
        }


def binary_log_probs(logits_B2K: Tensor) -> Tensor:
    """Log-probabilities (B, 2, K) of K binary classifiers from logits (B, 2K): all outliers, then all inliers."""
    return F.log_softmax(logits_B2K.float().view(len(logits_B2K), 2, -1), dim=1)


def one_vs_all_loss(logits_B2K: Tensor, labels_B: Tensor) -> Tensor:
    """L_ova and L_mb: the classifier of the label, and of the others the one that is worst (hard negatives)."""
    outlier, inlier = binary_log_probs(logits_B2K).unbind(1)
    own = labels_B[:, None]
    return -(inlier.gather(1, own).squeeze(1) + outlier.scatter(1, own, 0.0).amin(1)).mean()
