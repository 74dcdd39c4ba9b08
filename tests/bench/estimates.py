"""How often the estimates of `models/estimates.py` hold the truth, and how wide they are, on scores with known truth.

    OMP_NUM_THREADS=1 python tests/bench/estimates.py --seeds 20 [--out table.md]

Scores are drawn, not learned: real images from one distribution, synthetic ones from another with a wanted AUROC. Five
shapes, of which the model of `fit` assumes the first alone:

    normal  both normal, equal spread
    wide    the synthetic ones spread 1.5 times as far
    mixed   half of the synthetic images lie on the real ones, as of a generator that the detector does not see
    heavy   both of Student's t with 3 degrees of freedom
    skewed  both of the logarithm of a gamma distribution

Columns: how often the AUROC's interval holds the truth, its mean width, how far its middle is off on average; how often
the lower bound of the share is true, and its mean as a part of the true share; how often the upper end of the share is
true. The rivals are the formula alone, 1/2 + (A - 1/2) / pi with pi at its lower bound, and the bound that assumes
nothing, from A (if all of the pool were synthetic) to that formula.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models import estimates
from pipelines.run.evaluation import auroc

SHAPES = ("normal", "wide", "mixed", "heavy", "skewed")
SIZES = ((500, 30), (900, 60), (900, 150), (5_000, 150), (5_000, 500))  # of pool and labeled images
SHARES = (0.0, 0.1, 0.33, 0.67)
AUROCS = (0.55, 0.65, 0.75, 0.85, 0.95)
_SHIFT = {"wide": math.sqrt((1 + 1.5**2) / 2), "mixed": 2.0, "heavy": 1.25, "skewed": 0.85}


def real(shape: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Scores of real images."""
    if shape == "heavy":
        return rng.standard_t(3, count)
    return np.log(rng.gamma(2, 1, count)) if shape == "skewed" else rng.standard_normal(count)


def synthetic(shape: str, count: int, wanted: float, rng: np.random.Generator) -> np.ndarray:
    """Scores of synthetic images; `wanted` is their AUROC where both are normal, and near it elsewhere."""
    shift = math.sqrt(2) * NormalDist().inv_cdf(wanted) * _SHIFT.get(shape, 1.0)
    scores = real(shape, count, rng) * (1.5 if shape == "wide" else 1.0)
    return scores + np.where(rng.random(count) < 0.5, shift, 0.0) if shape == "mixed" else scores + shift


class Outcome(NamedTuple):
    """What came out of one case; nan where it has no synthetic image, and so no AUROC."""

    holds: float
    width: float
    off: float
    free_holds: float
    free_width: float
    formula_off: float
    bound_holds: float
    bound: float  # as a part of the share
    most_holds: float


def outcome(scores_N: Tensor, scores_L: Tensor, scores_K: Tensor | None, share: float, true: float) -> Outcome:
    """Estimate once, and compare with the truth."""
    bound, found = estimates.share_at_least(scores_N, scores_L), estimates.fit(scores_N, scores_L, scores_K)
    assert found is not None
    bound_holds, most_holds = float(bound <= share + 1e-9), float(found.share.high >= share)
    if not share:
        return Outcome(*[math.nan] * 6, bound_holds, math.nan, most_holds)
    excess = estimates.excess(scores_N, scores_L)
    error = 1.96 * math.sqrt((1 / len(scores_N) + 1 / len(scores_L)) / 12)
    low, high = (min(1.0, max(0.5, 0.5 + value)) for value in (excess - error, (excess + error) / max(bound, 1e-9)))
    formula = min(1.0, max(0.5, 0.5 + excess / max(bound, 1e-9)))
    return Outcome(
        holds=float(found.auroc.low <= true <= found.auroc.high),
        width=found.auroc.high - found.auroc.low,
        off=found.auroc.value - true,
        free_holds=float(low <= true <= high),
        free_width=high - low,
        formula_off=formula - true,
        bound_holds=bound_holds,
        bound=bound / share,
        most_holds=most_holds,
    )


def runs(
    num_seeds: int, num_known: int
) -> Iterator[tuple[dict[str, str], Tensor, Tensor, Tensor | None, float, float]]:
    """Every case: its names, scores of pool, labeled and known images, the true share and the true AUROC."""
    for shape in SHAPES:
        for num_pool, num_labeled in SIZES:
            for share in SHARES:
                for wanted in AUROCS if share else AUROCS[:1]:
                    for seed in range(num_seeds):
                        case = (SHAPES.index(shape), num_pool, num_labeled, round(100 * share), round(100 * wanted))
                        rng = np.random.default_rng((seed, *case))
                        count = round(share * num_pool)
                        fake, true = synthetic(shape, count, wanted, rng), real(shape, num_pool - count, rng)
                        pool = np.concatenate([fake, true])
                        known = torch.from_numpy(synthetic(shape, num_known, wanted, rng)) if num_known else None
                        names = {
                            "known": str(num_known), "shape": shape, "pool, labeled": f"{num_pool}, {num_labeled}",
                            "share": f"{share:g}", "AUROC": f"{wanted:g}" if share else "none",
                        }  # fmt: skip
                        labeled = torch.from_numpy(real(shape, num_labeled, rng))
                        measured = auroc(pool, np.arange(num_pool) < count)
                        yield names, torch.from_numpy(pool), labeled, known, count / num_pool, measured


def main() -> None:
    """Print the table: a row for each value of each condition, over all values of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--known", type=int, nargs="+", default=[0, 20, 50])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[tuple[str, str, str], list[Outcome]] = {}
    for num_known in options.known:
        for names, *case in runs(options.seeds, num_known):
            came = outcome(*case)
            for name in ("shape", "pool, labeled", "share", "AUROC", "known"):
                found.setdefault((names["known"], name, names[name]), []).append(came)
    columns = [
        "known synthetic", "condition", "", "interval holds", "width", "middle off", "assuming nothing holds", "width",
        "formula off", "lower bound holds", "of the share", "upper end holds",
    ]  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for key, outcomes in found.items():
        columns_CR = np.array(outcomes).T
        means = [f"{np.nanmean(each):.2f}" if not np.isnan(each).all() else "" for each in columns_CR]
        lines.append(f"| {' | '.join([*key, *means])} |")
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
