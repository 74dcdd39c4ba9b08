"""Figures against a known truth, for benchmarks and demos: it is reported, never trained on.

A truth file is a parquet or CSV with the columns `key` (the image's name in the crawl, without its suffix),
`is_synthetic` (0, 1 or -1 for unknown) and, if known, `cls` (index into the sorted class names).
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
from torch import Tensor

from pipelines.errors import BadInput
from pipelines.manifest import Pool, read_parquet

UNKNOWN = -1


@dataclass(frozen=True)
class Truth:
    """What images are, by their name in the crawl."""

    synthetic: dict[str, int]
    label: dict[str, int]

    def of(self, members: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Truth (N,) of being synthetic and of the class for image names, UNKNOWN where the file has none."""
        names = [PurePosixPath(member).name.split(".")[0] for member in members]
        synthetic = np.array([self.synthetic.get(name, UNKNOWN) for name in names], dtype=np.int64)
        return synthetic, np.array([self.label.get(name, UNKNOWN) for name in names], dtype=np.int64)


def read(path: Path) -> Truth:
    """Read a truth file; raises BadInput where a column is missing."""
    if not path.is_file():
        raise BadInput(f"{path}: is not a file; --truth takes a parquet or CSV with the columns key and is_synthetic.")
    table: pa.Table = read_parquet(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    if missing := {"key", "is_synthetic"} - set(table.column_names):
        raise BadInput(f"{path}: has no column {min(missing)!r}; it has {', '.join(table.column_names)}.")
    keys = [str(key) for key in table["key"].to_pylist()]
    synthetic = table["is_synthetic"].cast(pa.int64()).to_pylist()
    labels = table["cls"].cast(pa.int64()).to_pylist() if "cls" in table.column_names else [UNKNOWN] * len(keys)
    return Truth(dict(zip(keys, synthetic, strict=True)), dict(zip(keys, labels, strict=True)))


def check(synthetic: npt.NDArray[np.int64], pool: Pool) -> None:
    """Raise BadInput where a truth is of other images than those of a pool."""
    if (synthetic == UNKNOWN).all():
        raise BadInput(
            f"--truth: says of no image of {pool.root} whether it is synthetic; its keys have to be the names of the "
            "images in the crawl, without a suffix."
        )


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive outranks a negative, ties counting half.

    `nan` where one side is empty.
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
    """Whether each of uint8 images (B, 3, H, W) has color: mean channel values that spread over 6 levels or more.

    Grey is a shortcut in many contaminated sets, so that figures are given without grey images too.
    """
    mean_BC = images_BCHW.float().mean((2, 3))
    return mean_BC.amax(1) - mean_BC.amin(1) >= 6


def evaluate(pool: Pool, run: Path, truth: Truth, classes: tuple[str, ...]) -> dict[str, float]:
    """Compare the scores of a run with the truth: detector's AUROC and rates, pseudo-label accuracy by kind."""
    probs, verdicts, labels, synthetic, correct = [], [], [], [], []
    number = {name: i for i, name in enumerate(classes)}
    for shard in pool.shards:
        scores = read_parquet(run / "scores" / f"{shard}.parquet", ["prob_synthetic", "synthetic", "pseudo_label"])
        is_synthetic, label = truth.of(pool.rows(shard, ["member"])["member"].to_pylist())
        probs.append(scores["prob_synthetic"].to_numpy())
        verdicts.append(np.array(scores["synthetic"].to_pylist(), dtype=bool))
        correct.append(np.array([number[name] for name in scores["pseudo_label"].to_pylist()], dtype=np.int64) == label)
        synthetic.append(is_synthetic)
        labels.append(label)
    kind, known_label = np.concatenate(synthetic), np.concatenate(labels) != UNKNOWN
    check(kind, pool)
    prob, verdict, right = np.concatenate(probs), np.concatenate(verdicts), np.concatenate(correct)
    real, fake = kind == 0, kind == 1
    known = real | fake
    return {
        "auroc": auroc(prob[known], fake[known]),
        "synthetic_share": mean(fake[known]),
        "synthetic_share_found": mean(verdict[known]),
        "real_called_synthetic": mean(verdict[real]),
        "synthetic_called_real": mean(~verdict[fake]),
        "pseudo_label_accuracy_real": mean(right[real & known_label]),
        "pseudo_label_accuracy_synthetic": mean(right[fake & known_label]),
    }


def mean(values: npt.NDArray[np.bool_]) -> float:
    """Share of those that are true; `nan` of none."""
    return float(values.mean()) if values.size else float("nan")
