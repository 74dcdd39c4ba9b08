"""Do the thresholds hold? The main job for several seeds, its limits and its interval against the truth.

    OMP_NUM_THREADS=1 python tests/bench/limits.py --shared ../shared --work WORK --out limits.jsonl --seeds 0 1 2 3 4

Each seed draws a crawl and 250 labeled images anew (`tools/make_crawl.py --seed`) and trains with that seed. One line
per seed: the AUROC; which share of the pool's real images lies above the limit for each asked rate (`curate score
--max-false-positive-rate`); the estimated share of synthetic images, its 95 % interval and whether that holds the true
share. Seeds that are in OUT already are left out.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from main_job import CURATE, check_scores, stem, tables, truth_of

RATES = (0.05, 0.1, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--size", type=int, default=32, help="24: the pipeline-matched crawl")
    args = parser.parse_args()
    done = {json.loads(line)["seed"] for line in args.out.read_text().splitlines()} if args.out.exists() else set()
    for seed in args.seeds:
        if seed not in done:
            line = measure(args.shared, args.work.resolve() / f"seed{seed}", seed, args.size)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


class Job:
    """The commands of one seed, in one folder; the names are those that `main_job`'s checks look for."""

    def __init__(self, work: Path) -> None:
        self.pool, self.run, self._work = work / "pool", work / "run", work

    def curate(self, stage: str, *options: str) -> dict[str, Any]:
        where = ["--pool", str(self.pool)] + ([] if stage == "ingest" else ["--run", str(self.run)])
        command = [*CURATE, stage, *options, *where, "--json"]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=self._work).stdout
        loaded: dict[str, Any] = json.loads(result)
        return loaded


def measure(shared: Path, work: Path, seed: int, size: int) -> dict[str, Any]:
    if not (work / "truth.parquet").exists():
        make = [sys.executable, str(shared / "tools" / "make_crawl.py"), "--out", str(work), "--junk"]
        options = ["--labels-per-class", "25", "--real", "20000", "--alpha", "0.5", "--seed", str(seed)]
        subprocess.run([*make, *options, "--size", str(size)], check=True, stdout=subprocess.DEVNULL)
    job = Job(work)
    started = time.monotonic()
    job.curate("ingest", str(work / "crawl"))
    trained = job.curate("train", "--config", "cpu", "--labeled", str(work / "seed"), "--seed", str(seed))
    job.curate("score")
    figures = check_scores(work, job)
    low, high = trained["estimated_interval"]
    held_out = json.loads((job.run / "model" / "config.json").read_text())["held_out"]
    return {
        "seed": seed,
        **figures,
        "held_out": len(held_out),
        "realized": {str(rate): realized(work, job, rate) for rate in RATES},
        "share_estimated": trained["estimated_share"],
        "interval": [low, high],
        "covered": low <= figures["synthetic_share"] <= high,
        "seconds": round(time.monotonic() - started),
    }


def realized(work: Path, job: Job, rate: float) -> float:
    """Share of the pool's real images that the limit for `rate` calls synthetic."""
    job.curate("score", "--max-false-positive-rate", str(rate))
    truth, scores = truth_of(work), {row["key"]: row["verdict"] for row in tables(job.run / "scores")}
    real = [row["key"] for row in tables(job.pool) if truth[stem(row["member"])]["is_synthetic"] != 1]
    return round(float(np.mean([scores[key] == "synthetic" for key in real])), 4)


if __name__ == "__main__":
    main()
