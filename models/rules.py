"""Rules that weigh pseudo-labels: FixMatch's and its successors'.

A rule maps the probabilities of the weak views (M, K) to a weight (M,) in 0..1 for each unlabeled image. Some keep a
little state in buffers; under several ranks they gather what they average, so that all ranks hold the same. FixMatch
takes one rule, RSMatch one for each head.

    fixmatch   arXiv 2001.07685   one threshold tau
    flexmatch  arXiv 2110.08263   tau, lower for classes of which little has been learned yet
    freematch  arXiv 2205.07246   a threshold that follows the confidence, lower for rarer classes, and a fairness loss
    softmatch  arXiv 2301.10921   a Gaussian weight below the mean confidence, of aligned probabilities
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ranks
from models.recipe import Recipe

FOLLOW = 1 - 0.999  # share of the new batch in FreeMatch's and SoftMatch's averages
NUM_SIGMAS = 2.0  # SoftMatch's n_sigma
FAIRNESS = 0.05  # weight of FreeMatch's fairness loss


class FixMatch(nn.Module):
    """The weight is [max p >= tau]."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def weigh(self, probs_MK: Tensor, rows_M: Tensor, counted_M: Tensor) -> Tensor:
        """Weight (M,) float32 in 0..1 of each image that counts, and 0 of all others.

        `rows_M` are dataset indices; `counted_M` is bool, the images that are routed to the head of this rule.
        """
        return (counted_M & (probs_MK.amax(1) >= self.threshold)).float()

    def penalty(self, strong_MK: Tensor, weight_M: Tensor) -> Tensor:
        """Additional loss (0-d) on the logits of the strong views; 0 for most rules."""
        return strong_MK.new_zeros(())


class FlexMatch(FixMatch):
    """Threshold tau * beta(c) / (2 - beta(c)), beta(c) = sigma(c) / max(max sigma, unused) (eqs. 5-8, 11).

    sigma(c) is the number of images of the pool whose last confident pseudo-label is c, `unused` the number of those
    that have had none yet.
    """

    label: Tensor

    def __init__(self, threshold: float, num_classes: int, num_images: int) -> None:
        super().__init__(threshold)
        self.num_classes = num_classes
        self.register_buffer("label", torch.full((num_images,), num_classes, dtype=torch.int32))  # K: unused

    def weigh(self, probs_MK: Tensor, rows_M: Tensor, counted_M: Tensor) -> Tensor:
        confidence, label = probs_MK.max(1)
        # Counts of each class, the unused ones last. (bincount would make the host wait for a GPU.)
        sigma = probs_MK.new_zeros(self.num_classes + 1).index_add_(
            0, self.label, torch.ones_like(self.label, dtype=probs_MK.dtype)
        )
        beta = sigma[:-1] / sigma.amax()
        weight = counted_M & (confidence >= self.threshold * (beta / (2 - beta))[label])
        learned = counted_M & (confidence >= self.threshold)
        updated = torch.where(learned, label.to(torch.int32), self.label[rows_M])
        self.label[ranks.gather(rows_M)] = ranks.gather(updated)
        return weight.float()


class FreeMatch(FixMatch):
    """Threshold tau_t * p~(c) / max p~, tau_t the average confidence, p~ the average prediction (eqs. 5-8)."""

    confidence: Tensor
    probs: Tensor
    histogram: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(0.0)
        self.register_buffer("confidence", torch.tensor(1 / num_classes))
        self.register_buffer("probs", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("histogram", torch.full((num_classes,), 1 / num_classes))

    def weigh(self, probs_MK: Tensor, rows_M: Tensor, counted_M: Tensor) -> Tensor:
        confidence, label = probs_MK.max(1)
        every, counted = ranks.gather(probs_MK), ranks.gather(counted_M.float())
        of_class = F.one_hot(every.argmax(1), every.shape[1]).float()
        _follow(self.confidence, every.amax(1), counted)
        _follow(self.probs, every, counted)
        _follow(self.histogram, of_class, counted)
        threshold = self.confidence * self.probs / self.probs.amax()
        return (counted_M & (confidence >= threshold[label])).float()

    def penalty(self, strong_MK: Tensor, weight_M: Tensor) -> Tensor:
        """Fairness: predictions of the strong views should spread over the classes as the average ones do (eqs. 9-11).

        Both are divided by the frequency of each predicted class. Their cross-entropy is then maximized.
        """
        probs = strong_MK.softmax(1)
        chosen = weight_M[:, None]
        histogram = ranks.sum_over((F.one_hot(strong_MK.argmax(1), strong_MK.shape[1]) * chosen).sum(0))
        predicted = ranks.sum_over((probs * chosen).sum(0))
        expected = _normalized(self.probs / self.histogram.clamp(min=1e-6))
        actual = _normalized(predicted * torch.where(histogram > 0, 1 / histogram.clamp(min=1e-6), 0.0))
        return FAIRNESS * (expected * (actual + 1e-12).log()).sum() * (histogram.sum() > 0)


class SoftMatch(FixMatch):
    """Weight exp(-(max p - mu)^2 n^2 / (2 sigma^2)) below the mean mu, 1 above, where p is aligned (eqs. 7-9, 12)."""

    mean: Tensor
    variance: Tensor
    probs: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(0.0)
        self.register_buffer("mean", torch.tensor(1 / num_classes))
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("probs", torch.full((num_classes,), 1 / num_classes))

    def weigh(self, probs_MK: Tensor, rows_M: Tensor, counted_M: Tensor) -> Tensor:
        counted = ranks.gather(counted_M.float())
        _follow(self.probs, ranks.gather(probs_MK), counted)
        confidence = _normalized(probs_MK / self.probs).amax(1)  # uniform alignment, only for the weight
        every = ranks.gather(confidence)
        mean = (every * counted).sum() / counted.sum().clamp(min=1)
        _follow(self.mean, every, counted)
        _follow(self.variance, (every - mean).square(), counted)
        below = (confidence - self.mean).clamp(max=0)
        return counted_M * torch.exp(-below.square() * NUM_SIGMAS**2 / (2 * self.variance))


def build(recipe: Recipe, num_classes: int, num_images: int) -> FixMatch:
    """Build a recipe's rule for one head; `num_images` is the size of the pool (FlexMatch keeps a label of each)."""
    match recipe.rule:
        case "fixmatch":
            return FixMatch(recipe.confidence_threshold)
        case "flexmatch":
            return FlexMatch(recipe.confidence_threshold, num_classes, num_images)
        case "freematch":
            return FreeMatch(num_classes)
        case "softmatch":
            return SoftMatch(num_classes)


def _follow(average: Tensor, values: Tensor, counted: Tensor) -> None:
    """Move an average towards the mean of the values that count; if none counts, it stays."""
    total = counted.sum()
    weighed = values * counted.view(-1, *[1] * (values.ndim - 1))  # no matrix product: autocast would round it
    mean = weighed.sum(0) / total.clamp(min=1)
    average.lerp_(mean, FOLLOW * (total > 0))


def _normalized(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True).clamp(min=1e-12)
