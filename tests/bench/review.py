"""What a person's marks are worth: does the detector's AUROC rise in the next training, and does the order matter?

    python tests/bench/review.py --pool POOL --run RUN --truth TRUTH --labeled SEED --work WORK [--seeds 0 1 2]

RUN is a finished run with scores; it is copied, never written to. The truth plays the person: it marks the first
images of the active-learning order of `curate review`, and as many drawn at random for comparison, through the module
that the page uses. Then `curate train` and `curate score` run for each order and seed, and once a seed without marks.
AUROC is counted over the images that none of these marks is of.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.pool import truth
from pipelines.pool.manifest import Pool, read_parquet
from pipelines.review.filters import Filter
from pipelines.review.gallery import Gallery
from pipelines.run import evaluation, marks
from pipelines.run.scores import ScoredPool

CURATE = [sys.executable, "-m", "curate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pool", "run", "truth", "labeled", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--marks", type=int, default=200)
    parser.add_argument("--labels", action="store_true", help="real images are marked with their class, too")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--config", default="cpu", help="recipe of the trainings")
    parser.add_argument("--no-train", action="store_true", help="only say what would be marked")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    world = World(args)
    figures: dict[str, Any] = {}

    def record(name: str, value: Any) -> None:
        figures[name] = value
        print(name, json.dumps(value), flush=True)
        (args.work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")

    picks = {"none": np.zeros(0, dtype=np.int64), "suggested": world.suggested(args.marks)}
    for seed in args.seeds:
        picks["random"] = np.random.default_rng(seed).choice(len(world.synthetic), args.marks, replace=False)
        left_out = np.concatenate(list(picks.values()))
        for order, rows in picks.items():
            record(f"{order} {seed}: marks", world.describe(rows))
            if not args.no_train:
                record(f"{order} {seed}", world.train(order, seed, rows, left_out))


class World:
    """A pool with its truth, row by row, and a run that scored it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.copy = args.work / "run"
        if not self.copy.exists():
            shutil.copytree(args.run, self.copy)
            marks.path(self.copy).unlink(missing_ok=True)
        self.gallery = Gallery(ScoredPool.open(args.pool, self.copy))
        members = [name for table in Pool.open(args.pool).tables(["member"]) for name in table["member"].to_pylist()]
        self.synthetic, self.label = truth.read(args.truth).of(members)

    def suggested(self, count: int) -> np.ndarray:
        """The first images of the active-learning order."""
        return self.gallery.view(Filter(order="suggested", marked="no"))[:count]

    def describe(self, rows: np.ndarray) -> dict[str, Any]:
        """What marking these images tells: how many the detector and the classifier were wrong about."""
        said = [self.gallery.describe(int(row)) for row in rows]
        wrong = [item["synthetic"] != (self.synthetic[item["row"]] == 1) for item in said]
        classes = [self.gallery.classes[self.label[item["row"]]] for item in said]
        mislabeled = [item["pseudo_label"] != name for item, name in zip(said, classes, strict=True)]
        return {
            "images": len(said),
            "synthetic": int((self.synthetic[rows] == 1).sum()),
            "wrong_verdicts": int(sum(wrong)),
            "wrong_pseudo_labels": int(sum(mislabeled)),
            "classes": len(set(classes)),
        }

    def train(self, order: str, seed: int, rows: np.ndarray, left_out: np.ndarray) -> dict[str, Any]:
        """Mark, train and score in a run of its own, and compare with the truth."""
        run = self.args.work / f"{order}-{seed}"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        if len(rows):
            marks.append(run, [self.mark(int(row)) for row in rows])
        shared = ["--pool", str(self.args.pool), "--run", str(run), "--json"]
        recipe = ["--labeled", str(self.args.labeled), "--config", self.args.config, "--seed", str(seed)]
        started = time.monotonic()
        trained = _curate("train", *recipe, *shared)
        _curate("score", *shared)
        scores = [read_parquet(path, ["prob_synthetic"]) for path in sorted((run / "scores").glob("*.parquet"))]
        prob = np.concatenate([table["prob_synthetic"].to_numpy() for table in scores])
        known = np.flatnonzero(self.synthetic != truth.UNKNOWN)
        unmarked = np.setdiff1d(known, left_out)
        return {
            "auroc_unmarked": round(evaluation.auroc(prob[unmarked], self.synthetic[unmarked] == 1), 4),
            "auroc": round(evaluation.auroc(prob[known], self.synthetic[known] == 1), 4),
            "marked": trained["marked"],
            "wall_s": round(time.monotonic() - started),
        }

    def mark(self, row: int) -> marks.Mark:
        """What the truth says of an image."""
        key, sha256 = self.gallery.key(row), self.gallery.sha256(row)
        if self.synthetic[row] == 1:
            return marks.Mark(sha256=sha256, key=key, verdict="synthetic")
        label = self.gallery.classes[self.label[row]] if self.args.labels else None
        return marks.Mark(sha256=sha256, key=key, verdict="real", label=label)


def _curate(*arguments: str) -> Any:
    done = subprocess.run([*CURATE, *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
