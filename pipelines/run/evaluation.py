"""Compares scores with what is known: a truth, or without one what the files declare of themselves.

Against a truth: AUROC of the detector, error rates of its verdicts, accuracy of pseudo-labels.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.pool.manifest import Pool, read_parquet
from pipelines.pool.truth import UNKNOWN, Truth

if TYPE_CHECKING:  # torch takes seconds, and the report on a pool without scores does without it
    from torch import Tensor


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive outranks a negative, ties counting half.

    `nan` if there are no positives or no negatives.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    num_positive, num_negative = int(truth.sum()), int((~truth).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = count.cumsum() - (count - 1) / 2
    rank_sum = mean_rank[inverse][truth].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion by its score test (Wilson 1927): 0 to 1 without trials."""
    if not trials:
        return 0.0, 1.0
    z2 = 1.959963984540054**2
    middle = (successes + z2 / 2) / (trials + z2)
    half = math.sqrt(z2 * (successes * (trials - successes) / trials + z2 / 4)) / (trials + z2)
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == trials else middle + half


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of some images are called synthetic."""

    called: int
    images: int
    interval: tuple[float, float] = field(init=False)  # of the share, 95 % confidence, by `wilson`

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", wilson(self.called, self.images))

    @property
    def share(self) -> float:
        """Share that is called synthetic, 0..1; `nan` of no images."""
        return self.called / self.images if self.images else float("nan")

    def __str__(self) -> str:
        """The rate as a person reads it: 3 of 122 (2.5 %, 95 % interval 0.8 % to 7.0 %)."""
        if not self.images:
            return "0 of 0"
        low, high = self.interval
        return f"{self.called} of {self.images} ({self.share:.1%}, 95 % interval {low:.1%} to {high:.1%})"


@dataclass(frozen=True, slots=True)
class DeclaredCheck:
    """A free check of a detector: what it calls the images that declare their origin.

    Images that declare a generator are of few generators, and those with camera tags of few cameras and sites. So these
    are rates of such images, not of the pool. A detector that learned from declared images is judged too well by them.
    """

    synthetic: Rate  # of images that declare themselves synthetic: the detector's recall of them
    camera: Rate  # of images that declare a camera: false positives, as far as they are what they say

    @classmethod
    def of(cls, declared: pa.ChunkedArray, called: pa.ChunkedArray) -> "DeclaredCheck":
        """Count images by their columns `declared` and `synthetic` (N,), which may be null."""
        rates = []
        for what in ("synthetic", "camera"):
            of_these = called.filter(pc.equal(declared, what))
            rates.append(Rate(pc.sum(of_these).as_py() or 0, len(of_these)))
        return cls(*rates)

    def __add__(self, other: "DeclaredCheck") -> "DeclaredCheck":
        """The check of the images of both."""
        pairs = ((self.synthetic, other.synthetic), (self.camera, other.camera))
        return DeclaredCheck(*(Rate(one.called + two.called, one.images + two.images) for one, two in pairs))

    def __bool__(self) -> bool:
        """Whether any image declares its origin."""
        return bool(self.synthetic.images or self.camera.images)

    @property
    def lines(self) -> dict[str, str]:
        """What there is to say, by what it is about."""
        found = {"declared synthetic, called so": self.synthetic, "declared camera, called synthetic": self.camera}
        return {name: str(rate) for name, rate in found.items() if rate.images}


NO_DECLARATIONS = DeclaredCheck(Rate(0, 0), Rate(0, 0))


def is_color(images_BCHW: "Tensor") -> "Tensor":
    """Whether each of uint8 images (B, 3, H, W) has color (B,): its channels' means span at least 6 levels.

    Grey is a shortcut in many contaminated data sets, so results are also reported without grey images.
    """
    mean_BC = images_BCHW.float().mean((2, 3))
    return mean_BC.amax(1) - mean_BC.amin(1) >= 6


def evaluate(pool: Pool, folder: Path, truth: Truth, classes: tuple[str, ...]) -> dict[str, float]:
    """Compare the scores of a pool, in its `folder` of a run, with the truth; a figure is `nan` if no image gives it.

    Without classes there are no pseudo-labels to compare.
    """
    probs, called, labels, synthetic, correct = [], [], [], [], []
    number = {name: i for i, name in enumerate(classes)}
    for shard in pool.shards:
        scores = read_parquet(folder / "scores" / f"{shard}.parquet", ["prob_synthetic", "verdict", "pseudo_label"])
        rows = pool.rows(shard, ["member", "sha256"])
        is_synthetic, label = truth.of(rows["member"].to_pylist(), rows["sha256"].to_pylist())
        probs.append(scores["prob_synthetic"].to_numpy())
        called.append(scores["verdict"].to_numpy())
        predicted = [number.get(name, UNKNOWN) for name in scores["pseudo_label"].to_pylist()]
        correct.append(np.array(predicted, dtype=np.int64) == label)
        synthetic.append(is_synthetic)
        labels.append(label)
    kind, known_label = np.concatenate(synthetic), np.concatenate(labels) != UNKNOWN
    prob, verdict, right = np.concatenate(probs), np.concatenate(called), np.concatenate(correct)
    real, fake = kind == 0, kind == 1
    known = real | fake
    figures = {
        "auroc": auroc(prob[known], fake[known]),
        "synthetic_share": mean(fake[known]),
        "synthetic_share_found": mean(verdict[known] == "synthetic"),
        "real_called_synthetic": mean(verdict[real] == "synthetic"),
        "synthetic_called_real": mean(verdict[fake] == "real"),
        "unsure": mean(verdict[known] == "unsure"),
    }
    if classes:
        figures["pseudo_label_accuracy_real"] = mean(right[real & known_label])
        figures["pseudo_label_accuracy_synthetic"] = mean(right[fake & known_label])
    return figures


def mean(values: npt.NDArray[np.bool_]) -> float:
    """Share of the values that are true; `nan` if there are none."""
    return float(values.mean()) if values.size else float("nan")
