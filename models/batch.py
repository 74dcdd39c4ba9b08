"""What goes into a training step and comes out of it: data, augmented views, and the classifier's losses."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Batch(NamedTuple):
    """uint8 images for the classifier, native tiles for the detector, and the dataset indices of the unlabeled ones."""

    labeled: Tensor  # (B, 3, S, S)
    labeled_tiles: Tensor  # (B, 3, T, T)
    labels: Tensor  # (B,) int64
    unlabeled: Tensor  # (M, 3, S, S)
    unlabeled_tiles: Tensor  # (M, 3, T, T)
    rows: Tensor  # (M,) int64, dataset indices of the unlabeled images
    synthetic: Tensor | None = None  # (M,) bool, the truth, for controls that need it


class Views(NamedTuple):
    """Augmented uint8 views for the classifier."""

    labeled: Tensor  # (B, 3, S, S) weak
    labels: Tensor  # (B,) int64
    weak: Tensor  # (M, 3, S, S)
    strong: Tensor  # (M, 3, S, S)
    rows: Tensor  # (M,) int64, dataset indices of the unlabeled images


class ClassifierLoss(NamedTuple):
    """Terms of the classifier's loss (0-d), and what the step saw of the unlabeled batch."""

    sup_real: Tensor
    sup_dummy: Tensor
    self_real: Tensor
    self_dummy: Tensor
    pseudo_labels: Tensor  # (M,) int64, argmax p_r(w u): the pseudo-classes of the queue
    confidence: Tensor  # (M,) max p_r(w u)
    weight: Tensor  # (M,) of the pseudo-label by the head that the image was routed to, 0..1
    penalty: Tensor  # further loss of the rules

    @property
    def total(self) -> Tensor:
        """What is minimized."""
        return self.sup_real + self.sup_dummy + self.self_real + self.self_dummy + self.penalty

    def figures(self, num_classes: int) -> dict[str, Tensor]:
        """What is logged of the real head."""
        return {
            "sup_real": self.sup_real.detach(),
            "self_real": self.self_real.detach(),
            "confidence": self.confidence.mean(),
            "confident_share": self.weight.mean(),
            "pseudo_label_share": F.one_hot(self.pseudo_labels, num_classes).float().mean(0),
        }
