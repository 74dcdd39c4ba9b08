"""Compares scores with a known truth: AUROC of the detector, error rates of its verdicts, accuracy of pseudo-labels."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipelines.pool.manifest import Pool, read_parquet
from pipelines.pool.truth import UNKNOWN, Truth, check


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


def is_color(images_BCHW: Tensor) -> Tensor:
    """Whether each of uint8 images (B, 3, H, W) has color (B,): its channels' means span at least 6 levels.

    Grey is a shortcut in many contaminated data sets, so results are also reported without grey images.
    """
    mean_BC = images_BCHW.float().mean((2, 3))
    return mean_BC.amax(1) - mean_BC.amin(1) >= 6


def evaluate(pool: Pool, run: Path, truth: Truth, classes: tuple[str, ...]) -> dict[str, float]:
    """Compare the scores of a run with the truth; a figure is `nan` if there are no images to compute it from.

    Without classes there are no pseudo-labels to compare.
    """
    probs, verdicts, labels, synthetic, correct = [], [], [], [], []
    number = {name: i for i, name in enumerate(classes)}
    for shard in pool.shards:
        scores = read_parquet(run / "scores" / f"{shard}.parquet", ["prob_synthetic", "synthetic", "pseudo_label"])
        is_synthetic, label = truth.of(pool.rows(shard, ["member"])["member"].to_pylist())
        probs.append(scores["prob_synthetic"].to_numpy())
        verdicts.append(np.array(scores["synthetic"].to_pylist(), dtype=bool))
        predicted = [number.get(name, UNKNOWN) for name in scores["pseudo_label"].to_pylist()]
        correct.append(np.array(predicted, dtype=np.int64) == label)
        synthetic.append(is_synthetic)
        labels.append(label)
    kind, known_label = np.concatenate(synthetic), np.concatenate(labels) != UNKNOWN
    check(kind, pool)
    prob, verdict, right = np.concatenate(probs), np.concatenate(verdicts), np.concatenate(correct)
    real, fake = kind == 0, kind == 1
    known = real | fake
    figures = {
        "auroc": auroc(prob[known], fake[known]),
        "synthetic_share": mean(fake[known]),
        "synthetic_share_found": mean(verdict[known]),
        "real_called_synthetic": mean(verdict[real]),
        "synthetic_called_real": mean(~verdict[fake]),
    }
    if classes:
        figures["pseudo_label_accuracy_real"] = mean(right[real & known_label])
        figures["pseudo_label_accuracy_synthetic"] = mean(right[fake & known_label])
    return figures


def mean(values: npt.NDArray[np.bool_]) -> float:
    """Share of the values that are true; `nan` if there are none."""
    return float(values.mean()) if values.size else float("nan")
