"""Measures how well one property of the files predicts the verdict, and how far the labeled images differ in it.

Both are measured on a sample of the pool. Numbers are first grouped into ranges, and other properties by value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.run.evaluation import auroc

# A property is worth a warning if, of two images with different verdicts, it alone tells which is which three times in
# four; or if it holds a fifth of the verdict's information, which finds a property that settles few images, but those
# with certainty. Greyness, which really differs between photographs and diffusion images (15 % of Stable Diffusion's
# small images are grey, 3 % of CIFAR's), stays far below both: 0.55 and 0.02.
WARN_AUROC = 0.75
WARN_SHARE = 0.2
# A fifth of the labeled images would have to be replaced for the two to look alike.
WARN_DIFFERENCE = 0.2
MIN_VERDICTS = 20  # of either kind; with fewer, prediction is not measured
BINS = 12  # ranges of a number
CELLS = 8  # values shown of a property that has many

_FOLDS = 5
_DRAWS = 200

Codes = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """The images that share a value of a property, or a range of values."""

    value: str
    num_images: int  # of the sample
    share: float  # of the sample's images
    share_synthetic: float | None  # of these; this and the next two: None without a detector, or without an image
    share_unsure: float | None
    mean_prob: float | None  # mean prob_synthetic
    labeled_share: float | None  # share of the labeled images; None without a labeled set


@dataclass(frozen=True, kw_only=True, slots=True)
class Property:
    """What one property of the files tells about the verdict and the labeled set; None if that cannot be measured."""

    name: str
    num_images: int
    auroc: float | None  # of predicting the verdict from it alone, 0.5..1
    bits: float | None  # information about the verdict, on images that it was not learned from
    bits_of_verdict: float | None  # entropy of the verdict, the most that `bits` can be
    difference: float | None  # between labeled set and pool, 0..1: the share of images in which they differ
    noise: float | None  # the difference that chance alone exceeds in 1 % of cases
    cells: tuple[Cell, ...]


def predicts(found: Property) -> bool:
    """Whether a property alone predicts the verdict well enough for a warning."""
    if found.auroc is None or found.bits is None or not found.bits_of_verdict:
        return False
    return found.auroc >= WARN_AUROC or found.bits >= WARN_SHARE * found.bits_of_verdict


def differs(found: Property) -> bool:
    """Whether labeled set and pool differ enough in a property, and beyond chance, for a warning."""
    if found.difference is None or found.noise is None:
        return False
    return found.difference >= max(WARN_DIFFERENCE, found.noise)


def judge(
    name: str,
    values: Sequence[Any],
    among_labeled: Sequence[Any],
    verdict: Bools | None,
    probs: npt.NDArray[np.float32] | None,
    unsure: Bools | None = None,
) -> Property:
    """Measure one property.

    `values` are those of the sample's first images, None for a file without the property; `among_labeled` are those of
    the labeled images. `verdict` (N,), `probs` (N,), prob_synthetic, and `unsure` (N,) are those of the whole sample.
    """
    has = np.array([value is not None for value in values], dtype=bool)
    present = [value for value in values if value is not None]
    labeled = [value for value in among_labeled if value is not None]
    binning = _Binning([*present, *labeled])
    codes, labeled_codes, num = binning(present), binning(labeled), len(binning.labels)
    counts, labeled_counts = np.bincount(codes, minlength=num), np.bincount(labeled_codes, minlength=num)
    difference, noise = _difference(counts, labeled_counts, binning.ordered) if labeled and present else (None, None)
    predicted = None
    sums: dict[str, npt.NDArray[Any]] = {}
    if verdict is not None and probs is not None:
        called = verdict[: len(values)][has]
        of_verdict = {"share_synthetic": verdict, "mean_prob": probs}
        for what, each in (of_verdict | ({} if unsure is None else {"share_unsure": unsure})).items():
            sums[what] = np.bincount(codes, each[: len(values)][has], minlength=num)
        if min(called.sum(), (~called).sum()) >= MIN_VERDICTS:
            predicted = predictability(codes, called)
            if binning.ordered:
                straight = auroc(np.asarray(present, dtype=float), called)
                predicted = (max(predicted[0], straight, 1 - straight), *predicted[1:])
    return Property(
        name=name,
        num_images=len(present),
        auroc=predicted and round(predicted[0], 4),
        bits=predicted and round(predicted[1], 4),
        bits_of_verdict=predicted and round(predicted[2], 4),
        difference=difference,
        noise=noise,
        cells=_cells(binning, counts, labeled_counts if labeled else None, sums),
    )


def predictability(codes: Codes, called: Bools) -> tuple[float, float, float]:
    """How well categories `codes` (N,) predict `called` (N,): AUROC, bits of information, and the entropy in bits.

    The rate of an image's category is taken from the other folds, so that many categories of few images each, such as
    the files of a crawl, do not seem to predict anything. The AUROC is the mean of the folds'.
    """
    fold = np.arange(len(codes)) % _FOLDS  # the sample is in random order
    num = int(codes.max()) + 1
    shape = _FOLDS, num
    images = np.bincount(fold * num + codes, minlength=_FOLDS * num).reshape(shape)
    hits = np.bincount(fold * num + codes, called, minlength=_FOLDS * num).reshape(shape)
    images, hits = images.sum(0) - images, hits.sum(0) - hits  # of the other folds
    base = (hits.sum(1, keepdims=True) + 0.5) / (images.sum(1, keepdims=True) + 1)
    rate = ((hits + base) / (images + 1))[fold, codes]  # smoothed by one image at the base rate
    areas = [auroc(rate[fold == k], called[fold == k]) for k in range(_FOLDS)]
    prior = base[fold, 0]
    gain = np.where(called, np.log2(rate / prior), np.log2((1 - rate) / (1 - prior)))
    share = called.mean()
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    return max(0.5, float(np.nanmean(areas))), max(0.0, float(gain.mean())), float(entropy)


class _Binning:
    """Maps values of a property to codes: one for each frequent value, and one for each range between quantiles."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.ordered = not isinstance(values[0], str)
        if not self.ordered:
            self.labels = sorted(set(values))
            self._codes = {label: code for code, label in enumerate(self.labels)}
            return
        numbers = np.asarray(values, dtype=float)
        distinct, counts = np.unique(numbers, return_counts=True)
        frequent = distinct if len(distinct) <= BINS else distinct[counts >= len(numbers) / BINS / 2]
        rest = numbers[~np.isin(numbers, frequent)]
        quantiles = np.unique(np.quantile(rest, np.arange(1, BINS) / BINS)) if len(rest) else np.empty(0)
        # A frequent value is the range from itself to the next number.
        self._starts = np.unique([-np.inf, *quantiles, *frequent, *np.nextafter(frequent, np.inf)])
        codes = np.searchsorted(self._starts, numbers, side="right") - 1
        used = np.unique(codes)
        self._starts = self._starts[used]
        self.labels = [_range(numbers[codes == code]) for code in used]

    def __call__(self, values: Sequence[Any]) -> Codes:
        if self.ordered:
            return (np.searchsorted(self._starts, np.asarray(values, dtype=float), side="right") - 1).clip(0)
        return np.array([self._codes[value] for value in values], dtype=np.int64)


def _range(values: npt.NDArray[np.floating[Any]]) -> str:
    low, high = f"{values.min():.4g}", f"{values.max():.4g}"
    return low if low == high else f"{low}–{high}"


def _difference(counts: Codes, labeled_counts: Codes, ordered: bool) -> tuple[float, float]:
    """How much two sets of images differ in a property, 0..1, and what chance alone makes of sets of these sizes.

    The measure is the total variation; for ordered values it is the Kolmogorov-Smirnov statistic, which needs fewer
    images.
    """

    def distance(some: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        gap = some / some.sum(-1, keepdims=True) - other / other.sum(-1, keepdims=True)
        return np.asarray(np.abs(gap.cumsum(-1)).max(-1) if ordered else np.abs(gap).sum(-1) / 2)

    rng = np.random.default_rng(0)
    both = (counts + labeled_counts) / (counts + labeled_counts).sum()
    draws = [rng.multinomial(int(some.sum()), both, _DRAWS) for some in (counts, labeled_counts)]
    return (
        round(float(distance(counts, labeled_counts)), 4),
        round(float(np.quantile(distance(draws[0], draws[1]), 0.99)), 4),
    )


def _shares(counts: Codes) -> npt.NDArray[np.float64]:
    return np.asarray(counts / max(counts.sum(), 1))


def _cells(
    binning: _Binning,
    counts: Codes,
    labeled_counts: Codes | None,
    sums: Mapping[str, npt.NDArray[Any]],
) -> tuple[Cell, ...]:
    """The cross-tabulation: all ranges of a number, or the most frequent values and the rest as one.

    `sums` has one value for each code, of the fields of a cell that are means.
    """
    groups = [[code] for code in range(len(counts))]
    if not binning.ordered:
        total = counts if labeled_counts is None else _shares(counts) + _shares(labeled_counts)
        order = np.argsort(-total, kind="stable").tolist()
        groups = [[code] for code in order[:CELLS]] + ([order[CELLS:]] if len(order) > CELLS else [])
    cells = []
    for group in groups:
        num = int(counts[group].sum())
        cells.append(
            Cell(
                value=binning.labels[group[0]] if len(group) == 1 else f"{len(group)} others",
                num_images=num,
                share=round(num / max(int(counts.sum()), 1), 4),
                share_synthetic=_ratio(sums.get("share_synthetic"), group, num),
                share_unsure=_ratio(sums.get("share_unsure"), group, num),
                mean_prob=_ratio(sums.get("mean_prob"), group, num),
                labeled_share=_ratio(labeled_counts, group, labeled_counts.sum() if labeled_counts is not None else 0),
            )
        )
    return tuple(cells)


def _ratio(sums: npt.NDArray[Any] | None, group: list[int], num: int) -> float | None:
    return None if sums is None or not num else round(float(sums[group].sum() / num), 4)
