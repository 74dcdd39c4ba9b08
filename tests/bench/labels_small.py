"""Whether labels of 32-pixel images are as often right as curate says: its own commands on CIFAKE crawls with truth.

    python tests/bench/labels_small.py --labels 10 --work WORK

For each seed `tools/make_crawl.py` lays out a crawl (6,000 CIFAR-10 images, 3,000 of Stable Diffusion 1.4), and `curate
ingest`, `train --config cpu`, `score` and `export --label-precision` run on it as a person would run them. Needs
../shared/data. One line of JSON a seed: what is true, what curate says, and what an export gives.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

TOOL = Path(__file__).resolve().parents[3] / "shared" / "tools" / "make_crawl.py"
CURATE = [sys.executable, "-m", "curate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=10, help="of each class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    for seed in given.seeds:
        work = given.work.resolve() / f"{given.labels}-{seed}"
        found = {"labels": given.labels, "seed": seed, **one(work, given.labels, seed, given.steps)}
        print(json.dumps(found), flush=True)
        shutil.rmtree(work)


def one(work: Path, labels_per_class: int, seed: int, steps: int) -> dict[str, Any]:
    """Run all commands on the crawl of one seed, and compare what they say with what is true."""
    drawn = ["--labels-per-class", labels_per_class, "--real", 6000, "--test", 100, "--seed", seed]
    if not (work / "truth.parquet").exists():
        shell([sys.executable, TOOL, "--out", work, *drawn], Path.cwd())
    shell([*CURATE, "ingest", "crawl"], work)
    started = time.monotonic()
    shell([*CURATE, "train", "--config", "cpu", "--labeled", "seed", "--num-steps", steps, "--seed", seed], work)
    minutes = (time.monotonic() - started) / 60
    shell([*CURATE, "score"], work)
    rows = [row for path in sorted((work / "pool").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    truth = {row["key"]: row for row in pq.read_table(work / "truth.parquet").to_pylist()}
    known = {row["key"]: truth[Path(row["member"]).stem] for row in rows}
    scores = pa.concat_tables(map(pq.read_table, sorted((work / "run" / "scores").glob("*.parquet")))).to_pylist()
    numbers = {name: number for number, name in enumerate((work / "run" / "classes.txt").read_text().split())}
    real = np.array([known[row["key"]]["is_synthetic"] == 0 for row in scores])
    right = np.array([numbers[row["pseudo_label"]] == known[row["key"]]["cls"] for row in scores])
    sure, raw = (np.array([row[name] for row in scores]) for name in ("confidence", "raw_confidence"))
    said = json.loads((work / "run" / "labels.json").read_bytes())
    low, high = said["accuracy_interval"]
    accuracy = float(right[real].mean())
    found: dict[str, Any] = {
        "accuracy": accuracy, "accuracy_of_synthetic": float(right[~real].mean()), "said": said["accuracy"],
        "width": high - low, "held": low <= accuracy <= high, "confidence": float(sure[real].mean()),
        "ece": error(sure[real], right[real]), "raw": float(raw[real].mean()), "ece_raw": error(raw[real], right[real]),
        "warned": bool(said["warning"]), "minutes": minutes,
    }  # fmt: skip
    for asked in (0.9, 0.95):
        shell([*CURATE, "export", "--out", "clean", "--label-precision", asked, "--unlabeled", "drop"], work)
        found |= {f"{name}_{asked}": value for name, value in exported(work, known).items()}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def exported(work: Path, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How many images an export gives, and how many of the labels of its real images are right."""
    right = []
    for path in sorted((work / "clean").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                file = tar.extractfile(member)
                if suffix == "cls" and file is not None and known[key]["is_synthetic"] == 0:
                    right.append(int(file.read()) == known[key]["cls"])
    return {"out": len(right), "precision": sum(right) / len(right) if right else None}


def error(sure_N: npt.NDArray[np.floating], right_N: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error over fifteen bins of equally many images."""
    parts = np.array_split(np.argsort(sure_N, kind="stable"), 15)
    return float(sum(len(part) * abs(sure_N[part].mean() - right_N[part].mean()) for part in parts) / len(right_N))


def shell(command: list[Any], folder: Path) -> None:
    """Run a command in a folder; whatever it prints is shown only if it fails."""
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")


if __name__ == "__main__":
    main()
