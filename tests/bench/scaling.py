"""Are honest photographs called synthetic for how they were scaled?

    python tests/bench/scaling.py --run RUN --photos ../shared/data/photos-224.parquet --test TEST [--size 32]

Real photographs are scaled by four kernels and saved as JPEG of quality 75, as small images often are. Printed is the
share of them above the threshold that loses 5 % of TEST, real images like those that the detector was trained with
(a folder of images), and above the limit that `curate score` chooses from the images kept from the detector.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipelines.benchmark.measure import KERNELS, LOST, scaled
from pipelines.run import verdicts
from pipelines.run.scorer import Scorer


def probs(scorer: Scorer, images: list[bytes]) -> np.ndarray:
    parts = [scorer.score(images[start : start + 256]).prob_synthetic for start in range(0, len(images), 256)]
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "photos", "test"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--num-test", type=int, default=2000)
    args = parser.parse_args()
    scorer = Scorer.load(args.run)
    files = sorted(args.test.rglob("*.jpg"))
    files = files[:: max(1, len(files) // args.num_test)]
    of_test = probs(scorer, [path.read_bytes() for path in files])
    at = float(np.quantile(of_test, 1 - LOST))
    limit = verdicts.limit(scorer.model.config.held_out, LOST)
    print(
        json.dumps({"test": len(files), "threshold": at, "limit": limit, "test above the limit": above(of_test, limit)})
    )
    photos = pq.read_table(args.photos, columns=["jpg"])["jpg"].to_pylist()
    for kernel in KERNELS:
        found = probs(scorer, [scaled(data, args.size, kernel) for data in photos])
        print(json.dumps({"kernel": kernel, "above": above(found, at), "above the limit": above(found, limit)}))


def above(values: np.ndarray, threshold: float) -> float:
    return round(float((values >= threshold).mean()), 4)


if __name__ == "__main__":
    main()
