"""From a detector's probabilities to verdicts: real, unsure or synthetic.

Two thresholds decide. `SYNTHETIC_FROM`, a probability of 0.5, leaves the share of the pool above it that training
estimated to be synthetic. The *limit* is the split-conformal threshold that at most a given share of real images
exceeds; it is calibrated on labeled real images that the detector has never seen (`held_out` of the recipe). An image
above both is synthetic, an image below both is real, and one between them is unsure. Wherever an image is called
synthetic, in the columns, the counts and the exports, that is its verdict.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.errors import BadInput, MissingArtifact
from pipelines.storage.atomic import write_json

SYNTHETIC_FROM = 0.5  # the saved detector's logit is 0 at its own threshold
DEFAULT_RATE = 0.05  # false-positive rate of the limit, where none is asked for
VERDICTS = ("real", "unsure", "synthetic")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Probabilities that separate the verdicts; see the module."""

    synthetic_from: float  # from here the verdict is synthetic
    real_below: float  # below, the verdict is real
    max_false_positive_rate: float | None  # of the limit; None where too few images are held out for any
    num_held_out: int

    def verdicts(self, prob_synthetic_N: npt.NDArray[np.float32]) -> npt.NDArray[np.str_]:
        """One of `VERDICTS` for each probability."""
        grade_N = (prob_synthetic_N >= self.real_below).astype(int) + (prob_synthetic_N >= self.synthetic_from)
        return np.asarray(np.array(VERDICTS)[grade_N])

    @property
    def statement(self) -> str:
        """The guarantee of the limit, in a sentence."""
        if self.max_false_positive_rate is None:
            return (
                f"Only {self.num_held_out} labeled images are held out from the detector, too few to limit the loss of "
                f"real images to {DEFAULT_RATE:.0%}."
                + (" Nothing is called unsure." if self.real_below == self.synthetic_from else "")
            )
        return (
            f"Calibrated on {self.num_held_out} real images that the detector has never seen: on average over such "
            f"sets, at most {self.max_false_positive_rate:.1%} of real images like these are above the limit."
        )


def limit(held_out: Sequence[float], rate: float) -> float:
    """Split-conformal threshold: a new real image's probability exceeds it with probability at most `rate`.

    With n exchangeable held-out images it is the ceil((n + 1)(1 - rate))-th smallest of their probabilities (Vovk et
    al. 2005; Bates et al. 2023 for outlier detection). The rate of one held-out set follows a beta distribution, and
    its expectation goes in steps of 1 / (n + 1). Raises BadInput where n is too small for the rate.
    """
    rank = math.ceil((len(held_out) + 1) * (1 - rate) - 1e-9)
    if rank > len(held_out):
        raise BadInput(
            f"--max-false-positive-rate {rate} is too small for {len(held_out)} held-out real images. The smallest "
            f"possible rate is {1 / (len(held_out) + 1):.3f}: ask for that, or train with more labeled images or a "
            "larger held_out."
        )
    # The next number above it, so that a probability equal to a held-out image's is not called synthetic.
    return float(np.nextafter(np.float32(sorted(held_out)[rank - 1]), np.float32(2)))


def choose(held_out: Sequence[float], rate: float | None, unsure_from: float = SYNTHETIC_FROM) -> Thresholds:
    """Choose a model's thresholds; without a `rate` the limit is that of DEFAULT_RATE, if enough images are held out.

    From `unsure_from` on no image is called real: above it a panel leaves the estimated share, not the lower bound.
    """
    if rate is None and (len(held_out) + 1) * DEFAULT_RATE < 1:
        return Thresholds(
            synthetic_from=SYNTHETIC_FROM,
            real_below=min(SYNTHETIC_FROM, unsure_from),
            max_false_positive_rate=None,
            num_held_out=len(held_out),
        )
    at = limit(held_out, rate or DEFAULT_RATE)
    return Thresholds(
        synthetic_from=max(SYNTHETIC_FROM, at),
        real_below=min(SYNTHETIC_FROM, at, unsure_from),
        max_false_positive_rate=rate or DEFAULT_RATE,
        num_held_out=len(held_out),
    )


def save(run: Path, thresholds: Thresholds) -> None:
    """Write run/thresholds.json: at the end of training, and by each `curate score`."""
    write_json(run / "thresholds.json", asdict(thresholds))


def load(run: Path) -> Thresholds:
    """Read run/thresholds.json; MissingArtifact where it is missing or damaged."""
    try:
        return Thresholds(**json.loads((run / "thresholds.json").read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        raise MissingArtifact(f"{run}/thresholds.json is missing or damaged. Run `curate score` again.") from None
