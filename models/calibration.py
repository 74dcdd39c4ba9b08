"""How sure a classifier may be of its labels: learned from labeled images that it has not been trained on.

- `fit` finds the calibration, after which a confidence of .8 is right in 80 % of the cases: temperature scaling (Guo et
  al. 2017) mixed with a uniform share (as in Zhang et al. 2020), because a few confident errors are in every set.
- `weigh` makes the labeled images stand for the mix of classes of a pool.
- `limit` finds the confidence from which labels are right as often as asked for, with a promised probability: learn,
  then test (Angelopoulos et al. 2021), in a fixed sequence with exact binomial p-values.
- `errors` finds labels of the labeled set that are likely wrong (confident learning, Northcutt et al. 2021).
- `nearest` says how far an image is from all labeled ones, for images of none of the classes.

All of it takes the labeled images of a class to be a random sample of the pool's real images of that class.

Shape suffixes: L labeled images, N images of a pool, K classes, B bins, D features.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 10  # labeled images, below which nothing is calibrated
FEWEST_OF_CLASS = 5  # labeled images, below which no label of a class is called wrong
NEIGHBORS = 3  # whose mean distance says how far an image is from the labeled ones
_TEMPERATURES = tuple(0.02 * 1.08**i for i in range(100))  # to 41
_UNIFORM = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.14, 0.18, 0.24, 0.3)
_CHUNK = 4096


class Calibration(NamedTuple):
    """From logits to probabilities that are as often right as they say."""

    temperature: float = 1.0
    uniform: float = 0.0  # share of the uniform distribution that is mixed in

    def probs(self, logits_NK: Tensor) -> Tensor:
        """Calibrated probabilities (N, K) float32; their order is that of the logits."""
        probs_NK = (logits_NK.double() / self.temperature).softmax(1)
        return ((1 - self.uniform) * probs_NK + self.uniform / logits_NK.shape[1]).float()


def fit(logits_LK: Tensor, labels_L: Tensor, weights_L: Tensor | None = None) -> Calibration:
    """Fit a calibration to logits of unseen images by likelihood; the identity for fewer than FEWEST images.

    Targets are smoothed a little, after Platt (1999): a set without an error does not show that there are none.
    """
    num, classes = logits_LK.shape
    if num < FEWEST:
        return Calibration()
    weights = torch.ones(num, dtype=torch.float64) if weights_L is None else weights_L.double()
    smooth = 1 / (num + 2)
    target_LK = F.one_hot(labels_L, classes).double() * (1 - smooth) + smooth / classes
    best, least = Calibration(), math.inf
    for temperature in _TEMPERATURES:
        probs_LK = (logits_LK.double() / temperature).softmax(1)
        for uniform in _UNIFORM:
            mixed_LK = ((1 - uniform) * probs_LK + uniform / classes).clamp(min=1e-30)
            loss = float(-(weights[:, None] * target_LK * mixed_LK.log()).sum())
            if loss < least:
                best, least = Calibration(temperature, uniform), loss
    return best


def cross_calibrated(logits_LK: Tensor, labels_L: Tensor, folds: int = 5) -> Tensor:
    """Calibrated probabilities (L, K), each by a calibration that has not seen the image."""
    fold_L = torch.arange(len(labels_L)) % folds
    probs_LK = torch.empty(logits_LK.shape)
    for fold in range(folds):
        mine = fold_L == fold
        probs_LK[mine] = fit(logits_LK[~mine], labels_L[~mine]).probs(logits_LK[mine])
    return probs_LK


def weigh(labels_L: Tensor, mix_K: Tensor) -> Tensor:
    """Weights (L,) float64 of mean 1 with which the labeled images have the class mix (K,) of a pool."""
    counts_K = labels_L.bincount(minlength=len(mix_K)).double()
    weights_L = (mix_K.double() / counts_K.clamp(min=1))[labels_L]
    return weights_L * len(labels_L) / weights_L.sum()


def mix(probs_NK: Tensor, probs_LK: Tensor, mix_K: Tensor) -> Tensor:
    """Class mix (K,) float64 of a pool, by calibrated probabilities of its images and of labeled ones with a known mix.

    That a classifier favors a class shows in both means and cancels. This is the first step of maximum likelihood
    (Saerens et al. 2002): it underestimates how far the pool is from the labeled images, but iterating makes much of
    the errors of a classifier that knows little (docs/log.md).
    """
    found_K = mix_K.double() * probs_NK.double().mean(0) / probs_LK.double().mean(0).clamp(min=1e-9)
    return found_K / found_K.sum()


class Share(NamedTuple):
    """An estimated share with its 95 % interval, all 0..1, and how many equal trials it rests on."""

    value: float
    low: float
    high: float
    trials: float


def share(right_L: Tensor, weights_L: Tensor, among: float = math.inf) -> Share:
    """Weighted share of `right_L` (L,) bool with Wilson's interval (1927) at the effective number of trials.

    The interval is for the share `among` so many other images, which differs by chance from that of all.
    """
    total = float(weights_L.sum())
    if not total:
        return Share(0.5, 0.0, 1.0, 0.0)
    value = float((weights_L * right_L).sum()) / total
    trials = 1 / (float((weights_L**2).sum()) / total**2 + 1 / among)
    z2 = 1.959963984540054**2
    middle = (value * trials + z2 / 2) / (trials + z2)
    half = math.sqrt(z2 * (value * (1 - value) * trials + z2 / 4)) / (trials + z2)
    return Share(value, max(0.0, middle - half), min(1.0, middle + half), trials)


class Bin(NamedTuple):
    """Images of neighboring confidences."""

    confidence: float  # mean
    accuracy: float
    num_images: int


def bins(confidence_L: Tensor, right_L: Tensor) -> list[Bin]:
    """Reliability: bins of equally many images, about twenty or more in each, at most ten."""
    number = max(1, min(10, len(confidence_L) // 20))
    order = confidence_L.argsort(stable=True)
    return [
        Bin(float(confidence_L[part].double().mean()), float(right_L[part].double().mean()), len(part))
        for part in order.tensor_split(number)
        if len(part)
    ]


def calibration_error(confidence_L: Tensor, right_L: Tensor) -> float:
    """Expected calibration error over `bins`: the mean distance of confidence and accuracy."""
    parts = bins(confidence_L, right_L)
    gaps = sum(part.num_images * abs(part.confidence - part.accuracy) for part in parts)
    return gaps / max(1, len(confidence_L))


def calibration_error_interval(confidence_L: Tensor, right_L: Tensor, rounds: int = 400) -> tuple[float, float]:
    """95 % interval of the calibration error, by a bootstrap; what a perfect calibration would show is subtracted.

    Few images in a bin differ from their confidence by chance alone, which makes the plain figure too large.
    """
    num, rng = len(confidence_L), torch.Generator().manual_seed(0)
    by_chance = [
        calibration_error(confidence_L, torch.rand(num, generator=rng) < confidence_L) for _ in range(rounds // 4)
    ]
    excess = sum(by_chance) / len(by_chance)
    drawn = []
    for _ in range(rounds):
        picked = torch.randint(num, (num,), generator=rng)
        drawn.append(calibration_error(confidence_L[picked], right_L[picked]))
    # A resampled set has the chance deviations of the first draw and its own, of equal size.
    drawn = sorted(math.sqrt(max(0.0, each**2 - 2 * excess**2)) for each in drawn)
    return drawn[int(0.025 * rounds)], drawn[int(0.975 * rounds)]


def tail(right: int, trials: int, share_right: float) -> float:
    """Probability that `trials` draws are right `right` times or more where each is right with `share_right`."""
    if right <= 0:
        return 1.0
    log_p, log_q = math.log(share_right), math.log1p(-share_right)
    terms = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q
        for k in range(right, trials + 1)
    )
    return min(1.0, sum(math.exp(term) for term in terms))


def fewest(precision: float, level: float) -> int:
    """Fewest labeled images, all right, that show a precision at a level of confidence."""
    return math.ceil(math.log(1 - level) / math.log(precision) - 1e-9)


class Limit(NamedTuple):
    """From which confidence on labels are promised to be right often enough."""

    confidence: float | None  # None: from none on
    num_above: int  # labeled images from there on, or those that were tested in vain
    right_above: int
    needed: int  # of those, how many have to be right; more than there are where no number would do


def limit(confidence_L: Tensor, right_L: Tensor, weights_L: Tensor, *, precision: float, level: float) -> Limit:
    """The lowest confidence from which labels are right in `precision` of cases or more, with probability `level`.

    Confidences are tried downward until a test fails. The chance that any false limit passes is at most 1 - `level`,
    since the first false one in the sequence has to pass (fixed-sequence testing). The first is the one that most
    likely passes if each image is right as often as its calibrated confidence says: with few images at the top not even
    a faultless record is proof. Weights reduce the number of trials to the effective one. With equal weights the test
    is exact, but for what the calibration has learned from the same images.
    """
    order = confidence_L.argsort(descending=True, stable=True)
    right, weights = right_L[order].double(), weights_L[order].double()
    sums, squares, hits = weights.cumsum(0), weights.square().cumsum(0), (weights * right).cumsum(0)
    trials = (sums.square() / squares + 1e-6).floor().int().tolist()
    rights = (hits / sums * sums.square() / squares + 1e-6).floor().int().tolist()
    expected = ((weights * confidence_L[order]).cumsum(0) / sums).tolist()
    start = _start(trials, expected, precision, level)
    if start is None:
        return Limit(None, len(order), int(right.sum()), fewest(precision, level))
    best = None
    for above in range(start, len(order) + 1):
        if tail(rights[above - 1], trials[above - 1], precision) > 1 - level:
            break
        is_tie = above < len(order) and confidence_L[order[above]] == confidence_L[order[above - 1]]
        if not is_tie:
            best = above
    above = best or start
    at = None if best is None else float(confidence_L[order[best - 1]])
    return Limit(at, trials[above - 1], rights[above - 1], _passing(trials[above - 1], precision, level))


def _start(trials: Sequence[int], expected: Sequence[float], precision: float, level: float) -> int | None:
    """How many images lie above the first limit of the sequence: a number on a grid; None if no number can pass.

    `trials` and `expected` (0..1) are effective numbers and mean confidences of the images above each limit.
    """
    num, above, best = len(trials), float(fewest(precision, level)), (0.0, 0)
    while above < num * 1.1:
        count = min(int(above), num)
        needed = _passing(trials[count - 1], precision, level)
        if needed <= trials[count - 1]:
            best = max(best, (tail(needed, trials[count - 1], min(expected[count - 1], 1 - 1e-9)), count))
        above *= 1.1
    return best[1] or None


def _passing(trials: int, precision: float, level: float) -> int:
    """Fewest right of `trials` with which the test passes; one more than `trials` if none."""
    low, high = 0, trials + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if tail(middle, trials, precision) <= 1 - level else (middle + 1, high)
    return low


class Suspect(NamedTuple):
    """A labeled image whose label is likely wrong."""

    row: int  # of the labeled image
    given: int  # class
    suggested: int
    probability: float  # of the suggested class, calibrated


def errors(probs_LK: Tensor, labels_L: Tensor) -> list[Suspect]:
    """Labels that are likely wrong, the surest first, by probabilities of models that have not seen the image.

    An image counts for another class if its probability there reaches the mean that images of that class have
    (confident learning, Northcutt et al. 2021), and if it is more than nine times that of the given class. Nothing is
    said of a class with fewer than FEWEST_OF_CLASS images: a classifier that has seen one or two cannot know better.
    """
    classes = probs_LK.shape[1]
    counts_K = labels_L.bincount(minlength=classes)
    own_L = probs_LK.gather(1, labels_L[:, None]).squeeze(1)
    means = [own_L[labels_L == k].mean() if bool((labels_L == k).any()) else torch.tensor(2.0) for k in range(classes)]
    reached_LK = (probs_LK >= torch.stack(means)) & (probs_LK > 9 * own_L[:, None])
    other_L = probs_LK.masked_fill(~reached_LK, 0.0).max(1)
    found = [
        Suspect(i, int(labels_L[i]), int(other_L.indices[i]), float(other_L.values[i]))
        for i in range(len(labels_L))
        if other_L.values[i] > 0.5 and counts_K[labels_L[i]] >= FEWEST_OF_CLASS
    ]
    return sorted(found, key=lambda each: -each.probability)


def nearest(vectors_ND: Tensor, references_LD: Tensor, *, themselves: bool = False) -> Tensor:
    """Mean cosine distance (N,) float32 to the NEIGHBORS nearest references.

    With `themselves` the vectors are the references, and none counts as its own neighbor.
    """
    references = F.normalize(references_LD.float(), dim=1)
    count = min(NEIGHBORS, len(references) - themselves)
    if count < 1 or not len(vectors_ND):
        return torch.zeros(len(vectors_ND))
    parts = []
    for start in range(0, len(vectors_ND), _CHUNK):
        similar = F.normalize(vectors_ND[start : start + _CHUNK].float(), dim=1) @ references.T
        if themselves:
            similar[torch.arange(len(similar)), torch.arange(start, start + len(similar))] = -2.0
        parts.append(1 - similar.topk(count, dim=1).values.mean(1))
    return torch.cat(parts)


def folds_of(labels_L: Sequence[int], count: int, seed: int) -> Tensor:
    """Folds (L,) int64 of labeled images, 0..count - 1, in which each class is spread evenly."""
    labels, rng = torch.as_tensor(labels_L), torch.Generator().manual_seed(seed)
    fold_L, start = torch.empty(len(labels), dtype=torch.int64), 0
    for k in sorted(set(labels.tolist())):
        rows = torch.nonzero(labels == k).squeeze(1)
        fold_L[rows[torch.randperm(len(rows), generator=rng)]] = (torch.arange(len(rows)) + start) % count
        start += len(rows)
    return fold_L
