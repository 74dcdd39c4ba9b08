"""RSMatch: semi-supervised learning from a pool that synthetic images have contaminated (arXiv 2405.16930).

A detector says for each unlabeled image whether it is real or synthetic. Real ones train the real head by
self-training, as FixMatch does (arXiv 2001.07685); synthetic ones train the dummy head. Only the real head predicts, so
that synthetic images reach what it says through the backbone alone. The detector is trained at the same time: its real
examples are the labeled images, its synthetic ones come from the class-wise synthetic queue (`models.csqueue`).

Notation: labeled X of B images x with classes y; unlabeled U of M images u; weak view w, strong view A; p_r and p_d the
softmax of the real and the dummy head; s(u) the detector's probability that u is synthetic; tau the confidence
threshold.

    sup_real   = mean CE(p_r(w x), y)                        sup_dummy = mean CE(p_d(w x), y)
    g(u)       = [s(u) >= 0.5]                               1 = goes to the dummy head; no gradient
    self_real  = 1/M sum (1 - g) [max p_r(w u) >= tau] CE(p_r(A u), argmax p_r(w u))
    self_dummy = 1/M sum      g  [max p_d(w u) >= tau] CE(p_d(A u), argmax p_d(w u))
    det_sup    = mean CE(D(A x), real) + mean CE(D(A q), synthetic)
    det_cons   = 1/M sum [max(s, 1 - s) >= tau] CE(D(A u), [s >= 0.5])

The paper's equations are not public: the losses follow its text and figures, and where these are silent the nearest
literature.
FixMatch is the case g = 0 without a dummy head; supervised training is the case without U.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.networks import Classifier, Detector


class ClassifierLoss(NamedTuple):
    """Terms of the classifier's loss (0-d) and what the step saw of the unlabeled batch."""

    sup_real: Tensor
    sup_dummy: Tensor
    self_real: Tensor
    self_dummy: Tensor
    pseudo_labels: Tensor  # (M,) int64, argmax p_r(w u): the pseudo-classes of the queue
    confidence: Tensor  # (M,) max p_r(w u)
    confident: Tensor  # (M,) bool: passed the threshold of the head that it was routed to

    @property
    def total(self) -> Tensor:
        """What is minimized."""
        return self.sup_real + self.sup_dummy + self.self_real + self.self_dummy


class DetectorLoss(NamedTuple):
    """Terms of the detector's loss (0-d)."""

    sup: Tensor
    cons: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimized."""
        return self.sup + self.cons


def supervised_loss(classifier: Classifier, labeled_BCHW: Tensor, labels_B: Tensor) -> Tensor:
    """sup_real alone: the baseline without unlabeled images."""
    return F.cross_entropy(classifier(labeled_BCHW).real, labels_B)


def classifier_loss(
    classifier: Classifier,
    labeled_BCHW: Tensor,
    labels_B: Tensor,
    weak_MCHW: Tensor,
    strong_MCHW: Tensor,
    synthetic_M: Tensor | None,
    *,
    threshold: float,
) -> ClassifierLoss:
    """Losses of both heads on uint8 views; `synthetic_M` is the route g(u) as bool, None for FixMatch.

    One forward pass for all views, so that they share the batch norm's statistics, as FixMatch implementations do.
    """
    num_labeled, num_unlabeled = len(labeled_BCHW), len(weak_MCHW)
    heads = classifier(torch.cat((labeled_BCHW, weak_MCHW, strong_MCHW)))
    real, real_weak, real_strong = heads.real.split((num_labeled, num_unlabeled, num_unlabeled))
    dummy, dummy_weak, dummy_strong = heads.dummy.split((num_labeled, num_unlabeled, num_unlabeled))

    confidence, pseudo_labels = real_weak.detach().softmax(1).max(1)
    to_real = torch.ones_like(confidence, dtype=torch.bool) if synthetic_M is None else ~synthetic_M
    confident_real = to_real & (confidence >= threshold)
    self_real = _self_training(real_strong, pseudo_labels, confident_real)
    sup_real = F.cross_entropy(real, labels_B)
    if synthetic_M is None:
        zero = torch.zeros_like(sup_real)
        return ClassifierLoss(sup_real, zero, self_real, zero, pseudo_labels, confidence, confident_real)

    confidence_dummy, pseudo_labels_dummy = dummy_weak.detach().softmax(1).max(1)
    confident_dummy = synthetic_M & (confidence_dummy >= threshold)
    self_dummy = _self_training(dummy_strong, pseudo_labels_dummy, confident_dummy)
    sup_dummy = F.cross_entropy(dummy, labels_B)
    confident = confident_real | confident_dummy
    return ClassifierLoss(sup_real, sup_dummy, self_real, self_dummy, pseudo_labels, confidence, confident)


def detector_loss(
    detector: Detector,
    real_BCHW: Tensor,
    queued_QCHW: Tensor,
    strong_MCHW: Tensor,
    prob_synthetic_M: Tensor,
    *,
    threshold: float,
) -> DetectorLoss:
    """Losses on uint8 views (flip, crop, cutout) of real examples, the queue's entries and unlabeled images.

    `prob_synthetic_M` is s(u) of the weak views of the same unlabeled images, without gradient.
    """
    logits = detector(torch.cat((real_BCHW, queued_QCHW, strong_MCHW)))
    real, queued, strong = logits.split((len(real_BCHW), len(queued_QCHW), len(strong_MCHW)))
    # CE(D, real) = -log(1 - s) = softplus(logit), CE(D, synthetic) = softplus(-logit)
    sup = F.softplus(real).mean() + F.softplus(-queued).mean()
    confident = torch.maximum(prob_synthetic_M, 1 - prob_synthetic_M) >= threshold
    target = (prob_synthetic_M >= 0.5).float()
    cons = (F.binary_cross_entropy_with_logits(strong, target, reduction="none") * confident).mean()
    return DetectorLoss(sup, cons)


def _self_training(strong_MK: Tensor, pseudo_labels_M: Tensor, mask_M: Tensor) -> Tensor:
    """Cross-entropy to the pseudo-labels where the mask holds, averaged over all M."""
    return (F.cross_entropy(strong_MK, pseudo_labels_M, reduction="none") * mask_M).mean()
